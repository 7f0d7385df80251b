"""Before a run: what will it cost, and can it work?"""

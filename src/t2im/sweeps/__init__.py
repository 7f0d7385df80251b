"""Beside a run: which settings are better?"""

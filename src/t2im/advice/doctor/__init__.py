"""Before a run: is anything wrong with the captions, the VAE or the settings?"""

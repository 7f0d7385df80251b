"""KahabMiniGenT2Im: a mini Stable Diffusion to train from scratch on your own captioned images, run, and understand."""

__version__ = "0.1.0"

"""The denoiser: plain PyTorch, one idea per file."""

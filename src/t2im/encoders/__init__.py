"""The two translators around the denoiser: images to latents and back, prompts to hidden states."""

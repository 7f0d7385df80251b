"""From a folder of images and captions to tensors. Knows no encoder."""

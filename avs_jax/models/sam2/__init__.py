"""SAM2 (Ravi et al., 2024): prompted segmentation of images and videos; model.py has the whole."""

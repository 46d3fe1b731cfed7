"""Backbones of the model."""

"""Fusion of the model."""

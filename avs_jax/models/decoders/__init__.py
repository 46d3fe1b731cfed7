"""Decoders of the model."""

"""Backbones of the model; avs_jax/models/avs.py has the table of names."""

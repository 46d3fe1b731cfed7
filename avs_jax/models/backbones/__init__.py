"""Backbones of the model; avs_jax/models/parts.py has the tables of names."""

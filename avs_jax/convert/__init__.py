"""Reads and writes other programs' weight files: numpy only, offline, no jax or flax."""

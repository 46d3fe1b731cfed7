"""The controls of an evaluation: the same truth with another sound, motion or text. NumPy only."""

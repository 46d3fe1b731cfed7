"""Controls of an evaluation: the same ground truth with another sound or motion. NumPy only."""

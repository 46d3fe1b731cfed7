"""TFDS builders of the datasets; scripts/build_dataset.py runs them, without TensorFlow."""

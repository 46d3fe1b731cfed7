"""TFDS builders of the datasets; avs-jax data build runs them, without TensorFlow."""

"""From records to batches: numpy and grain, never jax."""

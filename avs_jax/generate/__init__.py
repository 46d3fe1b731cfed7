"""Generated clips: planned, drawn, sounded and written in the layouts of real datasets. No jax."""

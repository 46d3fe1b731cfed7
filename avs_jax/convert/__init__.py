"""Foreign weights in and out: numpy only, offline; never imports jax or flax."""

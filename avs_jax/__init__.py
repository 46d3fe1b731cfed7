"""Audio-visual segmentation in JAX: VCT with audio-motion alignment on AVSBench."""

from avs_jax import xla_flags  # before JAX starts

__all__ = ["xla_flags"]

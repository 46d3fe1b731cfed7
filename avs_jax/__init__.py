"""Audio-visual segmentation in JAX: VCT with audio-motion alignment on AVSBench."""

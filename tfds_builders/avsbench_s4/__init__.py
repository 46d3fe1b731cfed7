"""AVSBench Single-source (S4)."""

from tfds_builders.avsbench_s4.avsbench_s4_dataset_builder import Builder

__all__ = ["Builder"]

"""AVSBench-semantic (AVSS)."""

from tfds_builders.avsbench_semantic.avsbench_semantic_dataset_builder import Builder

__all__ = ["Builder"]

"""AVSBench Multi-sources (MS3)."""

from tfds_builders.avsbench_ms3.avsbench_ms3_dataset_builder import Builder

__all__ = ["Builder"]

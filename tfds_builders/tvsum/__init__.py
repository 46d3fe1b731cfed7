"""TVSum."""

from tfds_builders.tvsum.tvsum_dataset_builder import Builder

__all__ = ["Builder"]

"""Ref-AVS Bench."""

from tfds_builders.refavs.refavs_dataset_builder import Builder

__all__ = ["Builder"]

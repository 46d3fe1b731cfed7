"""Queries on own videos."""

from tfds_builders.own_moments.own_moments_dataset_builder import Builder

__all__ = ["Builder"]

"""QVHighlights."""

from tfds_builders.qvhighlights.qvhighlights_dataset_builder import Builder

__all__ = ["Builder"]

"""The fields of a record.

A record is one clip, raw: images stay encoded, so that a reader decodes only the frames it needs.

  clip_id         Text
  category        Text
  category_label  int32              1-based; 0 where a dataset gives clips no single category
  frames          list of bytes      one encoded image per frame that exists
  masks           list of bytes      encoded PNG: 0 and not 0, or class indices
  mask_index      int32 [n]          the frames, from 0, that the masks belong to
  pre_masks       list of bytes      encoded class-agnostic color masks, one per frame, or none
  waveform        int16 [n, channels]
  sample_rate     int32              Hz
  flow            float16 [T, H, W, 2] (u, v in px), [T, H, W, 1] (magnitude), or [0, 0, 0, 0]
  flow_kind       Text               "uv", "magnitude" or "none"
  flow_has_first  bool               frame 0 has a flow of its own; False: it has none, and flow[0]
                                     is zeros. Datasets built before this field was added lack it
  motion_track    float16 [N, 24, 24, C]  motion at the video's own rate (data/motion_track.py), or
                                     [0, 0, 0, 0] where there is no video
  motion_track_rate float32          samples per second, 0 without. Datasets built before these two
                                     fields were added lack them
  visible_labels  int32 [n]          all categories in the frame, where known (generated clips)
  object_masks    list of bytes      encoded PNG per frame: 0 background, 1 the object that sounds,
                                     2 its silent look-alike, 3 another one; none where objects are
                                     not named. Datasets built before this field was added lack it

All of it reads back without TensorFlow, through avs_jax/data/records.py, which knows the feature
classes used here and refuses every other. (Flow is zlib-coded not only for its size: TFDS 4.9.10
cannot read back an empty array of unknown shape in its other encodings.)
"""

import numpy as np
import tensorflow_datasets as tfds

RECORD_FORMAT = 4  # raise it with every change of a field: unfinished builds then start over


class DatasetInfo(tfds.core.DatasetInfo):
    """Local metadata only: asking for published ones leaves an empty temporary folder each time."""

    def initialize_from_bucket(self) -> None:
        """Nothing is published, so there is nothing to fetch."""


def record_features() -> tfds.features.FeaturesDict:
    """The features of a record, as listed at the top of this file."""
    features = tfds.features
    images = features.Sequence(features.Tensor(shape=(), dtype=np.object_))
    return features.FeaturesDict(
        {
            "clip_id": features.Text(),
            "category": features.Text(),
            "category_label": np.int32,
            "frames": images,
            "masks": images,
            "mask_index": features.Tensor(shape=(None,), dtype=np.int32),
            "pre_masks": images,
            "waveform": features.Tensor(shape=(None, None), dtype=np.int16, encoding="bytes"),
            "sample_rate": np.int32,
            "flow": features.Tensor(shape=(None,) * 4, dtype=np.float16, encoding="zlib"),
            "flow_kind": features.Text(),
            "flow_has_first": np.bool_,
            "motion_track": features.Tensor(shape=(None,) * 4, dtype=np.float16, encoding="zlib"),
            "motion_track_rate": np.float32,
            "visible_labels": features.Tensor(shape=(None,), dtype=np.int32),
            "object_masks": images,
        }
    )

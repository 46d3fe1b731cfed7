"""Records of clips with encoded frames, and a small configuration that reads them."""

import io

import numpy as np
from PIL import Image

from configs.segment import segment_config, shrink_for_demo

SIDE = 64


def make_config(**data):
    config = segment_config()
    shrink_for_demo(config)
    config.data.image_size = 48
    config.data.augment.min_sizes = (40, 56, 72)
    config.data.motion.source = "auto"
    config.data.num_workers = 0
    config.evaluate.score_size = 32
    config.seed = 7
    config.data.update(data)
    return config


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def make_record(index=0, masks=(0,), flow=False, seconds=5):
    """Squares that move by 3 px a frame; the first one is the ground truth."""
    rng = np.random.default_rng(index)
    background = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    frames, labels, pre_masks = [], [], []
    for t in range(5):
        square = np.zeros((SIDE, SIDE), np.uint8)
        square[20:40, 5 + 3 * t : 25 + 3 * t] = 255
        frames.append(png(np.where(square[..., None] > 0, np.uint8(220), background)))
        labels.append(png(square))
        pre_masks.append(png(np.stack([square, square // 2, 255 - square], axis=-1)))
    vectors = np.zeros((5, SIDE, SIDE, 2), np.float16)
    vectors[1:, 20:40, 5:30] = (3, 4)
    return {
        "clip_id": f"clip{index}",
        "category": "dog_barking",
        "category_label": np.int32(20),
        "frames": frames,
        "masks": [labels[t] for t in masks],
        "mask_index": np.array(masks, np.int32),
        "pre_masks": pre_masks,
        "waveform": rng.integers(-9000, 9000, (16_000 * seconds, 1)).astype(np.int16),
        "sample_rate": np.int32(16_000),
        "flow": vectors if flow else np.zeros((0, 0, 0, 0), np.float16),
        "flow_kind": "uv" if flow else "none",
        "motion_track": np.zeros((0, 0, 0, 0), np.float16),
        "motion_track_rate": np.float32(0),
        "visible_labels": np.zeros(0, np.int32),
        "object_masks": [],
    }

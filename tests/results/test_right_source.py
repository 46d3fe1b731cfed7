"""right_source: by hand on small masks, then from records to the report's numbers."""

import numpy as np

from avs_jax.data.clip import ClipRows
from avs_jax.results import metrics
from avs_jax.results.right_source import count_sources, right_source
from avs_jax.results.segmentation import ClipMeter
from avs_jax.spec import IGNORE_LABEL
from avs_jax.task import stack_rows
from tests.clip_records import make_config, make_record, png

ROW = np.array([1, 1, 1, 1, 2, 2, 3, 0], np.uint8)  # four, two and one pixel


def test_shares_not_pixels_decide_and_ties_count_half():
    predictions = np.array(
        [
            [1, 1, 1, 0, 1, 0, 0, 0],  # 3/4 of the source, 1/2 of the other: right
            [1, 1, 1, 0, 1, 1, 0, 0],  # 3/4 and 2/2: wrong, although more pixels
            [1, 1, 1, 1, 1, 1, 1, 1],  # both: half
            [0, 0, 0, 0, 0, 0, 1, 1],  # neither: half
            [1, 0, 0, 0, 0, 0, 0, 0],  # right
        ],
        np.float32,
    )
    counts = count_sources(predictions[:, None] * np.float32(0.9), np.tile(ROW, (5, 1))[:, None])
    np.testing.assert_array_equal(counts["object_pixels"], np.tile([4, 2], (5, 1)))
    np.testing.assert_array_equal(counts["object_pred"][:2], [[3, 1], [3, 2]])
    assert right_source(counts) == (1 + 0 + 0.5 + 0.5 + 1) / 5
    classes = count_sources(predictions[:, None].astype(np.int32) * 7, ROW[None, None])
    np.testing.assert_array_equal(classes["object_pred"], counts["object_pred"])


def test_a_report_has_it_where_clips_name_their_objects():
    """The square is the source; its look-alike is a square below, hidden in frame 2."""
    config = make_config()
    rows = ClipRows(config)
    record = make_record(masks=range(5))
    objects = []
    for t in range(5):
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 5 + 3 * t : 25 + 3 * t] = 1
        if t != 2:
            mask[42:62, 5:25] = 2
        objects.append(png(mask))
    named = record | {"object_masks": objects}

    def numbers(*clips):
        batch = stack_rows([rows.prepare(clip) for clip in clips], rows.fields)
        pred = (batch["labels"] == 1).astype(np.float32)
        pred[0, 0] = batch["objects"][0, 0] == 2  # one frame of four is wrong
        pred[0, 2] = 0
        meter = ClipMeter(2, {})
        meter.add({"pred": pred}, batch)
        table = meter.table()
        assert metrics.validation_protocols(table).get("look_alikes") == metrics.all_protocols(
            table
        ).get("look_alikes")
        return metrics.all_protocols(table)

    assert numbers(named)["look_alikes"] == {"right_source": 0.75}
    assert "look_alikes" not in numbers(record)
    # Padding clips and clips without names do not count.
    assert numbers(named, record | {"clip_id": "other"})["look_alikes"] == {"right_source": 0.75}
    labels = rows.prepare_labels(named)["objects"]
    np.testing.assert_array_equal(labels, rows.prepare(named)["objects"])
    assert (rows.prepare(record)["objects"] == IGNORE_LABEL).all()

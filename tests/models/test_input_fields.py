"""What a model reads of a batch is what the rows of its tasks put there."""

import pytest

from avs_jax.data import clip, descriptions, expressions, labeled_clips, pairs
from avs_jax.models import align, classify, describe, inputs

CASES = {
    "avs, tpavi, sam2": (inputs.INPUTS, clip.FIELDS | expressions.FIELDS),
    "align": ({k: v for part in align.INPUTS.values() for k, v in part.items()}, pairs.FIELDS),
    "classify": (classify.INPUTS, pairs.FIELDS | labeled_clips.FIELDS),
    "describe": (describe.INPUTS, descriptions.FIELDS),
}


@pytest.mark.parametrize("read, fields", CASES.values(), ids=CASES)
def test_a_model_reads_the_axes_that_its_rows_have(read, fields):
    for name, pattern in read.items():
        assert pattern.replace("X", "B") == fields[name].axes, name
        assert fields[name].role == "input", name


def test_the_example_has_the_fields_and_types_of_a_batch():
    fields = clip.FIELDS | expressions.FIELDS
    for name, value in inputs.example_inputs((64, 96)).items():
        assert value.dtype == fields[name].dtype, name
        assert value.ndim == len(fields[name].axes.split()) and name in inputs.INPUTS

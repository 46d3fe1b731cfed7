"""Programs for any number of clips and frames: which models have one, and what others answer."""

import functools
import types

import jax
import numpy as np
import pytest
from jax import export

from avs_jax.inference import stablehlo
from avs_jax.runtime.step import init_variables
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from tests.test_configs import load


def a_predictor(name):
    """A recipe's task, with blank weights."""
    task = make_task(load(name, "tiny"))
    fields, sizes = task.rows.fields, {"B": 1, "T": task.rows.sizes.get("T", 1)}
    inputs = {
        key: jax.ShapeDtypeStruct((*x.shape, 1)[: len(fields[key].axes.split())], x.dtype)
        for key, x in stablehlo.input_shapes(task, **sizes).items()
    }
    shapes = jax.eval_shape(functools.partial(init_variables, task.model, seed=0), inputs)
    blank = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)
    return types.SimpleNamespace(task=task, variables=blank)


@pytest.mark.parametrize(
    "name",
    [
        "s4_tpavi_resnet50",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("s4_ama_sync", "s4_query_fusion", "s4_vct_hiera", "s4_sam2", "avss_sam2"),
                *("refer_cma", "refer_sam2", "align_s4", "align_clip", "qvh_custom"),
            )
        ),
    ],
)
def test_any_number_of_clips_and_frames(name):
    predictor = a_predictor(name)
    clips, frames = export.symbolic_shape("B, T")
    weights = jax.eval_shape(lambda: stablehlo.flat_weights(predictor))
    inputs = stablehlo.input_shapes(predictor.task, B=clips, T=frames)
    outputs = jax.eval_shape(stablehlo.make_program(predictor.task), weights, inputs)
    assert outputs and all(x.shape[:1] == (clips,) for x in outputs.values() if x.shape)


def test_a_model_made_for_a_number_of_frames_is_refused():
    wanted = "model of task 'classify' cannot be exported for any number"
    with pytest.raises(InputError, match=wanted):
        stablehlo.export_program(a_predictor("classify_timesformer"))

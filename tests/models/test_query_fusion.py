"""Sound in the queries: the fusions against their formulas, and their start without effect."""

import jax
import numpy as np
import pytest

from avs_jax.models import build_model
from avs_jax.models.decoders.vct_decoder import VCTDecoder
from avs_jax.models.fusion.clip_fusion import TOKENS, VECTORS
from avs_jax.models.fusion.query_fusion import KINDS, QueryFusion
from avs_jax.spec import InputError
from avs_jax.tasks import make_task
from configs import parts, s4_query_fusion
from tests import small

N, Q, D = 2, 3, 8


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in ((N, Q, D), (N, 6, 4, D))]


def fast(*names, kinds=KINDS):
    """Kinds as parameters; those that are not named are slow."""
    return [kind if kind in names else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


def make(kind, inputs):
    """(params, queries, audio) -> queries; parameters at the start, and without a zero."""
    module = QueryFusion(kind, num_heads=2)
    params = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    trained = jax.tree.map(lambda x: np.float32(x + rng.normal(0, 0.3, x.shape)), params)
    apply = jax.jit(lambda params, *given: module.apply({"params": params}, *given))
    return lambda *given: np.asarray(apply(*given)), params, trained


@pytest.mark.parametrize("kind", fast("film", "cross"))
def test_it_starts_without_effect_and_then_hears_the_sound(kind, inputs):
    queries, audio = inputs
    apply, untrained, params = make(kind, inputs)
    np.testing.assert_array_equal(apply(untrained, queries, audio), queries)
    found = apply(params, queries, audio)
    assert np.abs(found - queries).max() > 1e-2
    other = apply(params, queries, np.concatenate([-audio[:1], audio[1:]]))
    assert np.abs(other[0] - found[0]).max() > 1e-3
    np.testing.assert_array_equal(other[1], found[1])  # frames do not meet


@pytest.mark.parametrize("kind", fast("attention", kinds=VECTORS))
def test_vectors_of_each_query_by_loops(kind, inputs):
    apply, _, params = make(kind, inputs)
    found = apply(params, *inputs)
    queries, audio = (np.asarray(x, np.float64) for x in inputs)
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def linear(name, x):
        return x @ w[name]["kernel"] + w[name]["bias"]

    for n, q in np.ndindex(N, Q):
        v, a = queries[n, q], audio[n].mean((0, 1))
        if kind == "early":
            fused = np.maximum(linear("fusion", np.concatenate([v, a])), 0)
        elif kind == "film":
            gain, shift = np.split(linear("modulation", a), 2)
            fused = np.maximum((1 + gain) * v + shift, 0)
        else:
            share = np.array([0.5, 0.5])
            if kind == "attention":
                scores = np.exp([linear("attention", x)[0] for x in (v, a)])
                share = scores / scores.sum()
            fused = share[0] * v + share[1] * a
        want = v + fused @ w["out_proj"]["kernel"]
        np.testing.assert_allclose(found[n, q], want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_are_one_layer_over_queries_and_sound(kind, inputs):
    """The order of neither matters, and every single audio token does."""
    apply, _, params = make(kind, inputs)
    queries, audio = inputs
    found = apply(params, queries, audio)
    turned = apply(params, queries[:, ::-1], audio[:, ::-1, ::-1])
    np.testing.assert_allclose(turned[:, ::-1], found, atol=1e-5)
    audio[:, 5, 3] *= -2
    other = apply(params, queries, audio)
    assert np.abs(other - found).max() > 1e-4


def test_the_decoder_starts_from_the_changed_queries():
    """All changes in order, before the first prediction; traced only."""
    levels = [np.zeros((1, side, side, D), np.float32) for side in (1, 2, 2)]
    given = levels, np.zeros((1, 2, 2, D), np.float32), np.zeros((1, 6, 4, D), np.float32)
    decoder = VCTDecoder(
        num_classes=2, num_prototypes=0, num_queries=Q, num_layers=1, ffn_dim=8, num_heads=2
    )
    taken, made = [], []

    def change(queries):
        taken.append(queries)
        made.append(queries + 1)
        return made[-1]

    def run():
        _, steps = decoder.apply(variables, *given, updates=(change, change))
        assert taken[1] is made[0] and steps["decoder"]["init_output"] is made[1]
        return steps["decoder"]["init_output"]

    variables = jax.eval_shape(decoder.init, jax.random.key(0), *given)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    assert jax.eval_shape(run).shape == (1, Q, D) and len(made) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["film", "gated", "cross"])
def test_a_checkpoint_without_it_gives_the_same_masks(kind):
    """Bit for bit, until its projection is trained."""
    config = small.tiny_config("none")
    plain = small.tiny_config("none")
    config.model.fusion = parts.query_fusion()
    parts.shrink_fusion(config.model.fusion, parts.TINY_FUSIONS)
    config.model.fusion.kind = kind
    params = small.random_variables(config, (64, 64))["params"]
    params["query_fusion"]["out_proj"]["kernel"] *= 0
    inputs = make_task(config).inputs(small.train_batch(config))

    def masks(config, params):
        found = jax.jit(build_model(config.model).apply)({"params": params}, inputs)
        return np.asarray(found["pred_masks"]), np.asarray(found["pred_logits"])

    without = {name: value for name, value in params.items() if name != "query_fusion"}
    want, got = masks(plain, without), masks(config, params)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a, b)
    params["query_fusion"]["out_proj"]["kernel"] += 1
    assert np.any(masks(config, params)[0] != want[0])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("kind", "sum", r"model.fusion.kind = 'sum': expected one of \['early', .*'cross'\]$"),
        ("kind", "late_logit", "'cross'\\]; late_logit weighs class scores"),
        ("num_heads", 5, "model.fusion.num_heads = 5: expected a divisor of model.hidden_dim"),
    ],
)
def test_a_bad_value_names_the_choices(key, value, message):
    config = s4_query_fusion.get_config("tiny")
    config.model.fusion[key] = value
    with pytest.raises(InputError, match=message):
        build_model(config.model)

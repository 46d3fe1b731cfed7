"""AMA against the original, and its behavior on flat attention."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from avs_jax.convert.rules import apply_rules
from avs_jax.convert.tables import ama_rules
from avs_jax.models.fusion.ama import AMA, normalize_map
from avs_jax.models.rules import check_rules
from avs_jax.ops.sampling import resize_bilinear
from avs_jax.spec import InputError, frame_ids
from tests.golden.compare import shapes_of
from tests.golden.weights import avs_value


def flat(tree):
    """Path -> leaf."""
    return traverse_util.flatten_dict(tree, sep="/")


def frames(x):
    """[N, 1, h, w] to [N, h, w, 1]."""
    return np.moveaxis(np.asarray(x), 1, -1)


class GoldenAMA:
    def __init__(self, folder):
        self.arrays = dict(np.load(folder / "golden_ama.npz"))
        names = json.loads(str(self.arrays["meta_json"]))["names"]
        source = {
            name: avs_value(f"ama_module.{name}", shape)
            for name, shape in names.items()
            if name.split(".")[-1] not in ("num_batches_tracked", "temperature")
        }
        source["temperature"] = np.array([1.7], np.float32)
        self.audio, self.motion = self.arrays["in/audio"], frames(self.arrays["in/motion"])
        tree = jax.eval_shape(lambda: AMA().init(jax.random.key(0), self.audio, self.motion))
        shapes = {f"ama/{k}": v for k, v in shapes_of(tree["params"]).items()}
        shapes |= {f"batch_stats/ama/{k}": v for k, v in shapes_of(tree["batch_stats"]).items()}
        filled = apply_rules(source, ama_rules(""), shapes)
        self.variables = {"params": {}, "batch_stats": {}}
        for path, value in filled.items():
            collection = "batch_stats" if path.startswith("batch_stats/") else "params"
            module, *leaf = path.removeprefix("batch_stats/").removeprefix("ama/").split("/")
            if leaf:
                self.variables[collection].setdefault(module, {})[leaf[0]] = value
            else:
                self.variables[collection][module] = value


@pytest.fixture(scope="module")
def golden():
    from tests.conftest import GOLDEN

    return GoldenAMA(GOLDEN)


@pytest.fixture(scope="module")
def trained(golden):
    """Loss, map, new statistics and gradients of a step on the last three frames."""
    audio, motion = golden.audio[1:], golden.motion[1:]
    weight = frames(golden.arrays["train/loss_weight"])[..., 0]

    def loss(params, audio):
        variables = {"params": params, "batch_stats": golden.variables["batch_stats"]}
        (out, _), new = AMA().apply(variables, audio, motion, train=True, mutable=["batch_stats"])
        return jnp.sum(out * weight), (out, new["batch_stats"])

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return step(golden.variables["params"], audio)


@pytest.mark.parametrize("mode", ["mul", "div"])
def test_evaluation_agrees_with_the_original(golden, mode):
    model = AMA(temperature_mode=mode)
    weight, intermediates = jax.jit(model.apply)(golden.variables, golden.audio, golden.motion)
    expected = golden.arrays[f"eval/{mode}/map"][:, 0]
    np.testing.assert_allclose(weight, expected, atol=1e-4)
    attention = golden.arrays[f"eval/{mode}/attention"][:, :, 0]
    np.testing.assert_allclose(intermediates["attention"], attention, atol=1e-4 * attention.max())


def test_resizes_agree_with_the_original(golden):
    small = resize_bilinear(golden.motion, (24, 24))
    np.testing.assert_allclose(small, frames(golden.arrays["small"]), atol=1e-6)
    large = resize_bilinear(frames(golden.arrays["eval/mul/map"]), (96, 128))
    np.testing.assert_allclose(large, frames(golden.arrays["eval/up"]), atol=1e-6)


def test_training_forward_and_statistics(golden, trained):
    (loss, (weight, statistics)), _ = trained
    arrays = golden.arrays
    np.testing.assert_allclose(weight, arrays["train/map"][:, 0], atol=1e-4)
    np.testing.assert_allclose(loss, arrays["train/loss"], rtol=1e-4)
    for i in (1, 4):
        ours = statistics[f"flow_encoder_{i}"]
        np.testing.assert_allclose(ours["mean"], arrays[f"train/bn{i}_running_mean"], atol=1e-5)
        np.testing.assert_allclose(ours["var"], arrays[f"train/bn{i}_running_var"], atol=1e-5)


def test_training_gradients(golden, trained):
    _, (gradients, to_audio) = trained
    arrays = golden.arrays
    scale = np.abs(arrays["train/grad_audio"]).max()
    np.testing.assert_allclose(to_audio, arrays["train/grad_audio"], atol=1e-3 * scale)
    np.testing.assert_allclose(
        gradients["temperature"], arrays["train/grad_temperature"], rtol=1e-3
    )
    leaf = {"kernel": "weight", "scale": "weight", "bias": "bias", "temperature": ""}
    for path, gradient in flat(gradients).items():
        module, _, name = path.rpartition("/")
        parts = [*module.rsplit("_", 1)] if module[-1:].isdigit() else [module]
        theirs = ".".join(p for p in (*parts, leaf[name]) if p) if module else path
        expected = float(arrays[f"train/grad_norm/{theirs}"])
        if expected < 1e-3:  # biases before a BatchNorm: zero but for rounding
            assert np.linalg.norm(gradient) < 1e-2, path
        else:
            np.testing.assert_allclose(np.linalg.norm(gradient), expected, rtol=2e-3, err_msg=path)


def gradients_of(golden, audio, motion, dtype, **fields):
    """AMA's parameter gradients of a weighted sum of its map, in training."""
    cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)  # noqa: E731
    model = AMA(dtype=dtype, **fields)
    weight = np.random.default_rng(0).standard_normal((len(audio), 24, 24))

    def loss(params):
        variables = {"params": params, "batch_stats": cast(golden.variables["batch_stats"])}
        (out, _), _ = model.apply(
            variables, cast(audio), cast(motion), train=True, mutable=["batch_stats"]
        )
        return jnp.sum(out * cast(weight)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        cast(golden.variables["params"])
    )
    return np.asarray(out), flat(jax.tree.map(np.asarray, gradients))


def test_still_frames_give_no_map_and_no_gradient(golden):
    still = np.zeros_like(golden.motion[:2])
    weight, gradients = gradients_of(golden, golden.audio[:2], still, jnp.float32)
    assert not weight.any()
    for path, gradient in gradients.items():
        assert not gradient.any(), path


def test_a_still_frame_does_not_disturb_the_gradient_of_moving_ones(golden):
    """Frame 0 of the golden is still; float64 confirms float32 on the batch with it."""
    _, single = gradients_of(golden, golden.audio, golden.motion, jnp.float32)
    with jax.enable_x64(True):
        _, double = gradients_of(golden, golden.audio, golden.motion, jnp.float64)
    total = np.sqrt(sum(np.square(x).sum() for x in double.values()))
    assert total > 1
    for path in double:
        assert np.linalg.norm(single[path] - double[path]) < 1e-3 * total, path


def test_constant_extrema_only_change_the_gradient():
    attention = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 36))).reshape(2, 6, 6)

    def pull(grad_through_extrema):
        out, back = jax.vjp(
            lambda x: normalize_map(x, grad_through_extrema=grad_through_extrema), attention
        )
        return out, back(jnp.ones_like(out))[0]

    (out, through), (same, held) = pull(True), pull(False)
    np.testing.assert_array_equal(out, same)
    span = np.ptp(np.asarray(attention), axis=(1, 2))[:, None, None]
    np.testing.assert_allclose(held, np.broadcast_to(1 / span, (2, 6, 6)), rtol=1e-5)
    assert np.abs(through - held).max() > 1


def test_softmax_hw_is_one_half_where_nothing_moves():
    np.testing.assert_allclose(normalize_map(jnp.full((1, 4, 4), 1 / 16), "softmax_hw"), 0.5)


def test_padded_frames_do_not_enter_the_statistics(golden):
    def statistics(audio, motion, valid):
        _, new = AMA().apply(
            golden.variables, audio, motion, train=True, valid=valid, mutable=["batch_stats"]
        )
        return new["batch_stats"]

    valid = np.array([True, True, False, True])
    masked = statistics(golden.audio, golden.motion, valid)
    plain = statistics(golden.audio[valid], golden.motion[valid], None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), masked, plain)
    none = statistics(golden.audio, golden.motion, np.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, none, golden.variables["batch_stats"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature_mode": "times"}, "temperature_mode = 'times': expected one of"),
        ({"normalize": "max"}, "normalize = 'max': expected one of"),
        ({"embed_dim": 30, "num_heads": 4}, "a divisor of model.fusion.embed_dim = 30"),
        ({"map_dropout": 1.0}, "fusion.map_dropout = 1.0: expected a rate"),
    ],
)
def test_unknown_choices_are_errors(fields, message):
    with pytest.raises(InputError, match=message):
        check_rules(AMA.RULES, {"fusion": fields})


SMALL = {"embed_dim": 16, "num_heads": 2, "grid": 4}
RATES = {"attention_dropout": 0.4, "projection_dropout": 0.3, "map_dropout": 0.5}


@pytest.fixture(scope="module")
def small():
    """Variables, 40 audio features, 40 moving maps: of 10 clips of four frames."""
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((40, 8)).astype(np.float32)
    motion = rng.random((40, 4, 4, 1), dtype=np.float32)
    variables = jax.jit(AMA(**SMALL).init)(jax.random.key(0), audio, motion)
    return variables, audio, motion, frame_ids(np.tile(np.arange(4), (10, 1)))


def draw(small, rates, key=0, train=True, rows=slice(None), still=False):
    variables, audio, motion, ids = small
    motion = np.zeros_like(motion) if still else motion
    outputs, _ = AMA(**(SMALL | rates)).apply(
        variables,
        audio[rows],
        motion[rows],
        train=train,
        ids=ids[rows],
        rngs={"ama_dropout": jax.random.key(key)},
        mutable=["batch_stats"],
    )
    return np.asarray(outputs[0]), np.asarray(outputs[1]["attention"])


def test_dropped_attention_falls_back_to_no_evidence(small):
    _, plain = draw(small, {})
    _, dropped = draw(small, {"attention_dropout": 0.4})
    fallen = np.isclose(dropped, 1 / 16, atol=1e-7)
    assert 0.35 < fallen.mean() < 0.45
    grown = 1 / 16 + (plain - 1 / 16) / 0.6
    np.testing.assert_allclose(dropped[~fallen], grown[~fallen], atol=1e-7)


def test_projection_dropout_flattens_the_attention_of_a_head(small):
    """With one channel per head: a head whose channel is dropped sees every cell alike."""
    _, attention = draw(small, {"num_heads": 16, "projection_dropout": 0.3})
    flat_heads = np.ptp(attention, axis=-1) < 1e-7  # [N, G]
    assert 0.25 < flat_heads.mean() < 0.35
    assert len({tuple(row) for row in flat_heads}) > 30  # drawn per frame


def test_map_dropout_drops_whole_clips(small):
    plain, _ = draw(small, {})
    weight, attention = draw(small, {"map_dropout": 0.5})
    gone = (weight == 0).all((1, 2)).reshape(10, 4)
    assert (gone == gone[:, :1]).all() and 2 <= gone[:, 0].sum() <= 8
    np.testing.assert_array_equal(weight[~gone.reshape(-1)], plain[~gone.reshape(-1)])


def test_dropouts_leave_still_frames_without_a_map(small):
    weight, _ = draw(small, RATES, still=True)
    assert np.abs(weight).max() < 1e-5


def test_dropouts_depend_on_key_and_frame_and_only_act_in_training(small):
    np.testing.assert_array_equal(draw(small, RATES)[0], draw(small, RATES)[0])
    assert (draw(small, RATES)[0] != draw(small, RATES, key=1)[0]).any()
    np.testing.assert_array_equal(
        draw(small, RATES, train=False)[0], draw(small, {}, train=False)[0]
    )
    # A frame draws the same whatever else is in the batch; attention shows which entries fell.
    some = slice(2, 30, 3)
    rate = {"attention_dropout": 0.4}
    whole, part = draw(small, rate)[1][some], draw(small, rate, rows=some)[1]
    assert (np.isclose(whole, 1 / 16, atol=1e-7) == np.isclose(part, 1 / 16, atol=1e-7)).all()


# ---- where the map acts ----


@pytest.mark.parametrize("at", ["features", "both"])
def test_the_map_is_added_to_the_mask_features_and_starts_without_effect(golden, at):
    features = np.random.default_rng(0).standard_normal((4, 7, 5, 6)).astype(np.float32)
    inputs = golden.audio, golden.motion, features
    model = AMA(at=at)
    fresh = model.init(jax.random.key(0), *inputs)["params"]
    params = golden.variables["params"] | {"feature_proj": fresh["feature_proj"]}
    variables = golden.variables | {"params": params}
    weight, found = model.apply(variables, *inputs)
    np.testing.assert_array_equal(found["mask_features"], features)
    reference, plain = AMA().apply(golden.variables, *inputs[:2])
    assert "mask_features" not in plain
    np.testing.assert_array_equal(weight, reference)

    kernel = np.random.default_rng(1).standard_normal((1, 6)).astype(np.float32)
    params["feature_proj"]["kernel"] = kernel

    def total(params):
        changed = model.apply(variables | {"params": params}, *inputs)[1]["mask_features"]
        return jnp.sum(changed * features), changed

    (_, changed), grads = jax.value_and_grad(total, has_aux=True)(params)
    upsampled = np.asarray(resize_bilinear(weight[..., None], (7, 5)))
    np.testing.assert_allclose(changed, features + upsampled * kernel, atol=1e-5)
    want = np.einsum("nhwd,nhw->d", features, upsampled[..., 0])
    np.testing.assert_allclose(grads["feature_proj"]["kernel"][0], want, rtol=1e-4, atol=1e-4)
    assert np.any(grads["q_proj"]["kernel"])


def test_an_unknown_place_is_named():
    with pytest.raises(InputError, match="fusion.at = 'masks': expected one of"):
        check_rules(AMA.RULES, {"fusion": {"name": "ama", "at": "masks", "embed_dim": 256}})

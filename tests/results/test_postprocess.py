"""Class scores from queries, against the same arithmetic written with loops in numpy.

The measured maps of the originals (`out/sem_seg*`) need the whole model's masks, which are stored
as samples only; they are compared where the whole model runs. What the measured file does hold in
full, class logits, is used here so that the values are of the real size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from avs_jax.results import postprocess


def resize(x, size):
    """Bilinear, half-pixel centers, clamped; [H, W, ...] with plain loops over output pixels."""
    out = np.zeros((*size, *x.shape[2:]))
    for i in range(size[0]):
        for j in range(size[1]):
            y, z = [
                min(max((k + 0.5) * n / m - 0.5, 0), n - 1)
                for k, n, m in zip((i, j), x.shape, size, strict=False)
            ]
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1)
            a, b = y - y0, z - z0
            top = (1 - b) * x[y0, z0] + b * x[y0, z1]
            out[i, j] = (1 - a) * top + a * ((1 - b) * x[y1, z0] + b * x[y1, z1])
    return out


def sem_seg_directly(logits, masks, padded, image, score):
    exp = np.exp(logits.astype(np.float64))
    classes = exp / exp.sum(-1, keepdims=True)
    result = []
    for c, m in zip(classes, masks, strict=True):
        full = 1 / (1 + np.exp(-resize(m.astype(np.float64), padded)))
        combined = sum(full[..., q, None] * c[q, :-1] for q in range(m.shape[-1]))
        result.append(resize(combined[: image[0], : image[1]], score))
    return np.stack(result)


@pytest.mark.parametrize("image", [(16, 24), (13, 21)])
def test_sem_seg_is_its_definition(golden_dir, image):
    """Also with padding below and to the right, and with a square result from an oblong image."""
    with np.load(golden_dir / "golden_tiny_s4.npz") as golden:
        logits = golden["pred/9/logits"][:3]
    rng = np.random.default_rng(0)
    masks = rng.normal(scale=8, size=(3, 4, 6, logits.shape[1])).astype(np.float32)
    want = sem_seg_directly(logits, masks, (16, 24), image, (9, 9))
    got = jax.jit(postprocess.sem_seg, static_argnums=(2, 3, 4))(logits, masks, (16, 24), image, 9)
    assert got.shape == (3, 9, 9, 2) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_any_sizes_and_classes():
    """The padded size need not be a multiple of the masks', nor the score size square."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1, 5, 4)).astype(np.float32)
    masks = rng.normal(size=(1, 3, 3, 5)).astype(np.float32)
    got = postprocess.sem_seg(logits, masks, (20, 18), (20, 17), (7, 5))
    want = sem_seg_directly(logits, masks, (20, 18), (20, 17), (7, 5))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_invalid_frames_score_zero_and_others_are_untouched():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 5, 3)).astype(np.float32)
    masks = rng.normal(size=(3, 4, 4, 5)).astype(np.float32)
    plain = postprocess.sem_seg(logits, masks, (16, 16), (16, 16), 8)
    masked = postprocess.sem_seg(
        logits, masks, (16, 16), (16, 16), 8, valid=jnp.array([True, False, True])
    )
    np.testing.assert_array_equal(masked[1], 0)
    np.testing.assert_array_equal(masked[::2], plain[::2])


def test_object_probability_is_the_softmax():
    scores = np.random.default_rng(3).uniform(0, 60, size=(4, 5, 2)).astype(np.float32)
    scores[0, 0] = 7.25  # a tie
    got = postprocess.object_probability(jnp.asarray(scores))
    np.testing.assert_allclose(got, jax.nn.softmax(scores, axis=-1)[..., 1], atol=1e-6)
    assert got[0, 0] == 0.5
    assert got.min() >= 0 and got.max() <= 1


def test_errors():
    logits, masks = jnp.zeros((1, 5, 3)), jnp.zeros((1, 4, 4, 5))
    with pytest.raises(ValueError, match="exceeds the padded input"):
        postprocess.sem_seg(logits, masks, (16, 16), (17, 16), 8)
    with pytest.raises(ValueError, match="pred_logits"):
        postprocess.sem_seg(logits[:, :4], masks, (16, 16), (16, 16), 8)
    with pytest.raises(ValueError, match="71 classes"):
        postprocess.object_probability(jnp.zeros((2, 71)))

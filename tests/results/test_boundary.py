"""Contours and bands against distances and structuring elements, random and degenerate masks."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import disk

from avs_jax.results import boundary

SHAPE = (61, 47)


def blobs(seed, share=0.4):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 3)
    return noise > np.quantile(noise, 1 - share)


def masks():
    found = {f"blobs{seed}": blobs(seed) for seed in range(6)}
    found["specks"] = np.random.default_rng(9).random(SHAPE) < 0.02
    found["empty"], found["full"] = np.zeros(SHAPE, bool), np.ones(SHAPE, bool)
    for name, place in {
        "corner": np.s_[:9, :7],
        "far_corner": np.s_[-1:, -1:],
        "edge": np.s_[20:40, :1],
        "far_edge": np.s_[-4:, 10:30],
        "hole": np.s_[5:7, 5:7],
    }.items():
        found[name] = np.zeros(SHAPE, bool)
        found[name][place] = True
    found["hole"] = ~found["hole"]
    return found


MASKS = masks()


def contour_by_neighbors(mask):
    """Each pixel against its three neighbors, those outside the image left out."""
    result = np.zeros_like(mask)
    height, width = mask.shape
    for y, x in np.ndindex(mask.shape):
        for dy, dx in ((0, 1), (1, 0), (1, 1)):
            if y + dy < height and x + dx < width:
                result[y, x] |= mask[y, x] != mask[y + dy, x + dx]
    return result


@pytest.mark.parametrize("name", MASKS)
def test_contour(name):
    np.testing.assert_array_equal(boundary.contour(MASKS[name]), contour_by_neighbors(MASKS[name]))


@pytest.mark.parametrize("radius", [1, 3, 4])
@pytest.mark.parametrize("name", MASKS)
def test_dilation(name, radius):
    want = ndimage.binary_dilation(MASKS[name], structure=disk(radius))
    np.testing.assert_array_equal(boundary.dilate(MASKS[name], radius), want)
    if MASKS[name].any():  # the disk is a distance
        distance = ndimage.distance_transform_edt(~MASKS[name])
        np.testing.assert_array_equal(want, distance <= radius)


def band_by_distance(mask, width):
    """Chessboard distance to background, which everything outside the image is."""
    steps = ndimage.distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    return mask & (steps <= width)


@pytest.mark.parametrize("width", [1, 3, 6])
@pytest.mark.parametrize("name", MASKS)
def test_band(name, width):
    np.testing.assert_array_equal(
        boundary.band(MASKS[name], width), band_by_distance(MASKS[name], width)
    )


def test_counts_of_all_pairs():
    known = np.ones(SHAPE, bool)
    radius, width = boundary.contour_tolerance(SHAPE), boundary.band_width(SHAPE)
    assert (radius, width) == (1, 2)  # of a diagonal of 77.01 px: 0.62 up, 1.54 to the nearest
    for pred in MASKS.values():
        for gt in MASKS.values():
            got = boundary.count_boundary(pred, gt, known)
            lines = [contour_by_neighbors(m) for m in (gt, pred)]
            near = [ndimage.binary_dilation(line, disk(radius)) for line in lines]
            bands = [band_by_distance(mask, width) for mask in (gt, pred)]
            want = {
                "contour_gt": lines[0].sum(),
                "contour_pred": lines[1].sum(),
                "contour_gt_matched": (lines[0] & near[1]).sum(),
                "contour_pred_matched": (lines[1] & near[0]).sum(),
                "band_inter": (bands[0] & bands[1]).sum(),
                "band_union": (bands[0] | bands[1]).sum(),
            }
            assert got == want


def test_distances_at_the_score_size():
    assert boundary.contour_tolerance((224, 224)) == 3  # 0.008 * 316.78 = 2.53, up
    assert boundary.band_width((224, 224)) == 6  # 0.02 * 316.78 = 6.34, to the nearest
    assert boundary.band_width((8, 8)) == 1


def test_unknown_pixels_are_background_on_both_sides():
    pred, gt = MASKS["blobs0"], MASKS["blobs1"]
    known = np.ones(SHAPE, bool)
    known[:, 30:] = False
    got = boundary.count_boundary(pred, gt, known)
    assert got == boundary.count_boundary(pred & known, gt | ~known, known)
    assert got["contour_gt"] < boundary.count_boundary(pred, gt, known | True)["contour_gt"]

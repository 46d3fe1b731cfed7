"""How well the outlines of two binary masks agree, as counts of pixels.

Contours (the f_boundary of DAVIS): a pixel is on the contour where it differs from its right, its
lower or its lower right neighbour; the border of the image is no contour. A contour pixel is
matched where the other mask's contour comes within ceil(0.008 * diagonal) px (Euclidean).

Bands (Boundary IoU): a mask's pixels from which a background pixel is at most
max(1, round(0.02 * diagonal)) px away, counting diagonal steps as one; outside the image all is
background.

At 224 x 224 the two distances are 3 and 6 px.

Sources: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation" (CVPR 2016), with its tool davis2017-evaluation; Cheng et al., "Boundary IoU" (CVPR
2021), with its tool boundary-iou-api.
"""

import math

import numpy as np

CONTOUR_TOLERANCE = 0.008  # of the diagonal
BAND_WIDTH = 0.02  # of the diagonal
COUNTS = (
    "contour_gt",
    "contour_pred",
    "contour_gt_matched",
    "contour_pred_matched",
    "band_inter",
    "band_union",
)


def contour_tolerance(shape: tuple[int, int]) -> int:
    """Radius in px within which contours of a mask [H, W] match."""
    return math.ceil(CONTOUR_TOLERANCE * math.hypot(*shape))


def band_width(shape: tuple[int, int]) -> int:
    """Width in px of the band of a mask [H, W]."""
    return max(1, round(BAND_WIDTH * math.hypot(*shape)))


def count_boundary(pred: np.ndarray, gt: np.ndarray, known: np.ndarray) -> dict[str, np.ndarray]:
    """Contour pixels, those matched, and the bands' intersection and union.

    Args:
      pred, gt: bool [H, W].
      known: bool [H, W]; the other pixels are background in both masks and in no count.

    Returns:
      int64 scalars by the names in COUNTS.
    """
    pred, gt = pred & known, gt & known
    contours = {"gt": contour(gt) & known, "pred": contour(pred) & known}
    radius, width = contour_tolerance(gt.shape), band_width(gt.shape)
    bands = band(gt, width), band(pred, width)
    near = {name: dilate(outline, radius) for name, outline in contours.items()}
    return {
        "contour_gt": _count(contours["gt"]),
        "contour_pred": _count(contours["pred"]),
        "contour_gt_matched": _count(contours["gt"] & near["pred"]),
        "contour_pred_matched": _count(contours["pred"] & near["gt"]),
        "band_inter": _count(bands[0] & bands[1]),
        "band_union": _count(bands[0] | bands[1]),
    }


def contour(mask: np.ndarray) -> np.ndarray:
    """Contour pixels of a mask, bool [H, W]."""
    # The repeated last row and column make neighbours outside the image equal.
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """All pixels within `radius` px (Euclidean) of the mask, bool [H, W]."""
    if not mask.any():
        return mask
    height, width = mask.shape
    padded = np.pad(mask, radius)
    result = np.zeros_like(mask)
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius**2 - dy**2)
        rows = padded[radius + dy : radius + dy + height]
        for dx in range(-reach, reach + 1):
            result |= rows[:, radius + dx : radius + dx + width]
    return result


def band(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of the mask at most `width` steps, diagonal ones too, from background; bool [H, W]."""
    if not mask.any():
        return mask
    inside = np.pad(mask, width)
    for axis in (0, 1):  # a pixel is inside where the whole window around it is
        sums = np.cumsum(inside, axis=axis, dtype=np.int32)
        sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis)
        count = sums.shape[axis]
        window = 2 * width + 1
        total = sums.take(range(window, count), axis) - sums.take(range(count - window), axis)
        inside = total == window
    return mask & ~inside


def _count(mask: np.ndarray) -> np.int64:
    return np.int64(np.count_nonzero(mask))

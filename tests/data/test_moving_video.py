"""A video whose every pixel's motion is known, through decoder, flow command and pipeline.

A textured disk crosses a textured background, eight pictures a second; the camera stands still, or
pans, zooms and turns. No weights are needed: the vectors are the truth, or a classical estimate
(iterative Lucas-Kanade).
"""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, map_coordinates
from skimage.registration import optical_flow_ilk

from avs_jax import flow
from avs_jax.data import transforms
from avs_jax.data.clip import ClipRows
from avs_jax.data.flow_files import list_clips
from avs_jax.data.video import read_windows
from avs_jax.generate.video_writer import write_video
from avs_jax.inference import dataset_flow
from avs_jax.spec import FRAME_OFFSET_SECONDS
from tests.clip_records import make_config

HEIGHT, WIDTH, FPS, SECONDS = 96, 128, 8, 5
STEP = np.array([2, 1])  # px (u, v) of the disk from picture to picture
START, RADIUS = np.array([22, 22]), 15  # (x, y) of its middle in picture 0
SIDE = 80  # px of the pipeline's images
NO_FLOW = np.zeros((0, HEIGHT, WIDTH, 2), np.float16)
SHOWN = [int((t + FRAME_OFFSET_SECONDS) * FPS) for t in range(SECONDS)]  # pictures of the frames

# Where a background point of a picture, (x, y, 1), lies in the next.
STILL = np.eye(3)
MIDDLE = np.array([[1, 0, WIDTH / 2], [0, 1, HEIGHT / 2], [0, 0, 1]])
TURN = np.array([[1.006, -0.008, -0.9], [0.008, 1.006, 0.5], [0, 0, 1]])
MOVING = MIDDLE @ TURN @ np.linalg.inv(MIDDLE)
CAMERAS = {"still": STILL, "moving": MOVING}


def prepare_clip(record, config, rng=None):
    return ClipRows(config).prepare(record, rng)


def grid(height=HEIGHT, width=WIDTH):
    """(x, y) of every pixel, float [H, W, 2]."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(float)


def moved(points, matrix):
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def disk(picture):
    """Pixels that show the disk."""
    return np.hypot(*np.moveaxis(grid() - (START + picture * STEP), -1, 0)) <= RADIUS


def true_flow(camera, picture, steps):
    """(u, v) in px of every pixel from a picture to that `steps` later, float [H, W, 2]."""
    background = moved(grid(), np.linalg.matrix_power(camera, steps)) - grid()
    return np.where(disk(picture)[..., None], steps * STEP, background)


def texture(seed, side=320):
    """Gray with a tint, for a video keeps colors at half the resolution."""
    rng = np.random.default_rng(seed)
    gray, tint = gaussian_filter(rng.normal(size=(2, side, side, 3)), (0, 2.5, 2.5, 0))
    values = 127 + 40 * gray[..., :1] / gray.std() + 8 * tint / tint.std()
    return np.clip(values, 0, 255).astype(np.float32)


def read(picture, points):
    """Values [H, W, 3] of a picture at (x, y)."""
    places = points[..., 1], points[..., 0]
    return np.stack(
        [map_coordinates(picture[..., c], places, order=1, mode="nearest") for c in range(3)],
        axis=-1,
    )


def draw_pictures(camera):
    world, skin = texture(0), texture(1)
    for picture in range(FPS * SECONDS):
        seen = moved(grid(), np.linalg.matrix_power(np.linalg.inv(camera), picture)) + 96
        background = read(world, seen)
        front = read(skin, grid() - picture * STEP + 96)
        yield np.where(disk(picture)[..., None], front, background).round().astype(np.uint8)


@pytest.fixture(scope="module", params=CAMERAS)
def scene(request, tmp_path_factory):
    """An S4 folder of one clip: its mp4, and its frames as the decoder gives them."""
    root, camera = tmp_path_factory.mktemp(request.param), CAMERAS[request.param]
    clip = "{}/test/thing/clip"
    video, frames = (root / f"s4_data/{clip.format(x)}" for x in ("raw_videos", "visual_frames"))
    video = video.with_suffix(".mp4")
    for folder in (video.parent, frames):
        folder.mkdir(parents=True)
    pictures = np.stack(list(draw_pictures(camera)))
    write_video(video, pictures, FPS, np.zeros(SECONDS * 16_000, np.int16), quality=10)
    decoded = next(read_windows(video, SECONDS))[0]
    for t, frame in enumerate(decoded):
        assert np.abs(frame.astype(int) - pictures[SHOWN[t]]).mean() < 4  # what the codec loses
        Image.fromarray(frame).save(frames / f"clip_{t + 1}.png")
    with open(root / "s4_meta_data.csv", "w", newline="") as file:
        rows = [("name", "category", "split"), ("clip", "thing", "test")]
        csv.writer(file).writerows(rows)
    return SimpleNamespace(root=root, camera=camera, frames=decoded, name=request.param)


def through_the_pipeline(frames, stored, seed, **motion_keys):
    """(images, motion, augmentation) of a training clip; seed None: as in evaluation."""
    config = make_config(train_frames="all", image_size=SIDE, pre_masks=False)
    config.data.augment.update(min_sizes=(72, 96, 110, 130), max_size=300, color=False)
    config.data.motion.update(motion_keys)
    record = {
        "clip_id": "clip", "category": "thing", "category_label": 1, "frames": frames,
        "pre_masks": (), "masks": (), "mask_index": (), "flow": stored, "sample_rate": 16_000,
        "waveform": np.zeros(SECONDS * 16_000, np.int16),
    }  # fmt: skip
    if seed is None:
        clip, augmentation = prepare_clip(record, config), None
    else:
        record |= {"masks": [np.zeros((HEIGHT, WIDTH), np.uint8)], "mask_index": [0]}
        clip = prepare_clip(record, config, np.random.default_rng(seed))
        augmentation = transforms.draw_augmentation(
            np.random.default_rng(seed), (HEIGHT, WIDTH), SECONDS, SIDE, **config.data.augment
        )
    return clip["images"].astype(np.float32), clip["motion"], augmentation


def sources(augmentation):
    """Where the pixels of an augmented image come from, (x, y) [h, w, 2], and px per px there."""
    if augmentation is None:
        (top, left), (height, width), resized = (0, 0), (SIDE, SIDE), (SIDE, SIDE)
    else:
        (top, left), (height, width) = augmentation.crop_origin, augmentation.crop_size
        resized = augmentation.resized
    points = grid(height, width)
    if augmentation is not None and augmentation.flip:
        points = points[:, ::-1]
    scale = np.array([resized[1] / WIDTH, resized[0] / HEIGHT])
    return (points + (left, top) + 0.5) / scale - 0.5, scale


def seen_in(values, augmentation):
    """Values [H, W, ...] of a frame, looked up where the augmented image's pixels come from."""
    points, _ = sources(augmentation)
    near = np.clip(points.round().astype(int), 0, (WIDTH - 1, HEIGHT - 1))
    return values[near[..., 1], near[..., 0]]


def expected_flow(vectors, augmentation):
    """True vectors [h, w, 2] of an augmented image, in its px."""
    is_flipped = augmentation is not None and augmentation.flip
    _, scale = sources(augmentation)
    return seen_in(vectors, augmentation) * scale * ((-1, 1) if is_flipped else (1, 1))


def clear_of_the_outline(picture, margin=4):
    """Pixels that a resize does not mix with those across the disk's outline."""
    shape = disk(picture)
    return binary_erosion(shape, iterations=margin) | ~binary_dilation(shape, iterations=margin)


# ---- difference of frames ----


@pytest.mark.parametrize("source", ["frames", "video"])
def test_difference_lights_up_where_something_moves(scene, source, tmp_path):
    flags = ["--dataset=s4", f"--root={scene.root}", f"--output={tmp_path}", "--model=difference"]
    assert flow.main([*flags, f"--source={source}"]) == 0
    apart = 1 if source == "video" else FPS
    for t, picture in enumerate(SHOWN):
        stored = np.load(tmp_path / f"s4/test/thing/clip/flow_{t:04d}.npy").astype(np.float32)
        assert stored.shape == (HEIGHT, WIDTH)
        if source == "frames" and t == 0:
            assert not stored.any()
            continue
        changed = disk(picture) | disk(picture - apart)
        far = ~binary_dilation(changed, iterations=6)
        assert stored.max() == 1 and stored[changed].mean() > 0.1
        if scene.name == "still":
            assert stored[far].mean() < 0.01 * stored[changed].mean()
            assert changed[np.unravel_index(stored.argmax(), stored.shape)]
        else:  # everything moves
            assert stored[far].mean() > 0.25 * stored[changed].mean()


@pytest.mark.parametrize("seed", range(4))
def test_difference_moves_with_the_images(scene, seed):
    """Where the augmented map is bright, the augmented images differ; elsewhere they do not."""
    images, motion, augmentation = through_the_pipeline(scene.frames, NO_FLOW, seed)
    height, width = augmentation.crop_size
    assert not motion[:, height:].any() and not motion[:, :, width:].any()
    found = motion[1:, :height, :width, 0]
    change = np.abs(np.diff(images, axis=0)).mean(axis=-1)[:, :height, :width]
    mirrored = change[:, :, ::-1]
    assert np.corrcoef(change.ravel(), found.ravel())[0, 1] > 0.97
    assert np.corrcoef(mirrored.ravel(), found.ravel())[0, 1] < 0.4


# ---- true vectors ----


def true_flow_of_the_frames(scene):
    """float16 [T, H, W, 2], from frame t - 1 to frame t, as flow files store it."""
    vectors = [np.zeros((HEIGHT, WIDTH, 2))]
    vectors += [true_flow(scene.camera, SHOWN[t - 1], FPS) for t in range(1, SECONDS)]
    return np.stack(vectors).astype(np.float16)


def length(vectors):
    return np.hypot(vectors[..., 0], vectors[..., 1])


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_vectors_lead_from_each_augmented_frame_to_the_next(scene, seed):
    """Frame t, read where the vectors of map t lead, is frame t - 1; by wrong vectors it is not."""
    stored = true_flow_of_the_frames(scene)
    images, maps, augmentation = through_the_pipeline(
        scene.frames, stored, seed, map="uv", scale=1.0
    )
    points, _ = sources(augmentation)
    height, width = points.shape[:2]
    for t in range(1, SECONDS):
        vectors = maps[t, :height, :width].astype(float)
        clear = seen_in(clear_of_the_outline(SHOWN[t - 1]), augmentation)
        error = length(vectors - expected_flow(stored[t].astype(float), augmentation))
        assert error[clear].mean() < 0.06 and error[clear].max() < 0.15

        aim = grid(height, width) + vectors
        inside = ((aim >= 0) & (aim <= (width - 1, height - 1))).all(axis=-1)
        was, covered = (seen_in(disk(SHOWN[k]), augmentation) for k in (t - 1, t))
        hidden = read(np.repeat(covered[..., None], 3, 2).astype(float), aim)[..., 0] > 0
        visible = inside & clear & (was | ~hidden)  # the disk hides what it moves to
        assert visible.mean() > 0.3

        def misfit(vectors, where, t=t):
            found = read(images[t, :height, :width], grid(height, width) + vectors)
            return np.abs(found - images[t - 1, :height, :width])[where].mean()

        assert misfit(vectors, visible) < 3
        moving = visible & (was if scene.name == "still" else True)
        for factors in ((0, 0), (-1, -1), (-1, 1), (1, -1), (1.5, 1.5)):
            if moving.sum() > 50:
                assert misfit(vectors * factors, moving) > 5 * misfit(vectors, moving)


def test_draws_flip_scale_and_cut(scene):
    """The seeds above hold what they are there for."""
    draws = [through_the_pipeline(scene.frames, NO_FLOW, seed)[2] for seed in range(6)]
    assert {draw.flip for draw in draws} == {False, True}
    assert len({draw.resized for draw in draws}) > 2 and len({d.crop_origin for d in draws}) > 3


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_camera_comes_off(scene, seed):
    """What is left is the disk's motion against the background, and nothing elsewhere."""
    stored = true_flow_of_the_frames(scene)
    _, maps, augmentation = through_the_pipeline(
        scene.frames, stored, seed, map="uv", scale=1.0, compensate_camera=True
    )
    height, width = sources(augmentation)[0].shape[:2]
    camera = moved(grid(), np.linalg.matrix_power(scene.camera, FPS)) - grid()
    for t in range(1, SECONDS):
        expected = expected_flow(stored[t].astype(float) - camera, augmentation)
        clear = seen_in(clear_of_the_outline(SHOWN[t - 1]), augmentation)
        error = length(maps[t, :height, :width] - expected)
        assert error[clear].max() < 0.2


# ---- estimated vectors ----


def lucas_kanade(first, second):
    """A classical estimate, float32 [N, H, W, 2]."""
    gray = [pictures.mean(axis=-1) / 255 for pictures in (first, second)]
    found = [optical_flow_ilk(*pair, radius=6) for pair in zip(*gray, strict=True)]
    return np.stack([np.stack([u, v], axis=-1) for v, u in found]).astype(np.float32)


@pytest.mark.parametrize("side", [None, 88])
def test_estimates_within_the_video_are_true(scene, side, tmp_path):
    """From mp4 to flow file to augmented map: px per second, also where pictures are squashed."""
    clips = list_clips("s4", scene.root)
    made = dataset_flow.make_flow(
        clips, tmp_path, "video", lucas_kanade, True, 5, lambda line: None, side=side
    )
    assert made.written == SECONDS and not made.failed
    stored = np.stack([np.load(path) for path in sorted(tmp_path.rglob("flow_*.npy"))])
    truth = [true_flow(scene.camera, picture - 1, 1) * FPS for picture in SHOWN]
    for seed in (None, 1, 2):
        _, maps, augmentation = through_the_pipeline(
            scene.frames, stored, seed, map="uv", scale=1.0
        )
        height, width = sources(augmentation)[0].shape[:2]
        expected = np.stack([expected_flow(vectors, augmentation) for vectors in truth])
        error = length(maps[:, :height, :width] - expected)
        clear, front = (
            np.stack([seen_in(shape(picture - 1), augmentation) for picture in SHOWN])
            for shape in (clear_of_the_outline, disk)
        )
        fast = length(expected)[front].mean()
        assert front.sum() > 200 and fast > 9
        assert np.median(error[clear]) < 0.05 * fast
        assert np.median(error[clear & front]) < 0.2 * fast

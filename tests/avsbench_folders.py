"""What the tests of the dataset builders share: a build, what it wrote, and VCT's folders."""

import pathlib

import tensorflow_datasets as tfds
from PIL import Image

from avs_jax.programs import build_dataset


def build(dataset, manual_dir, data_dir, *flags) -> int:
    """scripts/build_dataset.py with these flags; dataset may name a layout too: name/layout."""
    where = [f"--manual_dir={manual_dir}", f"--data_dir={data_dir}"]
    return build_dataset.main([f"--dataset={dataset}", *where, *flags])


def open_built(dataset, data_dir, layout):
    """The builder of what `build` has written."""
    return tfds.builder_from_directory(f"{data_dir}/{dataset}/{layout}/1.0.0")


def add_vct384(data: pathlib.Path) -> None:
    """Makes {data}_384 of AVSBench's own layout in {data}: frames of 48 px stand for 384 px, and
    masks are as small in train and of 224 px elsewhere."""
    large = data.with_name(f"{data.name}_384")

    def save(path, folder, inner, side, resample):
        target = large / folder / inner
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((side, side), resample).save(target)

    for path in data.glob("visual_frames/**/*.png"):
        inner = path.relative_to(data / "visual_frames")
        inner = inner.with_name(inner.name.replace(".mp4", ""))  # in MS3's names
        save(path, "visual_frames_384", inner, 48, Image.Resampling.BICUBIC)
    for path in data.glob("gt_masks/**/*.png"):
        inner = path.relative_to(data / "gt_masks")
        is_train = inner.parts[0] == "train"
        folder, side = ("gt_masks_384", 48) if is_train else ("gt_masks_224", 224)
        save(path, folder, inner, side, Image.Resampling.NEAREST)

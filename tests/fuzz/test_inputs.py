"""Sounds, images, videos, lists and arrays under random damage."""

import csv
import io
import json
import pathlib
import struct
import tempfile
import wave
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from avs_jax.array_files import read_npz
from avs_jax.controls.false_sounds import load_manifest, manifest_digest
from avs_jax.data.audio import log_mel
from avs_jax.data.avsbench_csv import read_rows
from avs_jax.data.avsbench_folders import AVSS, MS3, S4
from avs_jax.data.decode import decode_labels, decode_rgb
from avs_jax.data.flow_files import is_whole, read_array
from avs_jax.data.input_files import read_image, read_wav
from avs_jax.data.video import read_pairs, read_windows
from avs_jax.results.gate_log import read_gate_log
from avs_jax.results.table import Table
from avs_jax.results.windows import read_submission
from tests import video_files
from tests.fuzz.runner import run_mutations
from tfds_builders import moments
from tfds_builders.moment_annotations import read_annotations

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(7)
JSON = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b'""',
    b"1e999",
    b"[" * 3000,
    b'"qid"',
    b"\xe9",
]
NPY = [b"'descr'", b"'<f4'", b"'|O'", b"(", b")", b"True", b"'shape': (", b"1, ", b"\n"]
BOXES = [b"moov", b"trak", b"mdat", b"stts", b"stsz", b"avc1", b"mp4a", b"tkhd", b"elst", b"dref"]
TRUTH = [
    {"qid": str(i), "vid": "v", "query": "a dog", "duration": 10.0,
     "windows": np.zeros((1, 2)), "ratings": np.zeros((0, 1), np.float32)}
    for i in (1, 2)
]  # fmt: skip


# ---- readers ----


def read_sound(path: pathlib.Path) -> None:
    """A WAV file whose header is a file of its own, so that every second mutation is in it."""
    whole = path.with_name("whole.wav")
    whole.write_bytes(b"".join(part.read_bytes() for part in sorted(path.iterdir())))
    log_mel(*read_wav(whole), 1)


def read_frame(path: pathlib.Path) -> None:
    data, image = read_image(path)
    decode_rgb(data)
    for num_classes in (2, 71) if image.mode != "RGB" else (2,):
        decode_labels(data, num_classes)


def read_chunks(path: pathlib.Path) -> None:
    """A PNG whose chunks are files, so that checksums hide no damage."""
    whole = path.with_name("whole.png")
    with whole.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for part in sorted(path.iterdir()):
            body = part.name[1:5].encode() + part.read_bytes()
            length, checksum = struct.pack(">I", len(body) - 4), struct.pack(">I", zlib.crc32(body))
            file.write(length + body + checksum)
    read_frame(whole)


def read_video(path: pathlib.Path) -> None:
    for _ in read_windows(path, 2):
        pass
    for _ in read_pairs(path):
        pass


def read_s4(path: pathlib.Path) -> None:
    read_rows(S4, path.parent)


def read_ms3(path: pathlib.Path) -> None:
    read_rows(MS3, path.parent)


def read_avss(path: pathlib.Path) -> None:
    read_rows(AVSS, path.parent)


def read_flow(path: pathlib.Path) -> None:
    whole = _joined(path)
    is_whole(whole, (6, 8, 2))
    read_array(whole)


def read_features(path: pathlib.Path) -> None:
    moments.read_array(moments.ArrayFile(_joined(path), "", 8))


def read_keyed_features(path: pathlib.Path) -> None:
    moments.read_array(moments.ArrayFile(path, "features", 8))


def read_arrays(path: pathlib.Path) -> None:
    read_npz(path, 1 << 26)


def read_members(path: pathlib.Path) -> None:
    """An npz whose members are files, so that checksums hide no damage."""
    archive = path.with_name("archive.npz")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for member in sorted(path.iterdir()):
            file.write(member, member.name)
    read_npz(archive, 1 << 26)


def read_counts(path: pathlib.Path) -> None:
    Table.load(path)


def read_predicted_windows(path: pathlib.Path) -> None:
    read_submission(path, TRUTH)


def read_annotated_queries(path: pathlib.Path) -> None:
    _, problems = read_annotations(path, 2.0)
    assert all(len(problem.splitlines()) == 1 for problem in problems), problems


def read_gates(path: pathlib.Path) -> None:
    read_gate_log(path)


def read_manifest(path: pathlib.Path) -> None:
    """With the hash that fits, if it is a JSON object: the hash would hide the rest."""
    try:
        manifest = json.loads(path.read_bytes())
        path.write_text(json.dumps(manifest | {"sha256": manifest_digest(manifest)}))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    load_manifest(path, ["a", "b"])


def _joined(path: pathlib.Path) -> pathlib.Path:
    whole = path.with_name("whole.npy")
    whole.write_bytes(b"".join(part.read_bytes() for part in sorted(path.iterdir())))
    return whole


# ---- good inputs ----


def sound() -> dict[str, bytes]:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(RNG.integers(-3000, 3000, (8000, 2), dtype=np.int16).tobytes())
    data = file.getvalue()
    return {"0": data[:44], "1": data[44:]}


def image(mode: str, file_format: str = "PNG", **options) -> bytes:
    pixels = RNG.integers(0, 2, (24, 20, 3 if mode == "RGB" else 1), dtype=np.uint8)
    picture = Image.fromarray(pixels.squeeze(), None if mode == "RGB" else "L").convert(mode)
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def chunks(png: bytes) -> dict[str, bytes]:
    found, start = {}, 8
    while start < len(png):
        (length,) = struct.unpack(">I", png[start : start + 4])
        name = png[start + 4 : start + 8].decode()
        found[f"{len(found)}{name}"] = png[start + 8 : start + 8 + length]
        start += 12 + length
    return found


def video(suffix: str, codecs=None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"a.{suffix}"
        return video_files.write(path, video_files.steady(2, 5), codecs=codecs).read_bytes()


def table(header: list[str], *rows: list[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([header, *rows])
    return file.getvalue().encode()


def npy(array: np.ndarray) -> dict[str, bytes]:
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    start = len(data) - array.nbytes
    return {"0": data[:start], "1": data[start:]}


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def counts() -> bytes:
    file = io.BytesIO()
    Table({"clip_id": np.array(["a", "b"]), "x": np.arange(6.0).reshape(2, 3)}, {"f": 1}).save(file)
    return file.getvalue()


def lines(*values) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def submission() -> bytes:
    windows = {"pred_relevant_windows": [[0.0, 4.0, 0.5]], "pred_saliency_scores": [0.25, -1.5]}
    return lines(*({"qid": i, "query": "a dog", "vid": "v"} | windows for i in (1, 2)))


def annotations() -> bytes:
    query = {"query": "a dog", "vid": "v_0.0_10.0", "duration": 10, "relevant_windows": [[2, 6]]}
    scores = {"relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2, 3], [4, 0, 1]]}
    return lines(*(query | scores | {"qid": i} for i in (1, 2)))


def gates() -> bytes:
    gate = {"text": [[0.5, 0.25], [1.0, 0.0]], "video": {"mean": [0.1, 0.2]}}
    return lines(*({"qid": i, "gating_type": "x", "layer_gates": [gate]} for i in (1, 2)))


def manifest() -> bytes:
    entry = {"offscreen": "b", "motion": None, "noise_seed": 3, "shift": 2, "groups": []}
    clips = {"a": entry, "b": entry | {"offscreen": "a"}}
    return json.dumps({"version": 1, "clips": clips, "dataset": "d", "split": "test"}).encode()


def flow() -> dict[str, bytes]:
    return npy(RNG.standard_normal((6, 8, 2)).astype(np.float16))


def features() -> dict[str, bytes]:
    return npy(RNG.standard_normal((5, 8)).astype(np.float32))


def features_npz() -> bytes:
    return npz(features=np.ones((5, 8), np.float32))


def frames_npz() -> bytes:
    return npz(images=np.zeros((1, 2, 8, 8, 3), np.uint8), log_mel=np.ones((1, 2, 96, 64), "f4"))


def s4_csv() -> bytes:
    rows = ["a", "dog_barking", "train"], ["b", "race_car", "val"]
    return table(["name", "category", "split"], *rows)


def ms3_csv() -> bytes:
    return table(["video_id", "split"], ["a", "train"], ["b", "test"])


def avss_csv() -> bytes:
    rows = ["a", "train", "v1s", "dog"], ["b", "val", "v2", "x"]
    return table(["uid", "split", "label", "a_obj"], *rows)


def members() -> dict[str, bytes]:
    return {"x.npy": b"".join(features().values()), "y.npy": b"".join(flow().values())}


CSV = [b",", b'"', b"\n\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"../"]
KINDS = {  # kind -> good input, reader, name of the file, tokens, number of mutations
    "wav": (sound, "read_sound", "a", [b"fmt ", b"data", b"LIST"], 350),
    "png": (lambda: image("P"), "read_frame", "a.png", [b"IHDR", b"IDAT", b"PLTE"], 150),
    "png_chunks": (lambda: chunks(image("P")), "read_chunks", "a", (), 300),
    "png_rgb_chunks": (lambda: chunks(image("RGB")), "read_chunks", "a", (), 200),
    "jpeg": (lambda: image("RGB", "JPEG"), "read_frame", "a.jpg", (), 250),
    "mp4": (lambda: video("mp4"), "read_video", "a.mp4", BOXES, 700),
    "mkv": (lambda: video("mkv"), "read_video", "a.mkv", (), 250),
    "webm": (lambda: video("webm", ("libvpx", "libopus")), "read_video", "a.webm", (), 150),
    "csv_s4": (s4_csv, "read_s4", S4.csv, CSV, 200),
    "csv_ms3": (ms3_csv, "read_ms3", MS3.csv, CSV, 100),
    "csv_avss": (avss_csv, "read_avss", AVSS.csv, CSV, 100),
    "flow": (flow, "read_flow", "a", NPY, 300),
    "npy_features": (features, "read_features", "a", NPY, 250),
    "npz_features": (features_npz, "read_keyed_features", "a.npz", NPY, 200),
    "npz_arrays": (frames_npz, "read_arrays", "a.npz", NPY, 200),
    "npz_members": (members, "read_members", "a", NPY, 250),
    "counts": (counts, "read_counts", "a.npz", NPY, 200),
    "submission": (submission, "read_predicted_windows", "a.jsonl", JSON, 200),
    "annotations": (annotations, "read_annotated_queries", "a.jsonl", JSON, 200),
    "gate_log": (gates, "read_gates", "a.jsonl", JSON, 150),
    "manifest": (manifest, "read_manifest", "a.json", JSON, 200),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind):
    good, reader, name, tokens, count = KINDS[kind]
    reader = f"tests.fuzz.test_inputs.{reader}"
    counts = run_mutations(kind, good(), reader, count, seed=14, name=name, tokens=tokens)
    print(json.dumps(counts))
    assert counts["read"] + counts["refused"] == count

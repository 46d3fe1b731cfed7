"""Files that somebody else wrote: what is damaged is one line that begins with the path."""

import io
import os
import struct
import wave
import zlib

import numpy as np
import pytest
from PIL import Image

from avs_jax.data import flow_files, input_files
from avs_jax.data.avsbench_csv import read_rows
from avs_jax.data.avsbench_folders import AVSS, MS3, S4
from avs_jax.spec import InputError


def wav_bytes(rate=16_000, channels=1, count=16_000):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(bytes(2 * channels * count))
    return file.getvalue()


def patched(data, at, value):
    return data[:at] + value + data[at + len(value) :]


def test_sound_as_it_was_written(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(48_000, 2, 96_000))
    waveform, rate = input_files.read_wav(path)
    assert waveform.shape == (96_000, 2) and waveform.dtype == np.int16 and rate == 48_000


WAV = wav_bytes()
BAD_WAVS = {
    "a chunk of another size": (patched(WAV, 18, b"\x70"), "unreadable wav (RuntimeError)"),
    "empty": (b"", "unreadable wav (empty)"),
    "text": (b"no sound at all", "unreadable wav"),
    "cut off": (WAV[:9000], "truncated wav, 4478 of 16000 samples"),
    "8 bit": (patched(WAV, 34, b"\x08\0"), "1 channels of 8 bits, expected 16-bit PCM"),
    "999 channels": (patched(WAV, 22, struct.pack("<H", 999)), "999 channels of 16 bits"),
    "no rate": (patched(WAV, 24, bytes(4)), "sampled at 0 Hz, expected 1000 to 384000"),
    "7 Hz": (patched(WAV, 24, struct.pack("<I", 7)), "sampled at 7 Hz"),
    "1 MHz": (patched(WAV, 24, struct.pack("<I", 1_000_000)), "sampled at 1000000 Hz"),
    "short": (wav_bytes(count=15_599), "0.975 s of sound, less than one log-mel example"),
}


@pytest.mark.parametrize("what", BAD_WAVS)
def test_damaged_sounds(tmp_path, what):
    data, message = BAD_WAVS[what]
    (tmp_path / "a.wav").write_bytes(data)
    assert_one_line(tmp_path / "a.wav", input_files.read_wav, message)


def assert_one_line(path, read, message):
    with pytest.raises(InputError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(str(path)) and message in text and "\n" not in text


def png(width, height, mode=b"\x08\x02"):
    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">II", width, height) + mode + bytes(3)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


BAD_IMAGES = {
    "huge": (png(60_000, 60_000), "unreadable image ("),
    "large": (png(9_000, 9_000), "unreadable image (9000x9000 px, at most 67,108,864 pixels)"),
    "of no size": (png(0, 0), "unreadable image"),
    "cut off": (png(64, 64), "unreadable image"),
    "empty": (b"", "unreadable image"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", BAD_IMAGES)
def test_damaged_images(tmp_path, what):
    data, message = BAD_IMAGES[what]
    (tmp_path / "a.png").write_bytes(data)
    assert_one_line(tmp_path / "a.png", input_files.read_image, message)


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def npz():
    file = io.BytesIO()
    np.savez(file, np.zeros((4, 4, 2), np.float32))
    return file.getvalue()


NPY = npy(np.ones((4, 6, 2), np.float32))
BAD_FLOWS = {
    "a header that is no text": (NPY.replace(b"'fortran", b"('fortran"), "no npy file"),
    "an unfinished header": (NPY.replace(b"}", b" "), "no npy file"),
    "3 GB": (NPY.replace(b"(4, 6, 2),", b"(40000, 10000, 2),"), "header declares 3,200,000"),
    "9 TB": (NPY.replace(b"(4, 6, 2),", b"(1000000, 1000000, 2),"), "its header declares"),
    "2^70": (NPY.replace(b"(4, 6, 2),", b"(1180591620717411303424, 1),"), "an impossible shape"),
    "negative": (NPY.replace(b"(4, 6, 2)", b"(-4,-6,2)"), "an impossible shape"),
    "an npz": (npz(), "no npy file"),
    "cut off": (NPY[:-1], "its header declares"),
    "too long": (NPY + b"\0", "its header declares"),
    "empty": (b"", "no npy file"),
    "no frame": (npy(np.zeros((0, 0, 2), np.float32)), "shape (0, 0, 2), expected [H, W]"),
    "three channels": (npy(np.zeros((4, 4, 3), np.float32)), "shape (4, 4, 3), expected"),
    "integers": (npy(np.zeros((4, 4), np.int32)), "int32 numbers, expected floating point"),
    "objects": (npy(np.zeros((4, 4), "O")), "an array of object, which is not read"),
    "not a number": (npy(np.full((4, 4), np.nan)), "float64 flow that is not finite"),
    "beyond float16": (npy(np.full((4, 4), 65_000.0)), "beyond float16"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FLOWS)
def test_damaged_flow(tmp_path, what):
    data, message = BAD_FLOWS[what]
    assert data != NPY
    (tmp_path / "flow.npy").write_bytes(data)
    assert_one_line(tmp_path / "flow.npy", flow_files.read_array, message)
    assert not flow_files.is_whole(tmp_path / "flow.npy", (4, 6, 2))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_flow_in_any_float(tmp_path, dtype, version):
    flow = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(dtype)
    for array in (flow, np.asfortranarray(flow), flow[..., 0], flow[..., :1]):
        (tmp_path / "flow.npy").write_bytes(npy(array, version))
        found = flow_files.read_array(tmp_path / "flow.npy")
        assert found.dtype == np.float16 and found.shape == (4, 6, array[0, 0].size)
        np.testing.assert_array_equal(found, array.reshape(4, 6, -1).astype(np.float16))
    flow_files.write_array(tmp_path / "flow.npy", flow)
    assert flow_files.is_whole(tmp_path / "flow.npy", (4, 6, 2))
    assert not flow_files.is_whole(tmp_path / "flow.npy", (4, 6))


READERS = {
    "sound": input_files.read_wav,
    "image": input_files.read_image,
    "flow": flow_files.read_array,
    "json": input_files.read_json,
    "text": input_files.read_text,
}


@pytest.mark.parametrize("what", READERS)
def test_what_is_no_file(tmp_path, what):
    os.mkfifo(tmp_path / "pipe")
    assert_one_line(tmp_path / "pipe", READERS[what], "not a regular file")
    assert_one_line(tmp_path / "none", READERS[what], "missing")
    assert_one_line(tmp_path, READERS[what], "directory")
    (tmp_path / "device").symlink_to("/dev/zero")
    assert_one_line(tmp_path / "device", READERS[what], "not a regular file")


# ---- csv ----

CSV = "name,start,category,split\nété,0,dog_barking,train\nb,0,cat_meowing,test\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_in_a_known_encoding(tmp_path, encoding):
    (tmp_path / S4.csv).write_bytes(CSV.replace("\n", "\r\n").encode(encoding))
    rows, problems = read_rows(S4, tmp_path)
    assert [row.name for row in rows] == ["été", "b"] and problems == []


def test_csv_in_another_encoding_is_refused_with_the_line(tmp_path):
    (tmp_path / S4.csv).write_bytes(CSV.encode("cp1252"))
    message = ", line 2: not utf-8"
    assert_one_line(tmp_path / S4.csv, lambda path: read_rows(S4, path.parent), message)
    (tmp_path / S4.csv).write_bytes(CSV.encode("utf-16-le"))  # without its mark
    with pytest.raises(InputError, match="line 2: not utf-8|columns"):
        read_rows(S4, tmp_path)


def test_csv_with_a_huge_field(tmp_path):
    (tmp_path / S4.csv).write_text(CSV + "x" * 200_000 + ",0,dog_barking,train\n")
    message = ", line 4: field larger than field limit"
    assert_one_line(tmp_path / S4.csv, lambda path: read_rows(S4, path.parent), message)


def test_rows_that_are_no_clips(tmp_path):
    text = CSV + "../x,0,dog_barking,train\nb,0,cat_meowing,test\nc,0,unicorn,test\nd,0\n"
    (tmp_path / S4.csv).write_text(text)
    rows, problems = read_rows(S4, tmp_path)
    assert [row.name for row in rows] == ["été", "b"]
    for line, message in enumerate(
        ("name '../x' cannot be", "b is listed twice", "'unicorn' of c", "split '' of d"), start=4
    ):
        assert f"line {line}: " in problems[line - 4] and message in problems[line - 4]
    assert len(read_rows(S4, tmp_path, any_category=True)[0]) == 3
    (tmp_path / S4.csv).write_text("name,split\na,train\n")
    assert_one_line(tmp_path / S4.csv, lambda path: read_rows(S4, path.parent), "expected category")


def test_ground_truth_by_setting():
    assert S4.labeled_frames("train") == (0,) and S4.labeled_frames("val") == (0, 1, 2, 3, 4)
    assert MS3.labeled_frames("train") == (0, 1, 2, 3, 4)
    assert AVSS.labeled_frames("train", "v1s") == (0,)
    assert len(AVSS.labeled_frames("train", "v2")) == 10


def test_json(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (("{", "not JSON"), ("[1]", "a JSON list"), ("[" * 9999, "not JSON")):
        path.write_text(text)
        assert_one_line(path, input_files.read_json, message)
    path.write_bytes('\ufeff{"a": 1}'.encode())
    assert input_files.read_json(path) == {"a": 1}


def test_image_modes_are_kept(tmp_path):
    Image.new("P", (5, 3)).save(tmp_path / "a.png")
    data, image = input_files.read_image(tmp_path / "a.png")
    assert image.size == (5, 3) and image.mode == "P" and data == (tmp_path / "a.png").read_bytes()

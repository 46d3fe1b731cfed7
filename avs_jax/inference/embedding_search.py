"""Search of task `align`: which clips of an index go with a sound, an image, a text or a video.

  avs-jax predict --checkpoint=DIR --search=INDEX.npz --output=DIR
      and one of --audio=x.wav, --image=x.jpg, --text="...", --video=clip.mp4

scripts/index.py makes the index (index_building.py); with --approximate, FAISS chooses the
candidates (approximate_search.py). A query is compared with the modalities of the clips that it was
trained with: a sound with frames, a text with both. A modality without such a partner is compared
with itself. The output is

  hits.html       the best clips, best first: a frame, the sound, the similarity
  results.json    the same as text; cut_word_pieces: of each text, those the model does not read

Frames and sounds come from the records or videos that were indexed, which must still be there.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from avs_jax.data.audio import encode_wav, resample, to_mono
from avs_jax.data.decode import decode_rgb
from avs_jax.data.input_files import read_image, read_wav
from avs_jax.data.records import open_records
from avs_jax.data.tokens import cut_note
from avs_jax.data.video import read_windows
from avs_jax.files import atomic_folder
from avs_jax.inference.approximate_search import nearest_by_graph
from avs_jax.inference.predictor import Predictor
from avs_jax.models.align import PAIRS
from avs_jax.results.embedding_index import EmbeddingIndex, nearest_items
from avs_jax.results.visualize import save_page
from avs_jax.runtime.checksums import json_checksum, tree_checksums
from avs_jax.spec import SAMPLE_RATE, InputError
from avs_jax.task import Record

MEDIA = ("frames", "audio")  # modalities that a clip has
NUM_HITS = 10
SIDE = 240  # px, longer side of a frame on the page
DECIMALS = 4


# ---- embeddings ----


def embed(predictor: Predictor, record: Record) -> dict[str, np.ndarray]:
    """What the model gives for one record, without its batch axis."""
    row = predictor.task.rows.prepare(record, None)
    inputs = {name: np.asarray(x)[None] for name, x in predictor.task.inputs(row).items()}
    return {name: x[0] for name, x in predictor.arrays(inputs).items()}


def record_of(
    frames: Sequence[np.ndarray] | None = None,
    waveform: np.ndarray | None = None,
    sample_rate: int = SAMPLE_RATE,
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """A record of what is given; black frames or silence stand for what is not."""
    if frames is None:
        seconds = 1 if waveform is None else max(1, len(waveform) // sample_rate)
        frames = [np.zeros((32, 32, 3), np.uint8)] * seconds
    if waveform is None:
        waveform = np.zeros(len(frames) * sample_rate, np.int16)
    return {
        "clip_id": "query",
        "frames": list(frames),
        "waveform": waveform,
        "sample_rate": sample_rate,
        "texts": tuple(texts),
    }


def weights_checksum(predictor: Predictor) -> str:
    """Identifies the parameters that made an index."""
    return json_checksum(tree_checksums(predictor.variables))


def read_clips(path: os.PathLike | str, seconds: int) -> Iterator[tuple]:
    """(frames, waveform, rate, start) of a video's clips of so many seconds."""
    for frames, waveform, start in read_windows(path, seconds):
        yield frames, waveform, len(waveform) // len(frames), start


# ---- queries ----


def search_index(
    predictor: Predictor,
    index_path: str | os.PathLike,
    output: str | os.PathLike,
    audio: str | None = None,
    image: str | None = None,
    text: Sequence[str] | None = None,
    video: str | None = None,
    approximate: bool = False,
) -> list[str]:
    """Writes hits.html and results.json of one query.

    Args:
      index_path: .npz of scripts/index.py.
      output: folder, replaced as a whole at the end.
      audio, image, video: files, one of them; or text: of several texts, the mean counts.
      approximate: search in the graphs that scripts/index.py --faiss wrote.

    Returns:
      lines to print.

    Raises:
      InputError: a file that cannot be read, an index of other weights, or a query that this model
        has no tower for.
    """
    index = EmbeddingIndex.load(index_path)
    if index.facts.get("weights") != weights_checksum(predictor):
        raise InputError(
            f"{index_path} was made with other weights ({index.facts.get('checkpoint')}): make it "
            f"again with scripts/index.py --checkpoint={predictor.checkpoint.directory}"
        )
    queries = _query(predictor, audio, image, text, video)
    compared = {name: _partners(predictor.task.model.pairs, name) for name in queries}
    if approximate:
        scores, places = nearest_by_graph(index, index_path, queries, compared, NUM_HITS)
    else:
        pairs = [
            (queries[name][None], index[f"{other}_embed"])
            for name, others in compared.items()
            for other in others
        ]
        scores, places = (x[0] for x in nearest_items(pairs, NUM_HITS))
    hits = [_describe(index, place, score) for place, score in zip(places, scores, strict=True)]
    query = {"audio": audio, "image": image, "text": text and list(text), "video": video}
    query = {name: value for name, value in query.items() if value}
    cut = [predictor.task.rows.num_cut(words) for words in text or ()]
    with atomic_folder(output) as folder:
        _write_page(folder / "hits.html", index, places, hits, query)
        results = {
            "query": query,
            "cut_word_pieces": cut,
            "index": str(index_path),
            "clips": len(index),
            "compared_with": compared,
            "hits": hits,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    best = [f"{hit['rank']}. {hit['name']}  {hit['similarity']:.3f}" for hit in hits[:3]]
    limit = predictor.config.data.text.max_tokens
    notes = [
        f"{words!r}{cut_note(count, 'data.text.max_tokens', limit)}"
        for words, count in zip(text or (), cut, strict=True)
        if count
    ]
    return [*notes, *best, f"{output}: hits.html, results.json"]


def _query(predictor: Predictor, audio, image, text, video) -> dict[str, np.ndarray]:
    """{modality: vector [D] of unit length} of what is given."""
    wanted, records, seconds = [], [], predictor.config.data.num_frames
    if text:
        wanted, records = ["text"], [record_of(texts=text)]
    elif image:
        frame = np.asarray(read_image(pathlib.Path(image).expanduser())[1].convert("RGB"))
        wanted, records = ["frames"], [record_of([frame])]
    elif audio:
        waveform, rate = read_wav(pathlib.Path(audio).expanduser())
        parts = [waveform[i : i + seconds * rate] for i in range(0, len(waveform), seconds * rate)]
        parts = [part for part in parts if len(part) >= rate] or [waveform]
        wanted, records = ["audio"], [record_of(None, part, rate) for part in parts]
    elif video:
        records = [record_of(f, sound, rate) for f, sound, rate, _ in read_clips(video, seconds)]
        wanted = list(MEDIA)
    fields = {name for pair in PAIRS[predictor.task.model.pairs] for name in pair}
    wanted = [name for name in wanted if name in fields]
    if not wanted:
        pairs = predictor.task.model.pairs
        raise InputError(f"config.model.pairs = {pairs!r}: this model has no tower for the query")
    found = [embed(predictor, record) for record in records]
    sums = {name: sum(part[f"{name}_embed"] for part in found) for name in wanted}
    return {name: x / max(float(np.linalg.norm(x)), 1e-12) for name, x in sums.items()}


def _partners(pairs: str, query: str) -> list[str]:
    """Modalities of clips that a query is compared with."""
    partners = [
        name
        for pair in PAIRS[pairs]
        if query in pair
        for name in pair
        if name not in (query, "text")
    ]
    return partners or [query]


# ---- the page ----


def _describe(index: EmbeddingIndex, place: int, score: float) -> dict[str, Any]:
    row = {name: index[name][place] for name in ("name", "category", "source")}
    return {
        "name": str(row["name"]),
        "similarity": round(float(score), DECIMALS),
        "category": str(row["category"]),
        "source": str(row["source"]),
        "place": int(index["place"][place]),
    }


def _write_page(
    path: pathlib.Path,
    index: EmbeddingIndex,
    places: np.ndarray,
    hits: list[dict[str, Any]],
    query: Mapping[str, Any],
) -> None:
    """Fills in the rank of each hit, and writes the page."""
    pictures, texts, sounds = {}, {}, {}
    for rank, (place, hit) in enumerate(zip(places, hits, strict=True), 1):
        hit["rank"] = rank
        frame, waveform, rate = _media(index, int(place))
        title = f"{rank}. {hit['name']}"
        scale = max(1, -(-max(frame.shape) // SIDE))
        pictures[title] = frame[::scale, ::scale]
        label = f", {hit['category']}" if hit["category"] else ""
        texts[title] = f"similarity {hit['similarity']:.3f}{label}"
        heard = resample(to_mono(waveform), rate).clip(-1, 1)
        sounds[title] = encode_wav(np.int16(heard * 32767), SAMPLE_RATE)
    shown = "; ".join(f"{name}: {value}" for name, value in query.items())
    save_page(path, "Search", pictures, texts, sounds, [shown, f"{len(index)} clips"])


def _media(index: EmbeddingIndex, row: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The middle frame, the sound and its rate of a clip."""
    source, place = str(index["source"][row]), int(index["place"][row])
    if not source:
        where = {key: index.facts[key] for key in ("dataset", "data_dir")}
        record = open_records(ConfigDict({"data": where}), index.facts["split"])[place]
        frames, rate = record["frames"], int(record["sample_rate"])
        return decode_rgb(frames[len(frames) // 2]), record["waveform"], rate
    for frames, waveform, rate, start in read_clips(source, index.facts["window"]):
        if start == place:
            return frames[len(frames) // 2], waveform, rate
    raise InputError(f"{source}: it has no second {place}; make the index again")

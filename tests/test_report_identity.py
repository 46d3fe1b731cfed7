"""What names a report: the digest of what changes a number, and what was scored."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from avs_jax.data.tokens import vocabulary_text
from avs_jax.data.trunk_features import write_facts
from avs_jax.report_identity import (
    check_same_source,
    has_report,
    number_digest,
    predictions_folder,
    report_folder,
)
from avs_jax.runtime.checkpoint import Checkpoint, save_variables
from avs_jax.spec import InputError
from configs import qvh_custom, s4_vct
from tests import small


def a_config(text, **data):
    data = {"dataset": "refavs", "data_dir": "/a", "image_size": 64, **data, "text": text}
    model, evaluate = {"dtype": "float32"}, {"score_size": 32, "split": "val"}
    return ConfigDict({"task": "refer", "model": model, "data": data, "evaluate": evaluate})


def test_digests_of_stored_reports_still_match():
    """They were taken before paths counted by what they hold."""
    text = {"source": "tiny", "tokenizer": "", "words": ("a", "b")}
    config = a_config(text, trunk_features="", trunk_key="")
    config.host = "sam2"
    config.model.remat = "none"
    assert number_digest(config) == "5264bf4a"
    config = ConfigDict({"task": "align", "model": {"dtype": "float32"}})
    config.data = {"dataset": "avsbench_s4", "text": {"source": "tiny", "path": ""}}
    config.evaluate = {"relevant": "clip"}
    assert number_digest(config) == "0aa73860"


def test_reports_of_predictions_have_a_folder_for_each_way_to_score_them():
    folder = predictions_folder(s4_vct.get_config(), "root", "test")
    assert folder.name == "avsbench_s4_test_07333158"  # as before tasks had protocols
    config = qvh_custom.get_config()
    found = {predictions_folder(config, "root", "val")}
    for section, change in (
        (config.evaluate, {"protocol": "tvsum"}),
        (config.data, {"num_annotators": 20}),
        (config.data, {"clip_seconds": 1.0}),
    ):
        section.update(change)
        found.add(predictions_folder(config, "root", "val"))
    assert len(found) == 4


@pytest.mark.parametrize("key", ["tokenizer", "path"])
def test_tokenizers_count_by_what_they_hold(tmp_path, key):
    def digest(place, words, stored=()):
        (tmp_path / place).write_text(vocabulary_text(words))
        text = {"source": "tiny", key: str(tmp_path / place), "words": stored}
        return number_digest(a_config(text))

    assert digest("mine.json", ["a", "b"]) == digest("yours.json", ["a", "b"])
    assert digest("mine.json", ["a", "b"]) != digest("mine.json", ["a", "c"])
    stored = digest("mine.json", ["a"], ["x"])  # the words in the configuration are what is read
    assert stored == digest("mine.json", ["b"], ["x"]) != digest("mine.json", ["b"], ["y"])


def test_a_folder_of_a_tokenizer_counts_by_the_files_that_are_read(tmp_path):
    def digest(name, **files):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("_", ".")).write_text(content)
        return number_digest(a_config({"source": "roberta", "tokenizer": str(tmp_path / name)}))

    pair = {"vocab_json": "{}", "merges_txt": "a b"}
    first = digest("a", **pair)
    assert first == digest("b", **pair, model_safetensors="weights")
    assert first != digest("c", **(pair | {"merges_txt": "a c"}))
    assert digest("d", tokenizer_json="{}") == digest("e", tokenizer_json="{}", **pair)


def test_cached_features_count_by_the_weights_that_made_them(tmp_path):
    text = {"source": "tiny", "tokenizer": "", "words": ("a",)}

    def digest(folder, key):
        return number_digest(a_config(text, trunk_features=str(folder), trunk_key=key))

    assert digest("/here", "k") == digest("/there", "k") != digest("/there", "other")
    shapes = {f"trunk_{x}": [1, 1, 1] for x in SIZES}
    keys = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_facts(tmp_path / name, "k", 64, shapes)
        keys.add(digest(tmp_path / name, ""))
    assert len(keys) == 1


SIZES = ("fine", "middle", "coarse")


# ---- what was scored ----


@pytest.fixture
def runs(tmp_path):
    """Converted weights of three runs of one configuration; the third is a copy of the first."""
    found = []
    for name, value in (("a", 0.0), ("b", 1.0), ("c", 0.0)):
        save_variables(tmp_path / name, {"params": {"x": np.float32([value])}}, small.tiny_config())
        found.append(Checkpoint.find(tmp_path / name))
    return found


def store(folder, checkpoint, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"checkpoint": str(checkpoint.directory), **facts}
    (folder / "report.json").write_text(json.dumps({"facts": facts}))


def test_a_report_is_of_the_parameters_that_it_scored(runs, tmp_path):
    first, other, copy = runs
    assert first.checksum == copy.checksum != other.checksum
    folder = tmp_path / "report"
    assert not has_report(folder, first)
    store(folder, first, checksum=first.checksum)
    assert has_report(folder, first) and has_report(folder, copy)
    assert not has_report(folder, other)
    store(folder, first)  # older than checksums
    assert has_report(folder, first)


def test_a_report_of_something_else_is_not_replaced(runs, tmp_path):
    first, other, copy = runs
    folder = report_folder(small.tiny_config(), first, "test", "raw", tmp_path / "out")
    assert folder == report_folder(small.tiny_config(), other, "test", "raw", tmp_path / "out")

    def check(run, with_checksum=True):
        facts = {"checkpoint": str(run.directory)}
        facts |= {"checksum": run.checksum} if with_checksum else {}
        check_same_source(folder, "checkpoint", facts)

    check(other)  # no report yet
    store(folder, first, checksum=first.checksum)
    check(first)
    check(copy)  # a run that was moved
    with pytest.raises(InputError, match=f"{first.directory} .*not of {other.directory} .*output"):
        check(other)
    with pytest.raises(InputError, match=f"not of {other.directory};"):
        check(other, with_checksum=False)
    store(folder, first)
    check(first)
    with pytest.raises(InputError, match=f"the checkpoint {first.directory}, not"):
        check(other)

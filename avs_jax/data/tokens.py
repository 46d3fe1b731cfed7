"""Text to token ids: a vocabulary of words of our own, or the tokenizer of a checkpoint.

A text becomes <s> pieces </s>, cut to a number of tokens and padded. Ids of the four special tokens
are RoBERTa's for tiny and roberta, so one encoder (models/text/encoder.py) reads either.

  tiny      words and punctuation, in lower case; ids from a vocabulary that `count_words` makes of
            training texts. The file is plain JSON: {"format": FORMAT, "words": [...]}.
  roberta   the user's tokenizer.json, or a folder with it or with vocab.json and merges.txt, read
            by the `tokenizers` package (pip install avs_jax[text])
  clip      the user's tokenizer.json of a CLIP checkpoint, or a folder with it, likewise; the start
            and the end are <|startoftext|> and <|endoftext|>, and the end pads

Control characters count as spaces. An empty text is <s> </s>.
"""

import collections
import functools
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from avs_jax.data.input_files import first_line, read_json
from avs_jax.spec import InputError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNKNOWN = range(4)
SOURCES = ("tiny", "roberta", "clip")
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
FORMAT = "avs_jax words 1"
VOCABULARY = "vocabulary.json"  # beside the records whose training texts it was made from
MAX_CHARACTERS = 100_000  # of one text, before anything looks at it
_HUB_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


class Tokenizer(Protocol):
    """Pieces of a text.

    Attributes:
      size: ids are below it.
      special: ids of the start, of padding and of the end.
    """

    size: int
    special: tuple[int, int, int]

    def pieces(self, text: str) -> list[int]:
        """Ids of a text without special tokens."""

    def names(self, text: str) -> list[str]:
        """The same pieces as texts."""


class Tokens(NamedTuple):
    """One text, or several stacked.

    Attributes:
      ids: int32 [N], padded after the end.
      mask: bool [N], the token exists.
      num_pieces: of the whole text, without special tokens.
    """

    ids: np.ndarray
    mask: np.ndarray
    num_pieces: int

    @property
    def is_cut(self) -> bool:
        """Whether the text had more pieces than there was room for."""
        return self.num_cut > 0

    @property
    def num_cut(self) -> int:
        """Last pieces of the text for which there was no room."""
        return max(0, self.num_pieces - (len(self.ids) - 2))


def tokenize(tokenizer: Tokenizer, text: str, max_tokens: int) -> Tokens:
    """A text as max_tokens ids, N; longer texts lose their last pieces and keep </s>.

    Raises:
      InputError: more than MAX_CHARACTERS, or N has no room for a piece.
    """
    if max_tokens < 3:
        raise InputError(f"max_tokens = {max_tokens}: <s> and </s> need two, expected at least 3")
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"a text of {len(text):,} characters ({text[:40]!r}...), at most {MAX_CHARACTERS:,}"
        )
    pieces = tokenizer.pieces(clean(text))
    start, pad, end = tokenizer.special
    kept = [start, *pieces[: max_tokens - 2], end]
    ids = np.full(max_tokens, pad, np.int32)
    ids[: len(kept)] = kept
    return Tokens(ids, np.arange(max_tokens) < len(kept), len(pieces))


def cut_note(num_cut: int, key: str, limit: int) -> str:
    """What to print behind a text of which `num_cut` pieces were cut; empty if none were.

    Args:
      key, limit: of the configuration.
    """
    if not num_cut:
        return ""
    pieces = "word piece was" if num_cut == 1 else f"{num_cut} word pieces were"
    return f" (cut: the last {pieces} not read, config.{key} = {limit})"


def clean(text: str) -> str:
    """A text in Unicode's NFC, control characters and runs of spaces as one space."""
    text = unicodedata.normalize("NFC", text)
    # Cc: control characters; Cs: halves of surrogate pairs, which no encoder takes.
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    return " ".join(text.split())


# ---- words ----


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, with inner apostrophes, and every other character by itself."""
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", clean(text).lower())


def count_words(texts: Iterable[str], size: int) -> list[str]:
    """The words of a vocabulary of at most `size` ids: the most frequent, ties in code order."""
    counts = collections.Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return ranked[: size - len(SPECIAL)]


def vocabulary_text(words: Sequence[str]) -> str:
    """The file of a vocabulary."""
    content = {"format": FORMAT, "words": list(words)}
    return json.dumps(content, ensure_ascii=False, indent=0) + "\n"


def read_vocabulary(path: pathlib.Path) -> list[str]:
    """The words of such a file; InputError if it is not one."""
    content = read_json(path)
    words = content.get("words")
    if content.get("format") != FORMAT or not isinstance(words, list):
        raise InputError(f"{path}: not a vocabulary, expected format {FORMAT!r} and words")
    if not all(isinstance(word, str) and word for word in words) or len(set(words)) < len(words):
        raise InputError(f"{path}: words must be different texts, none of them empty")
    return words


class WordTokenizer:
    """Ids by a vocabulary of words; any other word is <unk>."""

    special = (BOS, PAD, EOS)

    def __init__(self, words: Sequence[str]):
        self._ids = {word: i for i, word in enumerate(words, start=len(SPECIAL))}
        self.size = len(SPECIAL) + len(words)

    def pieces(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return [self._ids.get(word, UNKNOWN) for word in self.names(text)]

    def names(self, text: str) -> list[str]:
        """See `Tokenizer`."""
        return split_words(text)


def words_of(ids: Iterable[int], words: Sequence[str]) -> str:
    """The text of ids up to the end: the inverse of WordTokenizer, without the case."""
    found = []
    for i in ids:
        if i == EOS or i < 0:
            break
        if i not in (BOS, PAD):
            place = i - len(SPECIAL)
            found.append(words[place] if 0 <= place < len(words) else SPECIAL[UNKNOWN])
    return " ".join(found)


# ---- the tokenizer of a checkpoint ----


class HubTokenizer:
    """RoBERTa's byte-level BPE, from a user's files; picklable, opened where it is used."""

    def __init__(self, path: pathlib.Path):
        """Opens `path`, a tokenizer.json or a folder of files.

        Raises:
          InputError: the package is absent, there is no such file, or its ids are not RoBERTa's.
        """
        self._path = path
        self.size = self._tokenizer.get_vocab_size()
        self.special = self._find_special()

    def __reduce__(self):
        return type(self), (self._path,)

    def _find_special(self) -> tuple[int, int, int]:
        found = tuple(self._tokenizer.token_to_id(token) for token in SPECIAL)
        if found != (BOS, PAD, EOS, UNKNOWN):
            raise InputError(
                f"{self._path}: ids of {', '.join(SPECIAL)} are {found}, expected RoBERTa's "
                "0, 1, 2, 3"
            )
        return BOS, PAD, EOS

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise InputError(
                f"{self._path}: reading it takes the package tokenizers: pip install avs_jax[text]"
            ) from error
        file, *merges = tokenizer_files(self._path)
        if merges:
            return _read_pair(tokenizers, file, *merges)
        read_json(file)  # a missing or damaged file is an error that names it
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises Exception itself
            raise InputError(f"{file}: not a tokenizer ({first_line(error)})") from error
        # a file may ask for either; rows pad and cut, and count what they cut
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def pieces(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def names(self, text: str) -> list[str]:
        """See `Tokenizer`."""
        return self._tokenizer.encode(text, add_special_tokens=False).tokens


class CLIPTokenizer(HubTokenizer):
    """CLIP's byte-level BPE, from a user's tokenizer.json, which also says how text is split."""

    def _find_special(self) -> tuple[int, int, int]:
        start, end = found = [self._tokenizer.token_to_id(token) for token in CLIP_SPECIAL]
        if None in found:
            raise InputError(f"{self._path}: no {' and '.join(CLIP_SPECIAL)}, which CLIP's has")
        return start, end, end


def _read_pair(tokenizers: Any, vocabulary: pathlib.Path, merges: pathlib.Path) -> Any:
    """The tokenizer of vocab.json and merges.txt, as RoBERTa splits text before BPE."""
    try:
        model = tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:
        raise InputError(f"{vocabulary}, {merges.name}: {first_line(error)}") from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def tokenizer_files(path: str | pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The files that a tokenizer is read from: one, or vocab.json and merges.txt of a folder."""
    path = pathlib.Path(path).expanduser()
    if not path.is_dir():
        return (path,)
    file, *pair = (path / name for name in _HUB_FILES)
    is_pair = not file.is_file() and all(x.is_file() for x in pair)
    return tuple(pair) if is_pair else (file,)


def load_tokenizer(source: str, path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer of a source.

    Args:
      source: one of SOURCES.
      path: vocabulary.json; or tokenizer.json or a folder of the checkpoint's files.

    Raises:
      InputError: an unknown source, or files that are missing or of another kind.
    """
    if source not in SOURCES:
        raise InputError(f"text source {source!r}: choose one of {SOURCES}")
    path = pathlib.Path(path).expanduser()
    if source == "tiny":
        return WordTokenizer(read_vocabulary(path))
    if source == "clip" and path.is_dir():
        path = path / _HUB_FILES[0]
    return CLIPTokenizer(path) if source == "clip" else HubTokenizer(path)

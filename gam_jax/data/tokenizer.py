"""Text to token ids and back: bytes, a BPE of our own, or anybody's tokenizer.json."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from gam_jax.data.storage import written_whole
from gam_jax.data.text import MAX_VOCAB
from sharding.errors import UserError
from sharding.json_file import MAX_BYTES
from sharding.paths import local_path

if TYPE_CHECKING:
    import tokenizers

FILE_NAME = "tokenizer.json"
SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[SOS]", "[EOS]")
SEPARATORS = ("[EOS]", "</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>")
"""Tokens that end a text, in the order in which a third-party tokenizer is searched for one."""


class Stream(Protocol):
    """Decodes ids as they come; never gives half a character."""

    def push(self, token: int) -> str:
        """The text that this id completes, perhaps ''."""
        ...

    def flush(self) -> str:
        """What is left at the end; an incomplete character becomes U+FFFD."""
        ...


class Tokenizer(Protocol):
    """What the rest of the code asks of a tokenizer.

    Attributes:
      vocab: number of ids.
      separator: the id put between documents; None if the tokenizer has none.
      fingerprint: equal for tokenizers that give equal ids.
      special_tokens: names of tokens that are no text, such as `<|im_end|>`.
    """

    @property
    def vocab(self) -> int: ...
    @property
    def separator(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def special_tokens(self) -> frozenset[str]: ...

    def encode(self, text: str) -> np.ndarray:
        """int32 ids; a special token's name in the text is text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text."""
        ...

    def encode_places(
        self, texts: Sequence[str], special: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text int32 ids [N], and [N, 2]: the characters that each is of, from and to.

        Args:
          texts: to encode.
          special: whether a special token's name in a text is that token.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids."""
        ...

    def shown(self, ids: Iterable[int]) -> str:
        """The text of some ids, with the names of special tokens."""
        ...

    def stream(self) -> Stream:
        """A decoder that takes one id at a time."""
        ...

    def to_text(self) -> str:
        """The JSON that `tokenizer_from_text` reads."""
        ...

    def save(self, path: str | Path) -> None:
        """Writes that JSON to a file, which `load_tokenizer` opens."""
        ...


class ByteTokenizer:
    """Token id = value of a UTF-8 byte. Byte 0, which text does not hold, is the separator."""

    vocab = 256
    separator = 0
    fingerprint = "bytes"
    special_tokens: frozenset[str] = frozenset()

    def encode(self, text: str) -> np.ndarray:
        """int32 ids, one a byte."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_places(
        self, texts: Sequence[str], special: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids, and the character that each byte is of; there are no special tokens."""
        return [(self.encode(text), _places_of_bytes(text)) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that are not UTF-8, and ids that are no bytes, become U+FFFD."""
        return _bytes(ids).decode("utf-8", "replace")

    def shown(self, ids: Iterable[int]) -> str:
        """The text, with the separator as an empty set."""
        return self.decode(ids).replace("\0", "\u2205")

    def stream(self) -> Stream:
        """A decoder that takes one id at a time."""
        return _ByteStream()

    def to_text(self) -> str:
        """A small JSON that says "bytes"."""
        return json.dumps({"gam_jax": "bytes"}) + "\n"

    def save(self, path: str | Path) -> None:
        """Writes that JSON to a file."""
        _save(self, path)


def _places_of_bytes(text: str) -> np.ndarray:
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (code >= 0x80).astype(int) + (code >= 0x800) + (code >= 0x10000)
    place = np.repeat(np.arange(len(code)), sizes)
    return np.stack([place, place + 1], axis=1)


def _bytes(ids: Iterable[int]) -> bytes:
    """A model may have more ids than bytes; 255 is in no UTF-8."""
    return bytes(min(int(i), 255) for i in ids)


class _ByteStream:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(_bytes([token]))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class HFTokenizer:
    """A tokenizer of the Hugging Face `tokenizers` library.

    Nothing is added to a text, cut from it or padded, whatever its file asks for; and text that
    happens to spell a special token stays text.

    Args:
      tokenizer: of that library.

    Raises:
      ValueError: it has no ids, or more than `MAX_VOCAB`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        ids = tokenizer.get_vocab(with_added_tokens=True)
        self._tokenizer = tokenizer
        self.vocab: int = max(ids.values(), default=-1) + 1
        if self.vocab > MAX_VOCAB:  # before `to_str`, which takes memory for every id in between
            raise ValueError(f"an id of {self.vocab - 1:,}, and {MAX_VOCAB:,} ids are the most")
        self.separator: int | None = next((ids[t] for t in SEPARATORS if t in ids), None)
        # Key order in the file differs from run to run where the library hashes.
        content = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)
        self.fingerprint: str = hashlib.sha256(content.encode()).hexdigest()[:16]
        added = tokenizer.get_added_tokens_decoder().values()
        self.special_tokens = frozenset(token.content for token in added if token.special)

    def encode(self, text: str) -> np.ndarray:
        """int32 ids."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 ids of each text, encoded in parallel threads."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(e.ids, np.int32) for e in encoded]

    def encode_places(
        self, texts: Sequence[str], special: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and places, encoded in parallel threads."""
        reader = self._reader
        reader.encode_special_tokens = not special
        encoded = reader.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.asarray(e.ids, np.int32), np.asarray(e.offsets, np.int64).reshape(-1, 2))
            for e in encoded
        ]

    @functools.cached_property
    def _reader(self) -> tokenizers.Tokenizer:
        """The same without what comes after encoding: it would take blanks out of places."""
        import tokenizers

        content = {**json.loads(self._tokenizer.to_str()), "post_processor": None}
        return tokenizers.Tokenizer.from_str(json.dumps(content))

    def decode(self, ids: Iterable[int]) -> str:
        """The text, special tokens left out."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def shown(self, ids: Iterable[int]) -> str:
        """The text, with the names of special tokens."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self) -> Stream:
        """A decoder that takes one id at a time."""
        return _HFStream(self)

    def to_text(self) -> str:
        """The library's own JSON."""
        return self._tokenizer.to_str(pretty=True)

    def save(self, path: str | Path) -> None:
        """Writes that JSON to a file."""
        _save(self, path)


class _HFStream:
    """Decodes a short run of ids again at each step, and gives what it has grown by.

    The run starts at tokens already given, because how a token is written may depend on whether
    another precedes it (a leading space), and grows while its end is an incomplete character.
    """

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._decode = tokenizer.decode
        self._ids: list[int] = []
        self._given = 0  # how many of the ids have had their text given

    def push(self, token: int) -> str:
        self._ids.append(int(token))
        return self._advance(final=False)

    def flush(self) -> str:
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        before, now = self._decode(self._ids[: self._given]), self._decode(self._ids)
        if len(now) <= len(before) or (now.endswith("\ufffd") and not final):
            return ""
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        return now[len(before) :]


def _save(tokenizer: Tokenizer, path: str | Path) -> None:
    with written_whole(Path(path)) as temporary:
        temporary.write_text(tokenizer.to_text(), encoding="utf-8")


def load_tokenizer(path: str | Path) -> ByteTokenizer | HFTokenizer:
    """Opens a tokenizer.json: ours, or any of the Hugging Face `tokenizers` library.

    Args:
      path: the file, or a folder that holds a tokenizer.json.

    Raises:
      UserError: the file is missing, cannot be read, or is no tokenizer.
    """
    path = local_path(path)
    try:
        path = path / FILE_NAME if path.is_dir() else path
        if path.exists() and not path.is_file():
            raise OSError(0, "no plain file")
        if path.stat().st_size > MAX_BYTES:
            raise OSError(0, f"larger than {MAX_BYTES:,} bytes")
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"cannot read the tokenizer {path}: {reason}; "
            "give 'bytes', 'bpe:10000' or the path of a tokenizer.json"
        ) from error
    return tokenizer_from_text(content, str(path))


def tokenizer_from_text(content: str, where: str = FILE_NAME) -> ByteTokenizer | HFTokenizer:
    """A tokenizer from the content of its tokenizer.json.

    Args:
      content: JSON.
      where: it stood, for the error message.

    Raises:
      UserError: it is no tokenizer.
    """
    import tokenizers

    try:
        if json.loads(content) == {"gam_jax": "bytes"}:
            return ByteTokenizer()
        return HFTokenizer(tokenizers.Tokenizer.from_str(content))
    except BaseException as error:  # the library raises bare Exceptions, and its panics are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{where} is not a tokenizer.json: {' '.join(str(error).split())[:160]}; "
            "save it again with the Hugging Face tokenizers library"
        ) from error

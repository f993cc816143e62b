"""Hugging Face tokenizers (tokenizer.json) whose pieces are bytes: byte-level BPE and its like.

Others (WordPiece, no byte fallback, a space in front) open only as lossy; see tokenizers/base.py.

Three traps of the library are handled here:

- Stock `encode` reads the names of special tokens out of the text ("<|endoftext|>" in a document
  would end it): `encode_special_tokens` is set, so that text stays text.
- A published file may truncate, pad and add symbols (BERT's adds [CLS]): all of it is off.
- Its `decode` drops spaces before punctuation in some files: ids become bytes by our own table.

Texts of more than SEGMENT_CHARS are cut at line ends, which bounds the library's memory (it keeps
offsets of every id). The cut is part of `encode`: a text always has the same ids.
"""

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import (
  ByteTable,
  check_lossless,
  segments,
  settle_losses,
  sha256,
  utf8,
  write_card,
)

FILE = "huggingface.json"  # tokenizer.json is the name of jaxlm's card
SEGMENT_CHARS = 1 << 18
SPACE = "\u2581"
# Symbols that end documents in published vocabularies, where no file says which it is.
# The last is BERT's, which has no other and ends every text with it.
_USUAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[SEP]")
_REMEDY = (
  "use a byte-level BPE tokenizer, train one with `python -m jaxlm.data train_tokenizer`, or name"
  " this one as lossy:PATH to accept it"
)


class HuggingFaceTokenizer(ByteTable):
  """A tokenizer.json with byte-level pieces or byte fallback.

  Args:
    data: the bytes of the file.
    eos: name or id of the symbol that ends a document; None: the usual ones are looked for.
    lossy: take one that is not lossless; `lossless` tells.

  Raises:
    UserError: not such a file; not lossless; no EOS in it.
  """

  kind = "huggingface"

  def __init__(self, data: bytes, *, eos: str | int | None = None, lossy: bool = False):
    tokenizers = _library()
    self._data = data
    self.threads: int | None = None
    try:
      self.values: dict[str, Any] = json.loads(data)
      self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
    except Exception as e:  # the library raises a bare Exception
      raise UserError(f"not a tokenizer.json: {e}; correct the path") from None
    self._tokenizer.encode_special_tokens = True
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = max(vocabulary.values()) + 1
    self._table = _table(self.values, vocabulary, self.vocab_size, lossy)
    self.eos_id = self._eos(eos, vocabulary)
    self._table[self.eos_id] = b""
    special = [t["content"] for t in self.values.get("added_tokens") or [] if t["special"]]
    settle_losses(self, lambda: check_lossless(self, special, _REMEDY), lossy=lossy)

  def _eos(self, eos: str | int | None, vocabulary: dict[str, int]) -> int:
    if isinstance(eos, int):
      if not 0 <= eos < self.vocab_size:
        raise UserError(f"eos_id={eos} is not in [0, {self.vocab_size}); correct it")
      return eos
    if eos is None:
      eos = next((name for name in _USUAL_EOS if name in vocabulary), None)
    if eos is None or eos not in vocabulary:
      names = ", ".join(sorted(t["content"] for t in self.values.get("added_tokens") or [])[:8])
      raise UserError(
        f"no EOS symbol {'is named' if eos is None else repr(eos)} (special tokens:"
        f" {names or 'none'}); name one with tokenizer.eos"
      )
    return vocabulary[eos]

  @classmethod
  def load(cls, directory: Path, card: dict[str, Any]) -> "HuggingFaceTokenizer":
    """Reads the file that the card names."""
    file = directory / Path(str(card.get("file") or FILE)).name
    remedy = "make the dataset again with `python -m jaxlm.prepare`"
    try:
      data = file.read_bytes()
    except OSError as e:
      raise UserError(f"{file}: {e.strerror or e}; {remedy}") from None
    eos = card.get("eos_id")
    if not isinstance(eos, int) or _fingerprint(data, eos) != card.get("sha256"):
      raise UserError(f"{file}: its bytes changed (sha256 differs from tokenizer.json); {remedy}")
    return cls(data, eos=eos, lossy=card.get("lossless") is False)

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self.encode_with(texts, self._encode_batch)

  def encode_with(
    self, texts: Sequence[str], encode_batch: Callable[[list[str]], list[list[int]]]
  ) -> list[list[int]]:
    """encode_batch over the segments of the texts; shared with accelerators, which must agree."""
    return encode_segmented(texts, encode_batch, whole=not self.lossless)

  def _encode_batch(self, parts: list[str]) -> list[list[int]]:
    if self.threads == 1 or len(parts) == 1:
      one = self._tokenizer.encode
      return [one(part, add_special_tokens=False).ids for part in parts]
    found = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
    return [encoding.ids for encoding in found]

  def normalize(self, text: str) -> str:
    """The text under the file's own normalizer (NFC in some), without SentencePiece's spaces; of a
    lossy tokenizer, what comes back."""
    if not self.lossless:
      return self.decode(self.encode(text))
    normalizer = self._tokenizer.normalizer
    if normalizer is None or SPACE in self._space:
      return text
    return normalizer.normalize_str(text)

  @functools.cached_property
  def _space(self) -> str:
    normalizer = self._tokenizer.normalizer
    return "" if normalizer is None else normalizer.normalize_str(" ")

  def fingerprint(self) -> str:
    return _fingerprint(self._data, self.eos_id)

  @property
  def data(self) -> bytes:
    """The file's bytes."""
    return self._data

  def save(self, directory: str | os.PathLike[str]) -> None:
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_bytes(self._data)
    write_card(self, root, FILE)

  def __reduce__(self) -> tuple[Any, ...]:
    return _rebuild, (self._data, self.eos_id, not self.lossless)


def encode_segmented(
  texts: Sequence[str],
  encode_batch: Callable[[list[str]], list[list[int]]],
  *,
  whole: bool = False,
) -> list[list[int]]:
  """encode_batch over the texts, long ones cut, unless `whole` (each cut would begin a text)."""
  parts: list[str] = []
  owners: list[int] = []
  for i, text in enumerate(texts):
    utf8(text)  # some of the libraries replace a lone surrogate without a word
    for part in (text,) if whole or len(text) <= SEGMENT_CHARS else segments(text, SEGMENT_CHARS):
      parts.append(part)
      owners.append(i)
  encoded = encode_batch(parts) if parts else []
  if len(parts) == len(texts):
    return encoded
  out: list[list[int]] = [[] for _ in texts]
  for owner, ids in zip(owners, encoded, strict=True):
    out[owner].extend(ids)
  return out


def from_bpe_files(
  vocabulary: Path, merges: Path, *, eos: str | None = None
) -> HuggingFaceTokenizer:
  """Byte-level BPE with GPT-2's pattern (Radford et al. 2019) from its two published files."""
  tokenizers = _library()
  from tokenizers import decoders, models, pre_tokenizers

  try:
    built = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
  except Exception as e:
    raise UserError(f"{vocabulary}, {merges.name}: {e}; correct the tokenizer's path") from None
  built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  built.decoder = decoders.ByteLevel()
  eos = eos or next((name for name in _USUAL_EOS if built.token_to_id(name) is not None), None)
  if eos is not None:
    built.add_special_tokens([eos])
  return HuggingFaceTokenizer(built.to_str().encode(), eos=eos)


@functools.cache
def byte_characters() -> dict[str, int]:
  """Character → byte of the byte-level alphabet: a printable byte is itself, others follow 255."""
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  out, following = {}, 256
  for byte in range(256):
    if byte in printable:
      out[chr(byte)] = byte
    else:
      out[chr(following)] = byte
      following += 1
  return out


def _table(
  values: dict[str, Any], vocabulary: dict[str, int], size: int, lossy: bool
) -> list[bytes]:
  """The bytes of each id; ids that stand for no text have none."""
  # By name: the library gives other ids than the file where those leave a gap.
  added = {t["content"]: t for t in values.get("added_tokens") or []}
  kinds = set(_types(values.get("decoder")))
  fallback = bool(values["model"].get("byte_fallback")) or "ByteFallback" in kinds
  inner = values["model"].get("continuing_subword_prefix") if "WordPiece" in kinds else None
  if "ByteLevel" not in kinds and not fallback and not lossy:
    raise UserError(
      f"its pieces are not bytes ({values['model'].get('type', 'model')} with decoder"
      f" {', '.join(sorted(kinds)) or 'none'}), so that text would be lost; {_REMEDY}"
    )
  characters = byte_characters()
  table = [b""] * size
  for piece, i in vocabulary.items():
    if piece in added:
      table[i] = b"" if added[piece]["special"] else piece.encode()
    elif inner:  # a word's parts after the first are marked, and words stand apart
      table[i] = piece[len(inner) :].encode() if piece.startswith(inner) else f" {piece}".encode()
    elif fallback or "ByteLevel" not in kinds:
      is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
      table[i] = bytes([int(piece[3:5], 16)]) if is_byte else piece.replace(SPACE, " ").encode()
    elif all(c in characters for c in piece):
      table[i] = bytes([characters[c] for c in piece])
  return table


def _types(part: Any) -> Iterable[str]:
  if isinstance(part, dict):
    yield str(part.get("type"))
    for inner in part.get("decoders") or part.get("pretokenizers") or part.get("normalizers") or []:
      yield from _types(inner)


def _fingerprint(data: bytes, eos_id: int) -> str:
  return sha256(data + b"\0eos=%d" % eos_id)


def _rebuild(data: bytes, eos_id: int, lossy: bool) -> HuggingFaceTokenizer:
  return HuggingFaceTokenizer(data, eos=eos_id, lossy=lossy)


def _library() -> Any:
  # A fork after use would switch its threads off with a warning; jaxlm sets the number itself.
  os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
  try:
    import tokenizers
  except ImportError:
    raise UserError("tokenizers is not installed: pip install 'jaxlm[tokenizers]'") from None
  return tokenizers

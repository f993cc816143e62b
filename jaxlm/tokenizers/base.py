"""The tokenizer protocol, and the directory that a tokenizer is saved in.

    DIR/tokenizer.json    the card: {"kind", "file", "sha256", "vocab_size", "eos_id"}
    DIR/<file>            what the kind needs, if anything (tokenizer.model)

Every tokenizer of jaxlm is lossless: decode(encode(text)) == text for every text that is valid
Unicode, and no text can spell a control id such as EOS.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxlm.errors import UserError

CARD = "tokenizer.json"

# kind → module:class with a `load(directory, card)`; modules are imported only when asked for.
KINDS = {
  "sentencepiece": "jaxlm.tokenizers.sentencepiece:SentencePieceTokenizer",
  "byte": "jaxlm.tokenizers.byte:ByteTokenizer",
}


class Tokenizer(Protocol):
  """Text to ids and back. Ids are in [0, vocab_size); eos_id ends (and begins) a document."""

  kind: str

  @property
  def vocab_size(self) -> int: ...

  @property
  def eos_id(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """The ids of the text, without EOS. UserError for a lone surrogate (not valid Unicode)."""
    ...

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """[encode(t) for t in texts], on all cores where the backend can."""
    ...

  def decode(self, ids: Iterable[int]) -> str:
    """The text; control ids give nothing, bytes that are not UTF-8 give U+FFFD.

    Raises:
      UserError: an id is not in [0, vocab_size).
    """
    ...

  def token_bytes(self) -> np.ndarray:
    """UTF-8 bytes that each id stands for: int32, shape (vocab_size,); control ids have 0.

    Summed over the ids of a text it is len(text.encode()), hence bits per byte from token losses.
    """
    ...

  def fingerprint(self) -> str:
    """sha256 (hex) of all that decides the ids."""
    ...

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes the directory that `load_tokenizer` reads."""
    ...


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
  """Reads a directory written by `Tokenizer.save`.

  Raises:
    UserError: no card, an unknown kind, or a file that is missing or differs from its checksum.
  """
  root = Path(directory)
  file = root / CARD
  remedy = "make the dataset again with `python -m jaxlm.prepare`, or correct the path"
  try:
    card = json.loads(file.read_text(encoding="utf-8"))
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}: not a tokenizer's directory; {remedy}") from None
  except ValueError as e:
    raise UserError(f"{file}: not JSON ({e}); {remedy}") from None
  if not isinstance(card, dict):
    raise UserError(f"{file}: holds {type(card).__name__}, not an object; {remedy}")
  kind = card.get("kind")
  if not isinstance(kind, str) or kind not in KINDS:
    raise UserError(f"{file}: kind={kind!r} is not one of {sorted(KINDS)}; {remedy}")
  module, _, name = KINDS[kind].partition(":")
  tokenizer: Tokenizer = getattr(importlib.import_module(module), name).load(root, card)
  for key, found in (
    ("sha256", tokenizer.fingerprint()),
    ("vocab_size", tokenizer.vocab_size),
    ("eos_id", tokenizer.eos_id),
  ):
    if card.get(key) != found:
      raise UserError(
        f"{file}: {key} is {card.get(key)!r} but the tokenizer has {found!r}: it was changed or"
        f" damaged; {remedy}"
      )
  return tokenizer


def write_card(tokenizer: Tokenizer, directory: Path, file: str | None) -> None:
  """Writes DIR/tokenizer.json. file: the file beside it that `load` reads, if any."""
  card: dict[str, Any] = {
    "kind": tokenizer.kind,
    "file": file,
    "sha256": tokenizer.fingerprint(),
    "vocab_size": tokenizer.vocab_size,
    "eos_id": tokenizer.eos_id,
  }
  (directory / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def utf8(text: str) -> bytes:
  """text.encode(), with a UserError for what no UTF-8 file can hold."""
  try:
    return text.encode("utf-8")
  except UnicodeEncodeError as e:
    raise UserError(
      f"text holds a lone surrogate U+{ord(text[e.start]):04X} at character {e.start}, which is"
      " not valid Unicode; remove it or replace it by U+FFFD"
    ) from None


def join_bytes(table: Sequence[bytes], ids: Iterable[int]) -> bytes:
  """The bytes of the ids. table: bytes of each id."""
  values = [int(i) for i in ids]
  if values and not (min(values) >= 0 and max(values) < len(table)):
    bad = next(i for i in values if not 0 <= i < len(table))
    raise UserError(
      f"token id {bad} is not in [0, {len(table)}): the ids are of another tokenizer (or of the"
      " model's padded vocabulary)"
    )
  return b"".join([table[i] for i in values])

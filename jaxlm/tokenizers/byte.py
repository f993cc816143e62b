"""The byte tokenizer: id b is the byte b, and id 256 is EOS. Needs no training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.tokenizers.base import ByteTable, sha256, utf8, write_card

_TABLE = [bytes([b]) for b in range(256)] + [b""]


class ByteTokenizer(ByteTable):
  """256 bytes and EOS."""

  kind = "byte"
  vocab_size = 257
  eos_id = 256
  _table = _TABLE

  @classmethod
  def load(cls, directory: Path, card: dict[str, Any]) -> "ByteTokenizer":
    """There is nothing to read: the card says it all."""
    del directory, card
    return cls()

  def encode(self, text: str) -> list[int]:
    return list(utf8(text))

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def fingerprint(self) -> str:
    return sha256(b"jaxlm byte tokenizer: 0..255 = bytes, 256 = EOS")

  def save(self, directory: str | os.PathLike[str]) -> None:
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    write_card(self, root, None)

"""The byte tokenizer: id b is the byte b, and id 256 is EOS. Needs no training."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.tokenizers.base import join_bytes, sha256, utf8, write_card

_TABLE = [bytes([b]) for b in range(256)] + [b""]


class ByteTokenizer:
  """256 bytes and EOS."""

  kind = "byte"
  vocab_size = 257
  eos_id = 256

  @classmethod
  def load(cls, directory: Path, card: dict[str, Any]) -> "ByteTokenizer":
    """There is nothing to read: the card says it all."""
    del directory, card
    return cls()

  def encode(self, text: str) -> list[int]:
    return list(utf8(text))

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    return join_bytes(_TABLE, ids)

  def decode(self, ids: Iterable[int]) -> str:
    return self.decode_bytes(ids).decode("utf-8", "replace")

  def token_bytes(self) -> np.ndarray:
    out = np.ones(self.vocab_size, np.int32)
    out[self.eos_id] = 0
    return out

  def fingerprint(self) -> str:
    return sha256(b"jaxlm byte tokenizer: 0..255 = bytes, 256 = EOS")

  def save(self, directory: str | os.PathLike[str]) -> None:
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    write_card(self, root, None)

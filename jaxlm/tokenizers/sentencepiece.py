"""SentencePiece models (Kudo and Richardson 2018, arXiv:1808.06226), made lossless.

Two traps of the library are handled here:

- It writes a space as U+2581 inside, so a literal U+2581 in a text would come back as a space.
  Texts are cut at U+2581 and its three UTF-8 bytes are written as byte pieces; no escape character
  is needed, so nothing else can collide with it.
- `decode` of the library has the same flaw, so ids are turned into bytes by a table of our own.

Long texts are cut at line ends into segments of bounded size, which keeps the memory of the C++
encoder bounded. The cut is part of `encode` itself: a text always has the same ids.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import ByteTable, segments, settle_losses, sha256, utf8, write_card

FILE = "tokenizer.model"
SPACE = "\u2581"  # how the library writes a space inside
SEGMENT_CHARS = 1 << 16


class SentencePieceTokenizer(ByteTable):
  """A SentencePiece model with byte fallback.

  Args:
    model: the serialised model (the bytes of a .model file).
    lossy: take one that is not lossless; `lossless` tells.

  Raises:
    UserError: not a model, or one that is not lossless (no byte fallback, text normalisation, a
      dummy prefix, no piece for a space) or that has no EOS.
  """

  kind = "sentencepiece"

  def __init__(self, model: bytes, *, lossy: bool = False):
    self._model = model
    self.threads: int | None = None
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
      size = self._processor.vocab_size()
    except RuntimeError as e:
      raise UserError(f"not a SentencePiece model: {e}") from None
    if not size:
      raise UserError("not a SentencePiece model: it has no pieces")
    processor = self._processor
    self.vocab_size: int = size
    self.eos_id: int = processor.eos_id()
    self._table: list[bytes] = []
    byte_ids: dict[int, int] = {}
    for i in range(size):
      piece = processor.id_to_piece(i)
      if processor.is_byte(i):
        value = int(piece[1:-1], 16)  # <0x0A>
        byte_ids[value] = i
        self._table.append(bytes([value]))
      elif processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i):
        self._table.append(b"")
      else:
        self._table.append(piece.replace(SPACE, " ").encode())
    remedy = "train it with jaxlm's settings (`python -m jaxlm.prepare`)"
    if self.eos_id < 0 or not processor.is_control(self.eos_id):
      raise UserError(f"the SentencePiece model has no EOS control symbol; {remedy}")
    remedy += ", or name it as lossy:PATH to accept it"
    if len(byte_ids) != 256 and not lossy:
      raise UserError(f"the SentencePiece model has no byte fallback; {remedy}")
    self._space_ids = [byte_ids.get(b, -1) for b in SPACE.encode()]
    settle_losses(self, lambda: self._check(remedy), lossy=lossy)

  def _check(self, remedy: str) -> None:
    # Without a piece for it, a space would fall back to the bytes of U+2581, three for one.
    # The other probes: normalisation (ﬁ, full-width A), dropped or added spaces, line ends.
    for probe in (" ", " a  b \n\n c ", "ﬁ Ａ\r\n\t\0", "a", SPACE):
      if self.decode(self.encode(probe)) != probe:
        raise UserError(f"the SentencePiece model is not lossless on {probe!r}; {remedy}")

  @classmethod
  def load(cls, directory: Path, card: dict[str, Any]) -> "SentencePieceTokenizer":
    """Reads the model that the card names."""
    file = directory / Path(str(card.get("file") or FILE)).name
    remedy = "make the dataset again with `python -m jaxlm.prepare`"
    try:
      model = file.read_bytes()
    except OSError as e:
      raise UserError(f"{file}: {e.strerror or e}; {remedy}") from None
    if sha256(model) != card.get("sha256"):
      raise UserError(f"{file}: its bytes changed (sha256 differs from tokenizer.json); {remedy}")
    return cls(model, lossy=card.get("lossless") is False)

  def encode(self, text: str) -> list[int]:
    return self._encode([text], threads=1)[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    # The library's own C++ threads: no processes, and the GIL is released.
    threads = self.threads or os.cpu_count() or 1
    return self._encode(texts, min(len(texts), threads) or 1)

  def _encode(self, texts: Sequence[str], threads: int) -> list[list[int]]:
    return self.encode_with(
      texts, lambda parts: self._processor.encode(parts, num_threads=threads) if parts else []
    )

  def encode_with(
    self, texts: Sequence[str], encode_batch: Callable[[list[str]], list[list[int]]]
  ) -> list[list[int]]:
    """encode_batch over the segments of the texts; shared with accelerators, which must agree."""
    parts: list[str] = []
    owners: list[int] = []  # of each segment, the text; -1 - text for a literal U+2581
    for i, text in enumerate(texts):
      # Each segment of a lossy one might begin with a space of its own.
      for part in _segments(text) if self.lossless else (text,):
        owners.append(-1 - i if part is None else i)
        if part is not None:
          parts.append(part)
    try:
      encoded = iter(encode_batch(parts))
    except (RuntimeError, TypeError, UnicodeError):
      for text in texts:
        utf8(text)  # raises the UserError when a lone surrogate was the cause
      raise
    out: list[list[int]] = [[] for _ in texts]
    for owner in owners:
      if owner < 0:
        out[-1 - owner].extend(self._space_ids)
      else:
        out[owner].extend(next(encoded))
    return out

  def normalize(self, text: str) -> str:
    """The text; of a lossy tokenizer, what comes back."""
    return text if self.lossless else self.decode(self.encode(text))

  def fingerprint(self) -> str:
    return sha256(self._model)

  @property
  def model(self) -> bytes:
    """The serialised model."""
    return self._model

  def save(self, directory: str | os.PathLike[str]) -> None:
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_bytes(self._model)
    write_card(self, root, FILE)

  # The C++ object cannot be pickled; its model can.
  def __reduce__(self) -> tuple[Any, ...]:
    return _rebuild, (self._model, not self.lossless)


def _rebuild(model: bytes, lossy: bool) -> SentencePieceTokenizer:
  return SentencePieceTokenizer(model, lossy=lossy)


def _segments(text: str) -> Iterator[str | None]:
  """The text in pieces of at most SEGMENT_CHARS, cut at line ends; None is a literal U+2581."""
  for n, part in enumerate(text.split(SPACE)):
    if n:
      yield None
    yield from segments(part, SEGMENT_CHARS)

"""Faster encoders for a tokenizer, used only after they gave its very ids.

    tiktoken    byte-level BPE of a tokenizer.json, its merges read as ranks
    fastokens   a tokenizer.json
    gigatoken   a tokenizer.json, or a SentencePiece BPE model with byte fallback

They are young or approximate, so none is trusted: `accelerate` compares ids with the reference on
documents of the corpus at hand, and one difference refuses the encoder. What the tokenizer is (its
file, hash, decode) stays the reference's; datasets do not depend on which one encoded them.
"""

import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer, is_lossless, set_threads
from jaxlm.tokenizers.config import Accelerator
from jaxlm.tokenizers.encoders import BUILD

MIN_DOCUMENTS = 1000  # that must agree before an encoder is used
# Callers compare so many, the beginning of each; one in 256 documents is compared whole later on.
SAMPLE_DOCUMENTS, SAMPLE_CHARS = 1000, 1 << 14
_BATCH_CHARS = 1 << 20


# fastest first, but gigatoken last: its cache of pieces grows with the text
_ORDER = (Accelerator.FASTOKENS, Accelerator.TIKTOKEN, Accelerator.GIGATOKEN)


class AcceleratedTokenizer:
  """The reference with another encoder. Attributes: reference, name (of the encoder)."""

  def __init__(self, reference: Any, name: str):
    self.reference, self.name = reference, name
    self.kind: str = reference.kind
    self.vocab_size: int = reference.vocab_size
    self.eos_id: int = reference.eos_id
    self.lossless: bool = is_lossless(reference)
    self._threads: int | None = None
    self._encode_batch = BUILD[Accelerator(name)](reference)

  @property
  def threads(self) -> int | None:
    return self._threads

  @threads.setter
  def threads(self, value: int | None) -> None:
    self._threads = value
    set_threads(self.reference, value)

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    encode = self._encode_batch
    if self._threads == 1:
      return self.reference.encode_with(texts, lambda parts: [encode([p])[0] for p in parts])
    return self.reference.encode_with(texts, encode)

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    return self.reference.decode_bytes(ids)

  def decode(self, ids: Iterable[int]) -> str:
    return self.reference.decode(ids)

  def token_bytes(self) -> np.ndarray:
    return self.reference.token_bytes()

  def fingerprint(self) -> str:
    return self.reference.fingerprint()

  def normalize(self, text: str) -> str:
    normalize = getattr(self.reference, "normalize", None)
    return text if normalize is None else normalize(text)

  def save(self, directory: str | os.PathLike[str]) -> None:
    self.reference.save(Path(directory))

  def __reduce__(self) -> tuple[Any, ...]:
    return type(self), (self.reference, self.name)


def accelerate(
  reference: Tokenizer,
  wanted: Accelerator,
  documents: Callable[[], Iterable[str]],
  say: Callable[[str], None] = lambda _: None,
  *,
  min_documents: int = MIN_DOCUMENTS,
) -> tuple[Any, dict[str, Any]]:
  """The tokenizer to encode with, and the record of how it was chosen.

  Args:
    documents: texts of the corpus, at least min_documents of them; called once for each encoder.
    say: told of each encoder that was refused, and of the one in use.

  Returns:
    (tokenizer, {"accelerator", "version", "documents", "bytes", "equal", "tried": [...]}); of one
    that was refused, `tried` holds the reason or the first difference.

  Raises:
    UserError: an encoder was named that is not installed, does not fit, or differs.
  """
  record: dict[str, Any] = {"accelerator": None, "documents": 0, "equal": None, "tried": []}
  if wanted is Accelerator.NONE or (
    wanted is Accelerator.AUTO and reference.kind not in ("huggingface", "sentencepiece")
  ):
    return reference, record
  named = wanted is not Accelerator.AUTO
  for one in (wanted,) if named else _ORDER:
    result: dict[str, Any] = {"name": one.value}
    try:
      fast = AcceleratedTokenizer(reference, one.value)
      result["version"] = importlib.metadata.version(one.value)
      result |= compare(reference, fast, documents())
      if result["equal"] and result["documents"] < min_documents:
        raise UserError(
          f"{one.value}: compared on {result['documents']} documents, {min_documents} are needed"
        )
    except ImportError:
      if named:
        raise UserError(
          f"{one.value} is not installed: pip install 'jaxlm[fast-tokenizers]', or set"
          " tokenizer.accelerator=NONE"
        ) from None
      continue
    except UserError as e:
      if named:
        raise UserError(f"{e}; set tokenizer.accelerator=NONE") from None
      record["tried"].append({**result, "refused": str(e)})
      continue
    if not result["equal"]:
      line = f"{one.value} is refused: {_describe(result['difference'])}"
      if named:
        raise UserError(f"{line}; set tokenizer.accelerator=NONE")
      say(f"{line}; the reference goes on")
      record["tried"].append({**result, "refused": "other ids"})
      continue
    say(f"{one.value}: the same ids on {result['documents']:,} documents; it encodes")
    return fast, {**record, **result, "accelerator": one.value}
  return reference, record


def compare(reference: Tokenizer, fast: Tokenizer, documents: Iterable[str]) -> dict[str, Any]:
  """{"documents", "bytes", "equal", "difference"?}: ids of both, document by document."""
  count = size = 0
  probes = [*_probes(reference)]
  for number, batch in enumerate(_batches(probes, documents)):
    try:
      found = fast.encode_batch(batch)
    except UserError:
      raise
    except BaseException as e:  # a Rust panic is not an Exception
      if isinstance(e, KeyboardInterrupt | SystemExit):
        raise
      return {
        "documents": count,
        "bytes": size,
        "equal": False,
        "difference": {"text": batch[0][:60], "error": f"{type(e).__name__}: {e}"},
      }
    for text, ours, theirs in zip(batch, reference.encode_batch(batch), found, strict=True):
      if list(ours) != list(theirs):
        return {
          "documents": count,
          "bytes": size,
          "equal": False,
          "difference": _difference(reference, text, list(ours), list(theirs)),
        }
      if number:  # the probes, batch 0, are no documents of the corpus
        count += 1
        size += len(text.encode())
  return {"documents": count, "bytes": size, "equal": True}


def _probes(reference: Any) -> Iterator[str]:
  """Names of special symbols, which must stay text, and what encoders are known to differ on."""
  values = getattr(reference, "values", None) or {}
  for token in values.get("added_tokens") or []:
    yield token["content"]
    yield f"a {token['content']}b"
  yield from ("", " ", "</s><s><unk>", "<|endoftext|>", "\u2581", " \u2581 ", "e\u0301", "ﬁ Ａ")
  yield from ("\0", "a\r\n\r\n  b\t", "12345678 1,234.5", "I'll WE'LL don't", "x" * 3000)
  yield from ("日本語 हिन्दी", "👩\u200d👩\u200d👧 🇫🇷")


def _batches(probes: list[str], documents: Iterable[str]) -> Iterator[list[str]]:
  yield probes
  batch: list[str] = []
  size = 0
  for text in documents:
    batch.append(text)
    size += len(text)
    if size >= _BATCH_CHARS:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def _difference(
  reference: Tokenizer, text: str, ours: list[int], theirs: list[int]
) -> dict[str, Any]:
  at = next(
    (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs))
  )
  return {
    "text": reference.decode(ours[max(0, at - 4) : at + 4]) or text[:40],
    "token": at,
    "reference": ours[at : at + 4],
    "found": theirs[at : at + 4],
  }


def _describe(difference: dict[str, Any]) -> str:
  if "error" in difference:
    return f"it failed on {difference['text']!r}: {difference['error']}"
  return (
    f"other ids at token {difference['token']} near {difference['text']!r}:"
    f" {difference['found']} for {difference['reference']}"
  )

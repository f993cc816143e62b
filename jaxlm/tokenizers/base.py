"""The tokenizer protocol, and the directory that a tokenizer is saved in.

    DIR/tokenizer.json    the card: {"kind", "file", "sha256", "vocab_size", "eos_id"}
    DIR/<file>            what the kind needs, if anything (tokenizer.model)

Every tokenizer of jaxlm is lossless: decode(encode(text)) == text for every text that is valid
Unicode (of one whose own rules normalise text, for every text in that form: see `normalized`), and
no text can spell a control id such as EOS.

Published ones that are not (a space in front of every text, as Llama 2's; lower case, as BERT's)
serve the checkpoints that came with them. Data is prepared with one only where it is named as
lossy:PATH; what is lost then is lost from the data, and there are no bits per byte.

`load_tokenizer` also opens what others publish: a Hugging Face tokenizer.json or its folder, a
SentencePiece .model, tiktoken ranks, GPT-2's vocabulary and merges (see tokenizers/foreign.py).
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxlm.errors import UserError

CARD = "tokenizer.json"
LOSSY = "lossy:"  # before a path: a tokenizer that is not lossless is accepted for data

# kind → module:class with a `load(directory, card)`; modules are imported only when asked for.
KINDS = {
  "sentencepiece": "jaxlm.tokenizers.sentencepiece:SentencePieceTokenizer",
  "huggingface": "jaxlm.tokenizers.huggingface:HuggingFaceTokenizer",
  "tiktoken": "jaxlm.tokenizers.tiktoken:TiktokenTokenizer",
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

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    """The UTF-8 bytes that the ids stand for; an id may hold a part of a character."""
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


def load_tokenizer(
  directory: str | os.PathLike[str], *, eos: str | None = None, lossy: bool = False
) -> Tokenizer:
  """Reads a directory written by `Tokenizer.save`, or a published tokenizer.

  Args:
    directory: the directory, or a published tokenizer's file or folder. lossy:PATH accepts one that
      is not lossless, and what is saved of it says so: it opens without `lossy` from then on.
    eos: of a published tokenizer, the symbol that ends a document, where its files do not tell.
    lossy: take one that is not lossless, to use what was made with it.

  Raises:
    UserError: no card, an unknown kind, a file that is missing or differs from its checksum, or a
      tokenizer that is not lossless.
  """
  path = os.fspath(directory)
  accepted = path.startswith(LOSSY)
  tokenizer = _load(Path(path.removeprefix(LOSSY)), eos, lossy or accepted)
  if accepted and isinstance(tokenizer, ByteTable) and not tokenizer.lossless:
    tokenizer.accepted = True
  return tokenizer


def _load(root: Path, eos: str | None, lossy: bool) -> Tokenizer:
  from jaxlm.tokenizers.foreign import open_foreign

  published = open_foreign(root, eos, lossy=lossy)
  if published is not None:
    return published
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
  if not (lossy or is_lossless(tokenizer) or card.get("accepted")):
    raise UserError(
      f"{root}: text does not come back from this tokenizer as it was (it adds, drops or changes"
      f" characters): prepare data with another one, or name it as {LOSSY}{root} to accept that"
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
  if not is_lossless(tokenizer):
    card |= {"lossless": False, "accepted": getattr(tokenizer, "accepted", False)}
  (directory / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def is_lossless(tokenizer: Tokenizer) -> bool:
  """Whether text comes back from its ids; see the module's docstring."""
  return getattr(tokenizer, "lossless", True)


def normalized(tokenizer: Tokenizer, text: str) -> str:
  """What decode(encode(text)) gives: the text itself, or its form under the tokenizer's own rules.

  Published tokenizers may begin with NFC; their `normalize` tells. jaxlm trains none of that sort.
  """
  normalize = getattr(tokenizer, "normalize", None)
  return text if normalize is None else normalize(text)


def set_threads(tokenizer: Tokenizer, threads: int | None) -> None:
  """Bounds the threads of encode_batch (None: all cores), for processes beside each other."""
  if hasattr(tokenizer, "threads"):
    tokenizer.threads = threads


def segments(text: str, limit: int) -> Iterator[str]:
  """The text in pieces of at most `limit` characters, cut at line ends where there are any."""
  start = 0
  while len(text) - start > limit:
    end = text.rfind("\n", start, start + limit) + 1 or start + limit
    yield text[start:end]
    start = end
  if start < len(text):
    yield text[start:]


def check_lossless(tokenizer: Tokenizer, symbols: Iterable[str], remedy: str) -> None:
  """UserError unless the tokenizer gives back texts that are easily lost.

  The probes: spaces and line ends, compatibility characters, decomposed accents, U+2581 (how
  SentencePiece writes a space), no letter at all, and the names of its own `symbols`.
  """
  hard = (" ", " a  b \n\n c ", "ﬁ Ａ\r\n\t\0", "e\u0301 é", "a", "\u2581", "日本 👍🏽", "x </s> y")
  for probe in (*hard, *symbols):
    ids = tokenizer.encode(probe)
    if tokenizer.decode(ids) != normalized(tokenizer, probe):
      raise UserError(f"the {tokenizer.kind} tokenizer is not lossless on {probe!r}; {remedy}")
    if tokenizer.eos_id in ids:
      raise UserError(f"the {tokenizer.kind} tokenizer makes EOS of the text {probe!r}; {remedy}")


def settle_losses(tokenizer: "ByteTable", check: Callable[[], None], *, lossy: bool) -> None:
  """Runs a check like check_lossless; with `lossy`, what fails is marked as not lossless."""
  try:
    check()
  except UserError:
    one: Any = tokenizer
    # Lossy or not, a text never ends a document.
    if not lossy or any(one.eos_id in one.encode(text) for text in ("x </s> y", "[SEP] <eos>")):
      raise
    tokenizer.lossless = False
    tokenizer.adds_space = one.decode_bytes(one.encode("a")).startswith(b" ")


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


class ByteTable:
  """Decoding by a table of the bytes of each id, `_table`.

  Attributes:
    lossless: see the module's docstring.
    accepted: of one that is not: data may be prepared with it.
    adds_space: `encode` puts a space before the text.
  """

  _table: list[bytes]
  lossless: bool = True
  accepted: bool = False
  adds_space: bool = False

  def decode_bytes(self, ids: Iterable[int]) -> bytes:
    return join_bytes(self._table, ids)

  def decode(self, ids: Iterable[int]) -> str:
    data = self.decode_bytes(ids)
    if self.adds_space:  # decode_bytes keeps it: what continues a text begins with its own
      data = data.removeprefix(b" ")
    return data.decode("utf-8", "replace")

  def token_bytes(self) -> np.ndarray:
    return np.array([len(b) for b in self._table], np.int32)


def join_bytes(table: Sequence[bytes], ids: Iterable[int]) -> bytes:
  """The bytes of the ids. table: bytes of each id."""
  values = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
  if values and not (min(values) >= 0 and max(values) < len(table)):
    bad = next(i for i in values if not 0 <= i < len(table))
    raise UserError(
      f"token id {bad} is not in [0, {len(table)}): the ids are of another tokenizer (or of the"
      " model's padded vocabulary)"
    )
  return b"".join([table[i] for i in values])

"""Drops exact duplicates and chooses the held-out documents, by hashes of content.

The choice depends on the seed and each document's own text, not on order or names, so that no
held-out text can also be in the training split under another name.
"""

import dataclasses
import hashlib
from collections.abc import Iterable

from jaxlm.data.prep.documents import Document, Spool
from jaxlm.errors import UserError

MIN_BYTES = 64  # of a corpus: with less there is nothing to learn or to hold out
_WHOLE_DOCUMENT_SHARE = 0.1  # of the corpus that a single held-out document may take


@dataclasses.dataclass
class Collected:
  """digests: one a text of the spool, in its order. duplicates, duplicate_bytes: dropped."""

  digests: list[bytes]
  duplicates: int = 0
  duplicate_bytes: int = 0


@dataclasses.dataclass
class Splits:
  """Spool indices of each split. cut_document: True: the held-out text is the end of a document."""

  train: list[int]
  heldout: list[int]
  cut_document: bool


def collect(documents: Iterable[Document], spool: Spool) -> Collected:
  """Writes all distinct documents to the spool.

  Documents that differ only in white space at their two ends count as the same.
  """
  found = Collected([])
  seen: set[bytes] = set()
  for document in documents:
    data = document.text.encode()
    digest = hashlib.sha256(data.strip()).digest()[:16]
    if digest in seen:
      found.duplicates += 1
      found.duplicate_bytes += len(data)
      continue
    seen.add(digest)
    spool.add(data, document.label())
    found.digests.append(digest)
  return found


def split(spool: Spool, digests: list[bytes], fraction: float, max_bytes: int, seed: int) -> Splits:
  """Holds out whole documents, or the end of the longest one where there are too few.

  Args:
    fraction: share of the bytes to hold out. max_bytes: never more than this.

  Raises:
    UserError: there is too little text.
  """
  total = sum(spool.size(i) for i in range(len(spool)))
  if total < MIN_BYTES:
    raise UserError(
      f"only {total} bytes of text were found, at least {MIN_BYTES} are needed; see which files"
      " were skipped above, and correct --config.source"
    )
  target = min(max(1, int(fraction * total)), max_bytes)
  largest = min(max(2 * target, int(_WHOLE_DOCUMENT_SHARE * total)), max_bytes)
  order = sorted(range(len(spool)), key=lambda i: _rank(seed, digests[i]))
  heldout: list[int] = []
  taken = 0
  for i in order:
    if taken >= target:
      break
    if taken + spool.size(i) <= largest:
      heldout.append(i)
      taken += spool.size(i)
  if heldout:
    chosen = set(heldout)
    return Splits([i for i in order if i not in chosen], heldout, cut_document=False)
  longest = max(order, key=spool.size)
  tail = spool.cut(longest, _cut_at(spool.read(longest), target))
  return Splits(order, [tail], cut_document=True)


def _rank(seed: int, digest: bytes) -> bytes:
  return hashlib.sha256(seed.to_bytes(8, "little") + digest).digest()


def _cut_at(data: bytes, tail: int) -> int:
  """Where to cut so that about `tail` bytes, and at most that, remain behind the cut.

  After the first line end that leaves no more than `tail`; else after a blank, else at a character.
  Both parts hold at least one byte.
  """
  earliest = max(1, len(data) - tail)
  # A line end only if it leaves at least a quarter of what was asked for.
  latest = max(earliest, len(data) - max(1, tail // 4))
  for mark in (b"\n", b" "):
    at = data.find(mark, earliest - 1, latest) + 1
    if 0 < at < len(data):
      return at
  at = earliest
  while at < len(data) and data[at] & 0xC0 == 0x80:  # inside of a UTF-8 character
    at += 1
  if at < len(data):
    return at
  at = earliest
  while data[at] & 0xC0 == 0x80:  # the last character is longer than the tail
    at -= 1
  return at

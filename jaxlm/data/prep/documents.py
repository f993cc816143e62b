"""Documents, the corpora that yield them, and the spool that keeps them between two passes."""

import array
import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

MAX_NAMED = 20  # files that a report names of each kind of problem


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
  """id: where it came from, for people (a path, path:line or path#row). text: valid Unicode.

  origin: what is known of it, JSON values, absent where unknown. Of all sources: id (its own), url,
    date (ISO 8601), licence (SPDX), language (ISO 639-1), title, format ("html" for a page that is
    not yet extracted, "code"). A source may have more.
  """

  id: str
  text: str
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def label(self) -> str:
    """JSON of all that names it, kept beside the shards."""
    return json.dumps({"id": self.id, **self.origin}, ensure_ascii=False)


class Counts:
  """What became of every file and document of a corpus.

  files_read: files that text was taken from. skipped: reason → number (of files or documents).
  named: reason → the first MAX_NAMED names. unknown_extensions: extension → files in folders.
  met: records met, counted before anything is decided about them, so that one which is neither
    skipped nor a document shows; None: the corpus does not count them.
  other: what belongs to the format and is no document (requests in a WARC) → number.
  """

  def __init__(self) -> None:
    self.files_read = 0
    self.met: int | None = None
    self.skipped: collections.Counter[str] = collections.Counter()
    self.named: dict[str, list[str]] = {}
    self.unknown_extensions: collections.Counter[str] = collections.Counter()
    self.other: collections.Counter[str] = collections.Counter()

  def meet(self, records: int = 1) -> None:
    self.met = (self.met or 0) + records

  def skip(self, reason: str, name: str) -> None:
    self.skipped[reason] += 1
    names = self.named.setdefault(reason, [])
    if len(names) < MAX_NAMED:
      names.append(name)

  def add(self, more: "Counts") -> None:
    """Adds the counts of another part of the same corpus."""
    self.files_read += more.files_read
    if more.met is not None:
      self.meet(more.met)
    self.skipped += more.skipped
    self.unknown_extensions += more.unknown_extensions
    self.other += more.other
    for reason, names in more.named.items():
      mine = self.named.setdefault(reason, [])
      mine += names[: MAX_NAMED - len(mine)]


class Corpus(Protocol):
  """An ordered stream of documents; the order depends on nothing but their content and names."""

  counts: Counts

  def fingerprint(self) -> str:
    """sha256 (hex) that changes when files are added, removed or changed; cheap to compute."""
    ...

  def documents(self) -> Iterator[Document]:
    """Streams the documents and fills `counts`; memory does not grow with the corpus."""
    ...


class Spool:
  """Texts in one temporary file, read back at random: sources are read once, and memory is bounded.

  Indices are positions in the order of `add`; `cut` makes two of one.
  """

  def __init__(self, file: Path):
    self._file = file.open("w+b")
    self._starts = array.array("Q")
    self._sizes = array.array("Q")
    self._labels: list[str] = []

  def __len__(self) -> int:
    return len(self._sizes)

  def __enter__(self) -> "Spool":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._file.close()

  def add(self, data: bytes, label: str = "{}") -> int:
    """Appends a UTF-8 text with what names it (a line of JSON); returns its index."""
    self._labels.append(label)
    self._starts.append(self._file.seek(0, 2))
    self._sizes.append(len(data))
    self._file.write(data)
    return len(self) - 1

  def size(self, i: int) -> int:
    """Bytes of text i."""
    return self._sizes[i]

  def label(self, i: int) -> str:
    """What names text i."""
    return self._labels[i]

  def read(self, i: int) -> bytes:
    """The UTF-8 bytes of text i."""
    self._file.seek(self._starts[i])
    return self._file.read(self._sizes[i])

  def cut(self, i: int, at: int) -> int:
    """Text i keeps its first `at` bytes; the rest becomes a new text, whose index is returned."""
    assert 0 < at < self._sizes[i]
    self._starts.append(self._starts[i] + at)
    self._sizes.append(self._sizes[i] - at)
    self._sizes[i] = at
    self._labels.append(self._labels[i])
    return len(self) - 1

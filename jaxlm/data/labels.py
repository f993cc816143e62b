"""What names a shard's documents, a line of JSON each, in a file beside it."""

import gzip
from pathlib import Path
from typing import BinaryIO

LABELS = ".ids.jsonl.gz"  # in place of .bin


class LabelWriter:
  """Lines of FILE, written as they come: a shard of short documents has millions of them."""

  _BLOCK = 4096

  def __init__(self, file: Path):
    self._file = file
    self._temporary = file.with_name(file.name + ".tmp")
    self._raw: BinaryIO | None = None
    self._lines: list[str] = []
    self.count = 0

  def add(self, line: str) -> None:
    self._lines.append(f"{line}\n")
    self.count += 1
    if len(self._lines) == self._BLOCK:
      self._flush()

  def _flush(self) -> None:
    if self._raw is None:
      self._raw = self._temporary.open("wb")
      # No time and no name inside: the same documents give the same bytes.
      self._out = gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0)
    self._out.write("".join(self._lines).encode("utf-8", errors="replace"))
    self._lines.clear()

  def finish(self) -> None:
    """The file takes its name."""
    self._flush()
    assert self._raw is not None
    self._out.close()
    self._raw.close()
    self._temporary.replace(self._file)

  def abort(self) -> None:
    if self._raw is not None:
      self._out.close()
      self._raw.close()
      self._temporary.unlink(missing_ok=True)

"""CSV and TSV files: a row is a document."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source, damaged, open_bytes
from jaxlm.data.stages.sources.config import TableSourceConfig
from jaxlm.errors import UserError

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")


class TableSource(Source[TableSourceConfig]):
  """Rows with the columns that the config names; those of another width are counted."""

  extensions = tuple(f".{kind}{packed}" for kind in ("csv", "tsv") for packed in _PACKED)

  def read(self, file: Path) -> Iterator[Document]:
    csv.field_size_limit(sys.maxsize)  # its own limit is 128 KiB
    delimiter = self.config.delimiter or ("\t" if ".tsv" in "".join(file.suffixes) else ",")
    with open_bytes(file) as stream:
      rows = csv.reader(_lines(stream, file), delimiter=delimiter, strict=True)
      try:
        head = next(rows, None)
        if head is None:
          self.counts.meet()
          self.counts.skip("empty file", str(file))
          return
        at = self._columns(head, file)
        for row in rows:
          if row:
            yield from self._row(row, len(head), at, f"{file}:{rows.line_num}")
      except csv.Error as error:
        raise damaged(file, f"line {rows.line_num}: {error}") from None

  def _columns(self, head: list[str], file: Path) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    wanted = [("", name) for name in self.config.text_columns]
    for key, name in [*wanted, *self.config.columns.items()]:
      if name not in head:
        has = ", ".join(head)[:200]
        raise UserError(f"{file}: no column {name!r} (it has: {has}); correct the source's columns")
      places.setdefault(key, []).append(head.index(name))
    return places

  def _row(
    self, row: list[str], width: int, at: dict[str, list[int]], where: str
  ) -> Iterator[Document]:
    self.counts.meet()
    if len(row) != width:
      self.counts.skip("another number of fields", where)
      return
    values = {key: "\n\n".join(row[i] for i in places if row[i]) for key, places in at.items()}
    try:
      for value in values.values():
        value.encode()
    except UnicodeEncodeError:  # what _lines could not decode
      self.undecodable(where, "not UTF-8")
      return
    if not values[""].strip():
      self.counts.skip("empty", where)
      return
    yield Document(where, values.pop(""), values)


def _lines(stream: object, file: Path) -> Iterator[str]:
  first = True
  for line in stream:  # type: ignore[attr-defined]
    if first and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
      raise UserError(f"{file}: UTF-16; convert it to UTF-8")
    if b"\0" in line:
      raise UserError(f"{file}: binary, or not UTF-8 (it holds NUL bytes); convert or remove it")
    yield line.decode("utf-8-sig" if first else "utf-8", "surrogateescape")
    first = False

"""Reads files and folders as documents: plain text, code, .jsonl, .parquet, compressed or not."""

import datetime
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep import files
from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.prep.documents import Counts, Document
from jaxlm.errors import UserError

_BOM = b"\xef\xbb\xbf"
_BOM_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class TextCorpus:
  """The documents below config.paths: paths in the order given, the files of a folder sorted.

  Args:
    strict: a file that can not be decoded is a UserError, not a counted skip.
    exclude: a directory that is not read.

  Raises:
    UserError: a path does not exist; a record of a .jsonl or .parquet file is broken or lacks the
      text field (with file and line).
  """

  def __init__(self, config: TextSourceConfig, *, strict: bool, exclude: str):
    self._config = config
    self._strict = strict
    self._exclude = Path(exclude).resolve()
    self._extra = frozenset(e.lower().lstrip(".") for e in config.extra_extensions)
    self.counts = Counts()
    for path in config.paths:
      if not Path(path).expanduser().exists():
        raise UserError(f"{path}: no such file or folder; correct --config.source.paths")

  def _files(self, counts: Counts) -> Iterator[tuple[Path, str]]:
    """(file, kind) of all files to read, each once."""
    seen: set[Path] = set()
    for name in self._config.paths:
      root = Path(name).expanduser()
      if root.is_dir():
        walked = Counts()
        for path in files.walk(root, self._exclude, walked):
          kind = files.kind_of(path.name, self._extra)
          if kind is None:
            walked.skip("extension", str(path))
            walked.unknown_extensions[path.suffix.lower() or "(none)"] += 1
          elif path not in seen:
            seen.add(path)
            yield path, kind
        walked.meet(sum(walked.skipped.values()))
        counts.add(walked)
      elif not root.is_file():
        raise UserError(f"{name}: not a regular file or folder; correct --config.source.paths")
      elif root not in seen:
        seen.add(root)
        yield root, files.kind_of(root.name, self._extra) or "text"

  def fingerprint(self) -> str:
    """Of the names, sizes and modification times of the files (content is not read)."""
    digest = hashlib.sha256()
    for path, kind in self._files(Counts()):
      info = path.stat()
      digest.update(
        f"{path}\0{kind}\0{info.st_size}\0{info.st_mtime_ns}\n".encode(errors="replace")
      )
    return digest.hexdigest()

  def documents(self) -> Iterator[Document]:
    read = {"text": self._read_text, "jsonl": self._read_jsonl, "parquet": self._read_parquet}
    left = self._config.max_bytes
    for path, kind in self._files(self.counts):
      used = False
      for document in read[kind](path):
        size = len(document.text.encode())
        if not document.text.strip():
          self.counts.skip("empty", document.id)
          continue
        if size < self._config.min_doc_bytes:
          self.counts.skip("too small", document.id)
          continue
        if left is not None:
          if left <= 0:
            self.counts.files_read += used
            return
          left -= size
        used = True
        yield document
      self.counts.files_read += used

  def _undecodable(self, where: str, why: str) -> None:
    if self._strict:
      raise UserError(
        f"{where}: {why}; convert it to UTF-8, or set --config.strict=false to skip it"
      )
    self.counts.skip("undecodable", where)

  def _read_text(self, path: Path) -> Iterator[Document]:
    separator = self._config.document_separator
    offset = 0
    try:
      with files.open_stream(path) as stream:
        n = 0
        for data in files.pieces(
          stream, separator.encode() if separator else None, self._config.max_doc_bytes
        ):
          where = str(path) if not n else f"{path}#{n}"
          self.counts.meet()
          if not n and data[:2] in _BOM_UTF16:
            yield from self._read_utf16(path)
            return
          if not n and b"\0" in data[:8192]:
            self.counts.skip("binary", where)
            return
          if not n:
            data = data.removeprefix(_BOM)
          if not data:
            self.counts.skip("empty", where)
          try:
            text = data.decode()
          except UnicodeDecodeError as e:
            self._undecodable(where, f"not UTF-8 at byte {offset + e.start}")
          else:
            if data:
              yield Document(where, text)
          n += 1
          offset += len(data) + len(separator.encode() if separator else b"")
        if not n:
          self.counts.meet()
          self.counts.skip("empty", str(path))
    except files.BROKEN_STREAM as e:
      self.counts.meet()
      if isinstance(e, PermissionError):
        self.counts.skip("unreadable", str(path))
      else:
        self._undecodable(str(path), f"can not be read to its end ({e})")

  def _read_utf16(self, path: Path) -> Iterator[Document]:
    """A UTF-16 file (it begins with a byte order mark); such files are small, so read at once."""
    with files.open_stream(path) as stream:
      data = stream.read()
    try:
      text = data.decode("utf-16")
    except UnicodeDecodeError as e:
      self._undecodable(str(path), f"not UTF-16 at byte {e.start}")
      return
    for n, start in enumerate(range(0, len(text), self._config.max_doc_bytes // 4)):
      part = text[start : start + self._config.max_doc_bytes // 4]
      self.counts.meet(1 if n else 0)  # its beginning was met by _read_text
      yield Document(f"{path}#{n}" if n else str(path), part)

  def _read_jsonl(self, path: Path) -> Iterator[Document]:
    field = self._config.text_field
    number = 0
    try:
      with files.open_stream(path) as stream:
        for line in files.lines(stream, path):
          number += 1
          if not line.strip():
            continue
          where = f"{path}:{number}"
          self.counts.meet()
          try:
            record = json.loads(line.removeprefix(_BOM))
          except ValueError as e:  # also what is not UTF-8
            raise UserError(
              f"{where}: not a JSON object ({e}); correct or remove the line"
            ) from None
          yield from self._record(where, record, field)
    except files.BROKEN_STREAM as e:
      raise UserError(f"{path}: can not be read after line {number} ({e})") from None

  def _record(self, where: str, record: object, field: str) -> Iterator[Document]:
    if not isinstance(record, dict):
      raise UserError(f"{where}: {type(record).__name__}, not a JSON object; correct the line")
    if field not in record:
      raise UserError(
        f"{where}: no field {field!r} (it has: {', '.join(map(str, record)) or 'none'}); set"
        " --config.source.text_field"
      )
    text = record[field]
    if text is None:
      self.counts.skip("empty", where)
      return
    if not isinstance(text, str):
      raise UserError(f"{where}: field {field!r} is {type(text).__name__}, not a text")
    try:
      text.encode()
    except UnicodeEncodeError:  # "\ud800" is legal JSON, but no Unicode text
      self._undecodable(where, "holds a lone surrogate")
      return
    yield Document(where, text, _origin(record))

  def _read_parquet(self, path: Path) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    column = self._config.text_field
    try:
      with pyarrow.parquet.ParquetFile(path) as table:
        schema = table.schema_arrow
        if column not in schema.names:
          raise UserError(
            f"{path}: no column {column!r} (it has: {', '.join(schema.names)}); set"
            " --config.source.text_field"
          )
        if not _is_text(schema.field(column).type):
          raise UserError(f"{path}: column {column!r} is {schema.field(column).type}, not a text")
        known = [name for name in (*_KNOWN, "license", "score", "metadata") if name != column]
        columns = [column, *(name for name in known if name in schema.names)]
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
          for record in _rows(batch):
            where = f"{path}#{row}"
            row += 1
            self.counts.meet()
            if record[column] is None:
              self.counts.skip("empty", where)
            else:
              yield Document(where, record[column], _origin(record))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as e:
      raise UserError(f"{path}: can not be read as Parquet ({e}); write the file again") from None


def _is_text(arrow_type: object) -> bool:
  import pyarrow.types

  return any(
    check(arrow_type)
    for check in (
      pyarrow.types.is_string,
      pyarrow.types.is_large_string,
      pyarrow.types.is_string_view,
    )
  )


_KNOWN = ("id", "url", "source", "date", "licence", "language", "title", "format")


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
  """The rows of a batch of a Parquet file as records."""
  import pyarrow

  columns = []
  for column in batch.columns:
    if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":  # needs pandas
      column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
    columns.append(column.to_pylist())
  for values in zip(*columns, strict=True):
    yield dict(zip(batch.schema.names, values, strict=True))


def _origin(record: dict[str, Any]) -> dict[str, Any]:
  """What a record or its metadata says of it, as far as Document.origin names it.

  Texts, and `score` where it is a number: dedup may go by it.
  """
  metadata = record.get("metadata")
  if isinstance(metadata, list):  # a map of Parquet: pairs
    metadata = {one[0]: one[1] for one in metadata if isinstance(one, tuple) and len(one) == 2}
  values = dict(metadata) if isinstance(metadata, dict) else {}
  values |= {key: value for key, value in record.items() if value not in (None, "")}
  if values.get("licence") in (None, ""):
    values["licence"] = values.get("license")
  found: dict[str, Any] = {
    key: _plain(values[key]) for key in _KNOWN if values.get(key) not in (None, "")
  }
  score = values.get("score")
  if isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score):
    found["score"] = score
  return found


def _plain(value: Any) -> str:
  return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)

"""Datatrove steps that read and write stages' directories, and count what they see.

A document on its way carries metadata[AT] = file number << 40 | line: its place in the stage that
is read, the same whatever the number of tasks. Files are written under the number of the file that
they come from, so that the number of tasks changes no byte of them.
"""

import abc
import contextlib
import dataclasses
import gzip
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Template
from typing import Any

from datatrove.data import Document
from datatrove.io import OutputFileManager
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.jsonl import JsonlReader
from datatrove.pipeline.writers.jsonl import JsonlWriter

from jaxlm.errors import UserError

AT = "_at"
LINE_BITS = 40
STOP_AFTER = 1000  # errored documents of a task


def file_of(at: int) -> int:
  """The number of the file in which the document stands."""
  return at >> LINE_BITS


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[Any]:
  """A file that appears under its name when it is complete, or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  fresh = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with fresh.open(mode, encoding=None if "b" in mode else "utf-8") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    fresh.replace(path)
  finally:
    fresh.unlink(missing_ok=True)


class StageReader(JsonlReader):
  """Reads documents/ of a stage. A file that is cut short stops the stage with its name."""

  name = "stage"

  def __init__(self, directory: str | Path, **kwargs: Any):
    folder = Path(directory) / "documents"
    super().__init__(str(folder), glob_pattern="**/*.jsonl.gz", add_file_path=False, **kwargs)
    self._number = {
      f: i for i, f in enumerate(self.data_folder.list_files(glob_pattern="**/*.jsonl.gz"))
    }

  def get_document_from_dict(self, data: dict, source_file: str, id_in_file: int) -> Any:
    document = super().get_document_from_dict(data, source_file, id_in_file)
    if document:
      document.metadata[AT] = (self._number[source_file] << LINE_BITS) | id_in_file
    return document

  def read_file(self, filepath: str) -> Iterator[Document]:
    try:
      yield from super().read_file(filepath)
    except (OSError, EOFError, zlib.error) as error:
      raise UserError(
        f"{self.data_folder.path}/{filepath}: {error}; run the stage that wrote it again"
      ) from None


class _Files(OutputFileManager):
  """Gzip files without name and time inside, of which one is open at a time."""

  def get_file(self, filename: str) -> Any:
    if filename not in self._output_files:
      self.close()
      raw = self.fs.open(filename, mode="wb", compression=None)
      packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0, compresslevel=6)
      self._output_files[filename] = packed
      packed.myfileobj = raw  # closed with it
    return self._output_files[filename]


def _plain(_writer: Any, document: Document) -> dict[str, Any]:
  metadata = {k: v for k, v in document.metadata.items() if k != AT}
  return {"id": document.id, "text": document.text, "metadata": metadata}


class StageWriter(JsonlWriter):
  """Writes documents under the number of the file they come from; equal runs, equal bytes."""

  def __init__(self, folder: str | Path):
    super().__init__(str(folder), adapter=_plain)
    self.output_filename = Template("${file}.jsonl.gz")  # later: datatrove warns without a rank
    self.output_mg = _Files(self.output_folder, mode="wb", compression=None)

  def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
    super().write(document, rank, file=f"{file_of(document.metadata[AT]):05d}", **kwargs)


def _size(text: str) -> int:
  return len(text.encode("utf-8", "surrogatepass"))


@dataclasses.dataclass
class Count:
  """The books of one op, in one task or in all."""

  seen: int = 0
  kept: int = 0
  bytes_in: int = 0
  bytes_kept: int = 0
  seconds: float = 0.0
  reasons: Counter = dataclasses.field(default_factory=Counter)
  extra: Counter = dataclasses.field(default_factory=Counter)
  errors: Counter = dataclasses.field(default_factory=Counter)  # by the class of the exception

  def add(self, other: "Count") -> None:
    for field in dataclasses.fields(self):
      total = getattr(self, field.name) + getattr(other, field.name)
      setattr(self, field.name, total)

  def op(self, name: str) -> dict[str, Any]:
    """As in stage.json."""
    more = {"extra": self.extra, "errors": self.errors}
    return {
      "name": name,
      "in": self.seen,
      "kept": self.kept,
      "dropped": sum(self.reasons.values()),
      "reasons": dict(sorted(self.reasons.items())),
      "errored": sum(self.errors.values()),
      "bytes_in": self.bytes_in,
      "bytes_kept": self.bytes_kept,
      "seconds": round(self.seconds, 3),
      **{key: dict(sorted(values.items())) for key, values in more.items() if values},
    }


class CountedOp(PipelineStep):
  """An op that keeps or drops documents: dropped ones go to removed/, the counts to counts/.

  A subclass has `judge`: None to keep the document (it may change it), else the reason.

  counts_errors: an exception on a document makes it an errored one, which goes to removed/ as it
    came; otherwise it ends the stage.
  """

  type = "op"
  counts_errors = False

  def __init__(self, op: str, counts: str | Path, removed: str | Path | None):
    self.name = op  # before: the statistics are labelled with it
    super().__init__()
    self.op = op
    self.counts = Path(counts) / op
    self.writer = StageWriter(removed) if removed else None

  @abc.abstractmethod
  def judge(self, document: Document, count: Count) -> str | None:
    """None to keep the document, else why it is dropped."""

  def start(self) -> None:
    """Called once in each task before the first document."""

  def end(self, rank: int) -> None:
    """Called once in each task after the last document."""

  def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
    count = Count()
    self.start()
    with self.writer or contextlib.nullcontext():
      for document in data:
        before = time.perf_counter()
        count.seen += 1
        count.bytes_in += _size(document.text)
        reason, error = self._judge(document, count)
        if reason is not None:
          if error:
            count.errors[error] += 1
            self._stop_early(count)
          else:
            count.reasons[reason] += 1
          self.stat_update(f"dropped_{reason}")
          if self.writer:
            document.metadata["reason"] = reason
            self.writer.write(document, rank)
        else:
          count.kept += 1
          count.bytes_kept += _size(document.text)
        count.seconds += time.perf_counter() - before
        if reason is None:
          yield document
    self.end(rank)
    with whole_file(self.counts / f"{rank:05d}.json", "w") as file:
      json.dump(vars(count), file)

  def _judge(self, document: Document, count: Count) -> tuple[str | None, str]:
    """Why the document goes, if it does, and the class of the exception, if there was one."""
    if not self.counts_errors:
      return self.judge(document, count), ""
    text = document.text
    try:
      return self.judge(document, count), ""
    except UserError:  # of the settings, not of the document
      raise
    except Exception as error:
      document.text = text
      name = type(error).__name__
      document.metadata["error"] = f"{name}: {error}"[:300]
      return f"error: {name}", name

  def _stop_early(self, count: Count) -> None:
    """UserError where an op fails on most of what it sees: the rest need not be tried."""
    errored = sum(count.errors.values())
    if errored >= STOP_AFTER and 2 * errored > count.seen:
      name, number = count.errors.most_common(1)[0]
      raise UserError(
        f"{self.counts.parent.parent.parent}: {self.op} failed on {errored} of the first "
        f"{count.seen} documents of a task, {number} times with {name}; look into removed/{self.op}"
      )


class Tally(CountedOp):
  """Keeps all, and counts documents by source and language."""

  def judge(self, document: Document, count: Count) -> str | None:
    for kind in ("source", "language"):
      count.extra[f"{kind}:{document.metadata.get(kind) or 'unknown'}"] += 1
    return None


class KeepWriter(PipelineStep):
  """Writes what is left to documents/."""

  type = "writer"
  name = "documents"

  def __init__(self, folder: str | Path):
    super().__init__()
    self.writer = StageWriter(folder)

  def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
    yield from self.writer.run(data, rank, world_size)


def read_count(counts: str | Path, op: str) -> Count:
  """The sum of all tasks' counts of an op."""
  total = Count()
  for file in sorted((Path(counts) / op).glob("*.json")):
    one = json.loads(file.read_text(encoding="utf-8"))
    for key in ("reasons", "extra", "errors"):
      one[key] = Counter(one.get(key, {}))
    total.add(Count(**one))
  return total


def shares(before: Count, after: Count, kind: str) -> dict[str, dict[str, int]]:
  """Documents in and kept, of each source or language."""
  # Both: an op between them may have found what language a document is in.
  both = before.extra.keys() | after.extra.keys()
  found = sorted(key for key in both if key.startswith(f"{kind}:"))
  return {
    key.removeprefix(f"{kind}:"): {"in": before.extra[key], "kept": after.extra[key]}
    for key in found
  }


class Decided(CountedOp):
  """Drops the documents that a decision file names: duplicates, each with the one that stays.

  Files: DECISIONS/<number of the input file>.jsonl of {"at", "of", "cluster", "jaccard"}.
  """

  def __init__(self, op: str, decisions: str | Path, counts: Any, removed: Any):
    super().__init__(op, counts, removed)
    self.decisions = Path(decisions) / op
    self._file = -1
    self._found: dict[int, dict[str, Any]] = {}

  def judge(self, document: Document, count: Count) -> str | None:
    at = document.metadata[AT]
    if file_of(at) != self._file:
      self._file = file_of(at)
      path = self.decisions / f"{self._file:05d}.jsonl"
      lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
      self._found = {one["at"]: one for one in map(json.loads, lines)}
    one = self._found.get(at)
    if one is None:
      return None
    document.metadata["duplicate_of"] = one["of"]
    document.metadata["cluster"] = one["cluster"]
    document.metadata["jaccard"] = one["jaccard"]
    return f"{self.op}_duplicate"


def write_by_file(folder: Path, decisions: Iterable[dict[str, Any]]) -> None:
  """Decision files for `Decided`."""
  by_file: dict[int, list[dict[str, Any]]] = {}
  for one in decisions:
    by_file.setdefault(file_of(one["at"]), []).append(one)
  for number, rows in by_file.items():
    with whole_file(folder / f"{number:05d}.jsonl", "w") as file:
      for row in sorted(rows, key=lambda row: row["at"]):
        file.write(json.dumps(row) + "\n")

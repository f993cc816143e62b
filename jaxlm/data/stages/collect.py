"""The stage collect: documents of all sources, in one form, every one that was skipped counted.

A run that was killed goes on at its input files, with the same bytes in the end: see
sources/journal.py.
"""

import gzip
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.prep.config import CorpusConfig
from jaxlm.data.prep.documents import Document
from jaxlm.data.stages import base
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.runner import as_json, begin
from jaxlm.data.stages.sources import parallel
from jaxlm.data.stages.sources.books import Books, check, total
from jaxlm.data.stages.sources.cut import cut
from jaxlm.data.stages.sources.journal import Journal, Progress
from jaxlm.data.stages.sources.seen import SeenIds
from jaxlm.data.stages.stage_io import whole_file
from jaxlm.errors import UserError

OPS_VERSION = 3
FILE_DOCUMENTS = 10_000  # of a file: the unit of work of the stages after it
FILE_BYTES = 1 << 27  # of text: a file ends at whichever comes first
SPOOLS = "spools"  # below work/
PACKAGES = (
  *("fastwarc", "resiliparse", "mwxml", "mwparserfromhell", "detect-secrets", "pylatexenc"),
  *("lxml", "pypdf", "pyarrow", "zstandard"),
)


def identity(
  config: CurationConfig, files: Mapping[str, str | None], limit: int | None
) -> dict[str, Any]:
  """What the fingerprint is made of. files: of each source, the fingerprint of its files."""
  return {
    "config.sources": {name: _json(source) for name, source in config.sources.items()},
    "files": files,
    "--limit": limit,
    "op version": OPS_VERSION,
  }


def run(config: CurationConfig, *, limit: int | None = None, workers: int = 1) -> Path:
  """Makes the stage, or finds it made. Returns its directory.

  Args:
    limit: at most so many documents of each source.
    workers: processes that read the files of a source; the result does not depend on it.
  """
  config.validate()
  output = Path(config.output)
  corpora = {
    name: source.build(strict=False, exclude=str(output.resolve()))
    for name, source in config.sources.items()
  }
  states = {name: corpus.fingerprint() for name, corpus in corpora.items()}
  parts = identity(config, states, limit)
  found = base.fingerprint("collect", *parts.values())
  directory = base.stage_dir(output, "collect", found)
  if base.is_finished(directory, found):
    _check_again(directory, config.max_drop_ratio)
    return directory
  begin(directory, found, 1, parts)
  work = directory / "work"
  shutil.rmtree(work / SPOOLS, ignore_errors=True)  # of a run that was killed
  journal = Journal(work, directory / "documents")
  out = _Writer(directory / "documents", journal.state.files)
  books: dict[str, Books] = {}
  for name, corpus in corpora.items():
    progress = journal.source(name, corpus)
    if not progress.done:
      documents = parallel.documents(corpus, work / SPOOLS, workers, progress.place)
      try:
        _collect(name, config.sources[name], documents, out, limit, journal, progress)
      except ModuleNotFoundError as error:
        raise UserError(
          f"config.sources[{name!r}]: {error.name} is not installed: pip install 'jaxlm[data]'"
        ) from None
    corpus.counts, books[name] = progress.counts(), progress.books
    try:
      check(books[name].op(name, corpus), config.max_drop_ratio, str(directory))
    except UserError:
      if not progress.done:
        journal.forget(name)
      raise
    if not progress.done:
      progress.done = True
      out.note(journal, progress)
  reads = [one.op(name, corpora[name]) for name, one in books.items()]
  read = total(reads, journal.seconds)
  base.check_books("collect", [read], config.max_drop_ratio, str(directory))
  shutil.rmtree(work, ignore_errors=True)
  base.write_stage_json(
    directory,
    {
      "stage": "collect",
      "fingerprint": found,
      "upstream": [],
      "config": {"name": config.name, "sources": parts["config.sources"], "limit": limit},
      "versions": _versions(),
      "ops": [read],
      **{key: read[key] for key in ("in", "kept", "dropped", "errored", "bytes_in")},
      "bytes_out": read["bytes_kept"],
      "by_source": {op["source"]: {"in": op["in"], "kept": op["kept"]} for op in reads},
      "by_language": {},
      "by_licence": {name: one.licences for name, one in books.items()},
      "by_year": {name: dict(sorted(one.years.items())) for name, one in books.items()},
      "sources": {name: one.report(corpora[name]) for name, one in books.items()},
      "seconds": read["seconds"],
    },
  )
  return directory


def _check_again(directory: Path, max_drop_ratio: float) -> None:
  """What would have stopped the stage under this ratio stops it also when it is there."""
  record = base.read_stage(directory)
  for name, one in record["by_source"].items():
    check({**one, "source": name, **_dropped(record, name, one)}, max_drop_ratio, str(directory))
  base.check_books("collect", record["ops"], max_drop_ratio, str(directory))


def _dropped(record: Mapping[str, Any], name: str, one: Mapping[str, int]) -> dict[str, Any]:
  lost, reasons = one["in"] - one["kept"], record["sources"][name]["reasons"]
  return {"name": f"read {name}", "dropped": lost, "errored": 0, "reasons": reasons}


def _collect(
  name: str,
  source: CorpusConfig,
  documents: Iterator[Document],
  out: "_Writer",
  limit: int | None,
  journal: Journal,
  progress: Progress,
) -> None:
  books, left_out = progress.books, progress.left_out
  seen = SeenIds(*journal.ids())
  max_bytes: int = getattr(source, "max_doc_bytes", 2**23)
  may_cut = getattr(getattr(source, "long", None), "value", "cut") == "cut"
  before, started = books.seconds, time.perf_counter()
  while limit is None or books.kept < limit:
    document = next(documents, None)
    if document is None:
      break
    identity = str(document.origin.get("id") or document.id)
    if not seen.add(identity):
      left_out.skip("duplicate id", document.id)
      continue
    try:
      size = len(document.text.encode())
    except UnicodeEncodeError:  # a lone surrogate, which no reader takes back
      left_out.skip("undecodable", document.id)
      continue
    if not document.text.strip():
      left_out.skip("empty", document.id)
      continue
    if size <= max_bytes:
      pieces = [document.text]
    elif may_cut and document.origin.get("format") != "html":
      pieces = cut(document.text, max_bytes)
      books.cut += 1
      books.parts += len(pieces) - 1
    else:
      left_out.skip("too long", document.id)
      continue
    extra = {key: value for key, value in document.origin.items() if key != "id"}
    for number, text in enumerate(pieces):
      metadata = {**extra, "source": name}
      if len(pieces) > 1:
        metadata |= {"part": number, "parts": len(pieces)}
      row = {"text": text, "id": f"{identity}#part{number}" if number else identity}
      size = len(text.encode())
      out.write(json.dumps({**row, "metadata": metadata}, ensure_ascii=False), size)
      books.keep(document, size)
    # Not in the middle of a document, nor when this was the last one: its file is not closed yet.
    if out.is_even and (limit is None or books.kept < limit):
      books.seconds = before + time.perf_counter() - started
      out.note(journal, progress)
  documents.close()  # type: ignore[attr-defined]
  out.flush()
  books.seconds = before + time.perf_counter() - started


class _Writer:
  """documents/00000.jsonl.gz and on, from `number` on; equal documents give equal bytes."""

  def __init__(self, folder: Path, number: int):
    self._folder = folder
    self._batch: list[str] = []
    self._size = 0
    self._number = number
    self.is_even = False  # whether a file was closed with what was written last

  def write(self, line: str, size: int) -> None:
    self._batch.append(line + "\n")
    self._size += size
    self.is_even = False
    if len(self._batch) >= FILE_DOCUMENTS or self._size >= FILE_BYTES:
      self.flush()

  def flush(self) -> None:
    if not self._batch:
      return
    path = self._folder / f"{self._number:05d}.jsonl.gz"
    try:
      with whole_file(path) as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        for line in self._batch:
          # Names of files may hold bytes that are no UTF-8; texts were checked.
          file.write(line.encode("utf-8", "replace"))
    except OSError as error:
      raise UserError(f"{path}: {error.strerror or error}; make room, then run again") from error
    self._number += 1
    self._batch.clear()
    self._size = 0
    self.is_even = True

  def note(self, journal: Journal, progress: Progress) -> None:
    """Keeps how far the source is, now that all documents are in files."""
    assert not self._batch
    try:
      journal.save(progress, self._number)
    except OSError as error:
      raise UserError(
        f"{self._folder.parent}: {error.strerror or error}; make room, then run again"
      ) from error
    self.is_even = False


def _versions() -> dict[str, str]:
  found = {}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _json(source: CorpusConfig) -> Any:
  """Its settings, with its class: two kinds of source may have the same."""
  return {"kind": type(source).__name__, **as_json(source)}

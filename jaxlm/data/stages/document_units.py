"""A stage's files as units of work for the shuffle, and as a sample of its documents."""

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.prep.runs import Record
from jaxlm.data.stages import base
from jaxlm.errors import UserError
from jaxlm.tokenizers.accelerate import SAMPLE_CHARS


@dataclass(frozen=True)
class FileUnit:
  """A file of a stage's documents.

  number: its place in the sorted list. size: of it, unpacked. sha256: as stage.json has it.
  """

  number: int
  size: int
  path: Path
  sha256: str

  def records(self) -> Iterator[Record]:
    """The documents. UserError, before the first of them, where the file's bytes changed."""
    if base.file_sha256(self.path) != self.sha256:
      raise UserError(
        f"{self.path}: its bytes changed (sha256 is not that of {base.RECORD}); run the stage that"
        " wrote it again"
      )
    yield from self.read()

  def read(self) -> Iterator[Record]:
    """The documents of a file that is taken for whole."""
    try:
      with gzip.open(self.path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
          document = json.loads(line)
          metadata = document.get("metadata") or {}
          origin = {k: str(metadata[k]) for k in ("url", "source") if metadata.get(k) is not None}
          yield Record(
            number=number,
            text=document["text"],
            label=json.dumps({"id": str(document.get("id", "")), **origin}, ensure_ascii=False),
            source=origin.get("source", ""),
            language=str(metadata.get("language") or ""),
            licence=str(metadata.get("licence") or metadata.get("license") or ""),
          )
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
      raise UserError(
        f"{self.path}: {type(error).__name__}: {error}; run the stage that wrote it again"
      ) from None


def document_units(directory: str | Path) -> list[FileUnit]:
  """The files of a stage, in order. Raises UserError where one is missing or not of the stage."""
  directory = Path(directory)
  listed: dict[str, str] = base.read_stage(directory)["files"]
  files = sorted((directory / "documents").rglob("*.jsonl.gz"))
  there = {str(file.relative_to(directory)) for file in files}
  if there != listed.keys():
    name = min(there ^ listed.keys())
    raise UserError(
      f"{directory / name}: {'missing' if name in listed else f'not listed in {base.RECORD}'}; run"
      " that stage again"
    )
  return [
    FileUnit(i, _unpacked(file), file, listed[str(file.relative_to(directory))])
    for i, file in enumerate(files)
  ]


def _unpacked(file: Path) -> int:
  """The size that a gzip file ends with (modulo 2**32)."""
  with file.open("rb") as stream:
    stream.seek(-4, 2)
    return int.from_bytes(stream.read(4), "little")


def sample_texts(units: list[FileUnit], count: int, seed: int) -> Iterator[str]:
  """The beginnings of `count` documents, as evenly from all files as these have them."""
  order = list(units)
  random.Random(seed).shuffle(order)
  for left, unit in zip(range(len(order), 0, -1), order):
    share = -(-count // left)
    for record in unit.read():
      if share <= 0 or count <= 0:
        break
      if record.text:
        yield record.text[:SAMPLE_CHARS]
        share, count = share - 1, count - 1

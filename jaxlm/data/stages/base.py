"""What all stages share: their directories, their books, their record.

A stage's directory is OUTPUT/<stage>-<first 8 of its fingerprint>. stage.json is written last: its
presence says that the stage is finished, its `files` what must be there.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

RECORD = "stage.json"
BEGUN = "begun.json"  # {"fingerprint", "tasks", "parts"}: what an unfinished stage is


def fingerprint(*parts: Any) -> str:
  """sha256 (hex) of JSON values, in order."""
  text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
  """sha256 (hex) of a file's bytes."""
  with Path(path).open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def stage_dir(output: str | Path, stage: str, found: str) -> Path:
  """Where a stage of this fingerprint lies."""
  return Path(output) / f"{stage}-{found[:8]}"


def read_stage(directory: str | Path) -> dict[str, Any]:
  """The record of a finished stage. Raises UserError where there is none."""
  file = Path(directory) / RECORD
  try:
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise UserError(f"{directory}: no {RECORD}: the stage did not finish; run it again") from None
  except (OSError, ValueError) as error:
    raise UserError(f"{file}: {error}; delete {directory} and run the stage again") from None
  return record


def read_begun(directory: str | Path) -> dict[str, Any]:
  """What a stage, finished or not, was begun as; {} where that can not be read."""
  try:
    found = json.loads((Path(directory) / BEGUN).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def is_finished(directory: str | Path, found: str) -> bool:
  """Whether the stage of this fingerprint is complete there."""
  return (Path(directory) / RECORD).is_file() and read_stage(directory)["fingerprint"] == found


def latest(output: str | Path, stage: str) -> Path:
  """The finished directory of a stage that was written last. Raises UserError if there is none."""
  found = [d for d in Path(output).glob(f"{stage}-*") if (d / RECORD).is_file()]
  if not found:
    raise UserError(f"{output}: no finished stage {stage!r}: run python -m jaxlm.data {stage}")
  return max(found, key=lambda d: ((d / RECORD).stat().st_mtime, d.name))


def iter_documents(directory: str | Path, removed: str | None = None) -> Iterator[dict[str, Any]]:
  """The documents that a stage kept, or those that the op `removed` dropped, in file order."""
  folder = Path(directory) / ("documents" if removed is None else f"removed/{removed}")
  for file in sorted(folder.rglob("*.jsonl.gz")):
    try:
      with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
          yield json.loads(line)
    except (OSError, EOFError, ValueError, zlib.error) as error:
      raise UserError(f"{file}: {error}; run the stage again") from None


def check_books(
  stage: str, ops: Sequence[Mapping[str, Any]], max_drop_ratio: float, where: str
) -> None:
  """UserError unless every op's in = kept + dropped + errored, and not too much was dropped."""
  for op in ops:
    if op["in"] != op["kept"] + op["dropped"] + op["errored"]:
      raise UserError(
        f"{where}: {stage}/{op['name']}: {op['in']} documents went in, but {op['kept']} kept + "
        f"{op['dropped']} dropped + {op['errored']} errored came out: documents were lost; this is "
        "a defect of the op"
      )
  if not ops or not ops[0]["in"]:
    raise UserError(f"{where}: {stage}: no documents went in: check the stage before it")
  lost = 1 - ops[-1]["kept"] / ops[0]["in"]
  if lost > max_drop_ratio:
    worst = max(ops, key=lambda op: op["dropped"] + op["errored"])
    raise UserError(
      f"{where}: {stage} removed {lost:.1%} of the documents (max_drop_ratio={max_drop_ratio}), "
      f"most of them by {worst['name']}: look into removed/{worst['name']}, then change that op or "
      "config.max_drop_ratio"
    )


def write_stage_json(directory: str | Path, record: Mapping[str, Any]) -> None:
  """Writes the record, with the sha256 of every file under documents/, last and at once."""
  directory = Path(directory)
  files = {
    str(file.relative_to(directory)): file_sha256(file)
    for file in sorted((directory / "documents").rglob("*"))
    if file.is_file()
  }
  fresh = directory / f".{RECORD}.{os.getpid()}"
  text = json.dumps({**record, "files": files}, indent=2, ensure_ascii=False, sort_keys=True)
  fresh.write_text(text + "\n", encoding="utf-8")
  fresh.replace(directory / RECORD)

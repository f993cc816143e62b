"""metrics.jsonl: one JSON object a line, with step and time; what other tools and tests read."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class JsonlTracker:
  """Appends to a file; each line is on disk (as far as the system call goes) when `log` returns.

  The file holds each step once: lines from `start_step` on, the first step that this process will
  log, are dropped first.
  """

  def __init__(self, file: str | Path, start_step: int = 0):
    self._file = Path(file)
    self._file.parent.mkdir(parents=True, exist_ok=True)
    self._torn = False
    if self._file.exists():
      drop_from(self._file, start_step)

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Appends a line. Raises OSError if it cannot be written."""
    row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
    row |= {name: number(value) for name, value in values.items()}
    # A write that failed half way left a line without its end: the next one must not join it.
    line = ("\n" if self._torn else "") + json.dumps(row) + "\n"
    self._torn = True
    # Opened anew each time: a file that was moved, or a full disk, costs lines, not the run.
    with self._file.open("a", encoding="utf-8") as stream:
      stream.write(line)
    self._torn = False

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Nothing: the run's directory has config.json."""

  def close(self) -> None:
    """Nothing: no line is held back."""


def number(value: float) -> float | str:
  """Strict JSON knows no NaN: "nan", "inf" and "-inf" instead, which `float` reads back."""
  return value if math.isfinite(value) else str(float(value))


def read_rows(file: str | Path) -> Iterator[dict[str, Any]]:
  """The rows of a metrics.jsonl, without lines that a crash left unfinished."""
  for line in Path(file).read_text(encoding="utf-8").splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue
    if isinstance(row, dict) and isinstance(row.get("step"), int):
      yield row


def drop_from(file: Path, start_step: int) -> None:
  """Drops the rows of `start_step` and later: a crash here leaves the old file or the new one."""
  rows = [json.dumps(row) + "\n" for row in read_rows(file) if row["step"] < start_step]
  temporary = file.with_name(f".{file.name}.tmp")
  temporary.write_text("".join(rows), encoding="utf-8")
  temporary.replace(file)

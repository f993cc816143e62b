"""How a stage begins, runs its tasks and ends; shared by all that are made of datatrove steps."""

import dataclasses
import enum
import importlib.metadata
import json
import os
import shutil
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base, executors
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import Count


class Runner:
  """Runs the pipelines of one stage, each under a logging directory of its own.

  executor: a name (local, slurm, ray), or the config that also says what each task is given.
  """

  def __init__(self, directory: Path, executor: str | ExecutorConfig, tasks: int, workers: int):
    self.directory = directory
    self.options = ExecutorConfig.of(executor)
    self.tasks = tasks
    self.workers = workers

  def __call__(self, name: str, steps: list[Any], tasks: int | None = None) -> None:
    tasks = tasks or self.tasks
    logs = self.directory.absolute() / "logs" / name
    workers = min(self.workers, tasks)
    try:
      executors.run(steps, str(logs), tasks, workers, self.options)
    except OSError as error:
      place = f"{error.filename}: " if error.filename else ""
      raise UserError(
        f"{self.directory}: {name}: {place}{error.strerror or error}; nothing half-written counts: "
        "make room, then run the stage again"
      ) from error
    done = len(list((logs / "completions").glob("*")))
    if done != tasks:
      raise UserError(f"{logs}: {done} of {tasks} tasks finished; run the stage again")


def as_json(config: Any) -> Any:
  """A config as JSON values."""
  if isinstance(config, enum.Enum):
    return config.value
  if dataclasses.is_dataclass(config) and not isinstance(config, type):
    return {f.name: as_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
  if isinstance(config, list | tuple):
    return [as_json(one) for one in config]
  return config


def require_datatrove() -> None:
  """UserError where the packages of the stages are absent."""
  try:
    import datatrove  # noqa: F401
    import orjson  # noqa: F401
    import xxhash  # noqa: F401
  except ImportError as error:
    raise UserError(f"{error.name} is not installed: pip install 'jaxlm[data]'") from None


def need_documents(upstream_dir: str | Path, upstream: dict[str, Any]) -> None:
  """UserError where the stage before kept nothing."""
  if not upstream["kept"]:
    raise UserError(f"{upstream_dir}: holds no documents: check the stage before this one")


def begin(directory: Path, found: str, tasks: int, parts: Mapping[str, Any] | None = None) -> None:
  """Makes the directory, or takes an unfinished one up.

  Tasks of another number, or of another fingerprint of the same first digits, begin anew.

  parts: what the fingerprint was made of, for `--dry_run` to tell why a stage runs again.
  """
  state = {"fingerprint": found, "tasks": tasks}
  if directory.exists():
    begun = base.read_begun(directory)
    if any(begun.get(key) != value for key, value in state.items()):
      if any(directory.glob("logs/*/slurm_jobs.json")):
        from jaxlm.data.stages.executors import slurm

        slurm.cancel_left_over(directory)
      shutil.rmtree(directory)
  directory.mkdir(parents=True, exist_ok=True)
  fresh = directory / f".begun.{os.getpid()}"
  fresh.write_text(json.dumps({**state, "parts": parts or {}}), encoding="utf-8")
  fresh.replace(directory / base.BEGUN)


def finish(
  *,
  directory: Path,
  stage: str,
  found: str,
  upstream_dir: str | Path,
  upstream: dict[str, Any],
  config: Any,
  ops: list[dict[str, Any]],
  max_drop_ratio: float,
  started: float,
  packages: Sequence[str],
  more: dict[str, Any] | None = None,
) -> None:
  """Checks the books, writes the record and clears what was needed on the way.

  The steps must have written the counts of two `Tally`, "before" and "after" the ops.
  """
  from jaxlm.data.stages import stage_io

  counts = directory / "work" / "counts"
  before, after = (stage_io.read_count(counts, name) for name in ("before", "after"))
  where = str(directory)
  if before.seen != upstream["kept"]:
    raise UserError(
      f"{upstream_dir}: {before.seen} documents were read, but stage.json says {upstream['kept']}: "
      "a file is damaged, or documents have no text; run that stage again"
    )
  base.check_books(stage, ops, max_drop_ratio, where)
  _check_chain(stage, ops, before, after, where)
  errored = sum(op["errored"] for op in ops)
  record = {
    "stage": stage,
    "fingerprint": found,
    "upstream": [
      {
        "stage": upstream["stage"],
        "fingerprint": upstream["fingerprint"],
        "path": os.path.relpath(upstream_dir, directory),
      }
    ],
    "config": config,
    "versions": {name: importlib.metadata.version(name) for name in packages},
    "ops": ops,
    "in": before.seen,
    "kept": after.kept,
    "dropped": sum(op["dropped"] for op in ops),
    "errored": errored,
    "bytes_in": before.bytes_in,
    "bytes_out": after.bytes_kept,
    "by_source": stage_io.shares(before, after, "source"),
    "by_language": stage_io.shares(before, after, "language"),
    "seconds": round(time.perf_counter() - started, 3),
    **(more or {}),
  }
  (directory / "documents").mkdir(exist_ok=True)
  base.write_stage_json(directory, record)
  shutil.rmtree(directory / "work", ignore_errors=True)


def _check_chain(
  stage: str, ops: Sequence[dict[str, Any]], before: "Count", after: "Count", where: str
) -> None:
  """UserError unless each op was given what the one before it kept."""
  kept = before.seen
  for name, given, left in [
    *((op["name"], op["in"], op["kept"]) for op in ops),
    ("the writer", after.seen, after.kept),
  ]:
    if given != kept:
      raise UserError(
        f"{where}: {stage}/{name}: was given {given} documents of {kept}: documents were lost"
      )
    kept = left

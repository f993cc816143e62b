"""How a stage begins, runs its tasks and ends; shared by all that are made of datatrove steps."""

import dataclasses
import enum
import importlib.metadata
import json
import os
import shutil
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import Count


class Runner:
  """Runs the pipelines of one stage, each under a logging directory of its own."""

  def __init__(self, directory: Path, executor: str, tasks: int, workers: int):
    self.directory = directory
    self.executor = executor
    self.tasks = tasks
    self.workers = workers

  def __call__(self, name: str, steps: list[Any], tasks: int | None = None) -> None:
    tasks = tasks or self.tasks
    logs = self.directory / "logs" / name
    workers = min(self.workers, tasks)
    try:
      self._run(steps, str(logs), tasks, workers)
    except OSError as error:
      place = f"{error.filename}: " if error.filename else ""
      raise UserError(
        f"{self.directory}: {name}: {place}{error.strerror or error}; nothing half-written counts: "
        "make room, then run the stage again"
      ) from error
    done = len(list((logs / "completions").glob("*")))
    if done != tasks:
      raise UserError(f"{logs}: {done} of {tasks} tasks finished; run the stage again")

  def _run(self, steps: list[Any], logs: str, tasks: int, workers: int) -> None:
    if self.executor != "local":
      raise UserError(f"--executor={self.executor}: only 'local' is there yet")
    _run_local(steps, logs, tasks, workers)


def _run_local(steps: list[Any], logs: str, tasks: int, workers: int) -> None:
  """The tasks that are not done yet, in processes that are missed when they die."""
  from concurrent.futures import ProcessPoolExecutor
  from concurrent.futures.process import BrokenProcessPool
  from multiprocessing import get_context

  import dill  # comes with datatrove: its steps hold functions that pickle does not take

  try:
    if workers == 1:
      _run_tasks(steps, logs, tasks, 0, tasks)
      return
    # datatrove's own pool waits forever for a worker that was killed.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
      packed = dill.dumps(steps)
      futures = [pool.submit(_run_packed, packed, logs, tasks, rank) for rank in range(tasks)]
      for future in futures:
        future.result()
  except BrokenProcessPool:
    raise UserError(
      f"{logs}: a worker was killed (out of memory?); run the stage again, with fewer --workers: "
      "it goes on at its tasks"
    ) from None
  except (UserError, OSError):
    raise
  except Exception as error:  # of a filter or an extractor, on some document
    raise UserError(
      f"{logs}: {type(error).__name__}: {error}; logs/task_*.log there holds the rest"
    ) from error


def _run_packed(steps: bytes, logs: str, tasks: int, rank: int) -> None:
  import dill

  _run_tasks(dill.loads(steps), logs, tasks, rank, 1)


def _run_tasks(steps: list[Any], logs: str, tasks: int, first: int, count: int) -> None:
  from datatrove.executor.local import LocalPipelineExecutor

  LocalPipelineExecutor(
    steps,
    tasks=tasks,
    workers=1,
    logging_dir=logs,
    local_tasks=count,
    local_rank_offset=first,
  ).run()


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


def begin(directory: Path, found: str, tasks: int) -> None:
  """Makes the directory, or takes an unfinished one up.

  Tasks of another number, or of another fingerprint of the same first digits, begin anew.
  """
  mark = directory / "begun.json"
  state = {"fingerprint": found, "tasks": tasks}
  if directory.exists():
    try:
      same = json.loads(mark.read_text(encoding="utf-8")) == state
    except (OSError, ValueError):
      same = False
    if not same:
      shutil.rmtree(directory)
  directory.mkdir(parents=True, exist_ok=True)
  fresh = directory / f".begun.{os.getpid()}"
  fresh.write_text(json.dumps(state), encoding="utf-8")
  fresh.replace(mark)


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

"""What the executors share: one task, its failure, and the tasks that are left."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError


def run_tasks(steps: list[Any], logs: str, tasks: int, first: int, count: int) -> None:
  """Runs `count` tasks from `first` on in this process, one after the other, unless done.

  Without the process that LocalPipelineExecutor.run starts for its queues: it would outlive this
  one when it is killed.
  """
  from datatrove.executor.local import LocalPipelineExecutor

  pipeline = LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=logs)
  pipeline.save_executor_as_json()
  for rank in range(first, first + count):
    pipeline.pipeline = copy.deepcopy(steps)
    pipeline._run_for_rank(rank)  # unless it is done


def run_task(steps: list[Any], logs: str, tasks: int, rank: int) -> None:
  """Runs one task in this process, unless it is done, and leaves word if it fails.

  Without the process that LocalPipelineExecutor.run forks for its queues: that one would outlive
  this process when it is killed, with its sockets open, and Ray would miss nobody for minutes.
  """
  from datatrove.executor.local import LocalPipelineExecutor

  try:
    LocalPipelineExecutor(steps, tasks=tasks, workers=1, logging_dir=logs)._run_for_rank(rank)
  except Exception as error:
    note_failure(logs, rank, error)
    raise


def log_of(logs: str, rank: int) -> str:
  """The log of a task."""
  return f"{logs}/logs/task_{rank:05d}.log"


def left(logs: str, tasks: int) -> list[int]:
  """The tasks without a mark that they are done."""
  there = Path(logs) / "completions"
  done = {file.name for file in there.iterdir()} if there.is_dir() else set()
  return [rank for rank in range(tasks) if f"{rank:05d}" not in done]


def note_failure(logs: str, rank: int, error: BaseException) -> None:
  """Leaves word of why a task failed for the process that waits for it."""
  file = Path(logs) / "failures" / f"{rank:05d}.json"
  file.parent.mkdir(parents=True, exist_ok=True)
  fresh = file.with_suffix(".tmp")
  kind = "" if isinstance(error, UserError) else type(error).__name__
  fresh.write_text(json.dumps({"kind": kind, "message": str(error)}), encoding="utf-8")
  fresh.replace(file)


def forget_failures(logs: str) -> None:
  """Before a new try."""
  for file in (Path(logs) / "failures").glob("*.json"):
    file.unlink()


def failure(logs: str, rank: int) -> UserError | None:
  """What the task left word of; None: nothing, so it was killed."""
  try:
    text = (Path(logs) / "failures" / f"{rank:05d}.json").read_text(encoding="utf-8")
    found = json.loads(text)
  except (OSError, ValueError):
    return None
  if not found["kind"]:
    return UserError(f"{found['message']} (task {rank}; {log_of(logs, rank)})")
  return UserError(f"{log_of(logs, rank)}: task {rank}: {found['kind']}: {found['message']}")


def say(message: str) -> None:
  """Progress, to the terminal."""
  print(message, file=sys.stderr, flush=True)


def name_of(logs: str) -> str:
  """STAGE/PIPELINE, for the reader."""
  path = Path(logs)
  return f"{path.parent.parent.name.partition('-')[0]}/{path.name}"

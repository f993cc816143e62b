"""The tasks as a Slurm job array, by way of datatrove's executor.

That one submits and returns; here the array is waited for. What else is done otherwise, and why:

- its job that merges statistics is left out: after a failed task it would stay queued for ever;
- its default QOS "normal" is not asked for, which many clusters don't have;
- SLURM_* of a job that this runs in are not handed on: datatrove takes an array index among them
  for its own, and sbatch refuses some of them together;
- the ids of the jobs are kept, so that a stage that was killed while its array goes on waits for
  that one instead of starting a second one that writes the same files.
"""

import json
import math
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dill
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats

from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.executors import slurm_queue
from jaxlm.data.stages.executors.slurm_queue import Queued
from jaxlm.data.stages.executors.tasks import (
  failure,
  forget_failures,
  left,
  name_of,
  note_failure,
  say,
)
from jaxlm.errors import UserError

_SETTLE_SECONDS = 30.0  # that a shared file system may take to show the marks of other nodes


class TaskArray(SlurmPipelineExecutor):
  """datatrove's executor, submitted without its extras; tasks leave word of their failures."""

  def __init__(self, steps: list[Any], logs: str, tasks: int, workers: int, job: str, options: Any):
    slurm = options.slurm
    here = shlex.quote(str(Path(sys.executable).parent))
    package = shlex.quote(str(Path(__file__).resolve().parents[4]))
    setup = [slurm.setup] if slurm.setup else []
    setup += [f"export PATH={here}:$PATH", f"export PYTHONPATH={package}:$PYTHONPATH"]
    super().__init__(
      steps,
      tasks=tasks,
      time=slurm.time,
      partition=slurm.partition,
      cpus_per_task=options.cpus_per_task,
      mem_per_cpu_gb=math.ceil(options.memory_gb_per_task / options.cpus_per_task),
      workers=workers,
      job_name=job,
      qos=slurm.qos,
      env_command="; ".join(setup),
      sbatch_args=dict(_option(one) for one in slurm.sbatch),
      max_array_size=slurm.max_array_size,
      logging_dir=logs,
    )
    self.logs = logs

  def get_sbatch_args(self, max_array: int = 1) -> dict:
    arguments = super().get_sbatch_args(max_array)
    if not self.partition:
      arguments.pop("partition")
    if {"mem", "mem-per-gpu"} & set(arguments):  # of the user's: they exclude each other
      arguments.pop("mem-per-cpu")
    return arguments

  def submit(self, ranks: list[int]) -> list[str]:
    """Submits the tasks. Returns the ids of the arrays, in the order of the ranks."""
    with self.logging_dir.open("executor.pik", "wb") as file:
      dill.dump(self, file, fmode=dill.CONTENTS_FMODE)
    with self.logging_dir.open("ranks_to_run.json", "w") as file:
      json.dump(ranks, file)
    command = f"launch_pickled_pipeline {shlex.quote(f'{self.logs}/executor.pik')}"
    ids: list[str] = []
    for offset in range(math.ceil(len(ranks) / self.max_array_size)):
      # One array holds max_array_size tasks, and the last what is left.
      size = min(self.max_array_size, len(ranks) - offset * self.max_array_size)
      script = self.get_launch_file_contents(self.get_sbatch_args(size), f"srun -n 1 {command}")
      (Path(self.logs) / "launch_script.slurm").write_text(script, encoding="utf-8")
      arguments = ["--parsable", f"--export=ALL,RUN_OFFSET={offset}"]
      if ids:  # `workers` is a limit of each array: one after the other keeps it
        arguments.append(f"--dependency=afterany:{ids[-1]}")
      try:
        ids.append(slurm_queue.sbatch(script, arguments))
      except UserError:
        slurm_queue.cancel(ids)
        raise
    return ids

  def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
    try:
      return super()._run_for_rank(rank, local_rank, node_rank)
    except Exception as error:
      note_failure(self.logs, rank, error)
      raise


def _option(text: str) -> tuple[str, str]:
  name, _, value = text.partition("=")
  return name, value


def run(steps: list[Any], logs: str, tasks: int, workers: int, options: ExecutorConfig) -> None:
  """See executors.run."""
  job = f"jaxlm-{name_of(logs).replace('/', '-')}"
  poll = options.slurm.poll_seconds
  record = Path(logs) / "slurm_jobs.json"
  before = _recorded(record)
  if before and left(logs, tasks) and _active(before, job):
    say(f"{name_of(logs)}: waiting for the array that an earlier start submitted: {before}")
    _wait(before, job, logs, tasks, poll)
  ranks = left(logs, tasks)
  if not ranks:
    return
  forget_failures(logs)
  array = TaskArray(steps, logs, tasks, workers, job, options)
  ids = array.submit(ranks)
  fresh = record.with_suffix(".tmp")
  fresh.write_text(json.dumps(ids), encoding="utf-8")
  fresh.replace(record)
  say(f"{name_of(logs)}: submitted {len(ranks)} tasks to Slurm: {' '.join(ids)}")
  states = _wait(ids, job, logs, tasks, poll)
  _settle(logs, tasks, states)
  missing = left(logs, tasks)
  if missing:
    raise _blame(ids, ranks, missing, states, logs, options)


def _recorded(file: Path) -> list[str]:
  try:
    return list(json.loads(file.read_text(encoding="utf-8")))
  except (OSError, ValueError):
    return []


def _active(ids: list[str], job: str) -> bool:
  found = slurm_queue.look(ids, job)
  while found is None:  # Slurm does not answer: what it does not deny may run
    time.sleep(5)
    found = slurm_queue.look(ids, job)
  return any(one.active for one in found)


def cancel_left_over(directory: Path) -> None:
  """Ends the arrays of a stage that is begun anew, which would write into its directory."""
  for record in directory.glob("logs/*/slurm_jobs.json"):
    job = f"jaxlm-{name_of(str(record.parent)).replace('/', '-')}"
    ids = _recorded(record)
    if not ids or not _active(ids, job):
      continue
    slurm_queue.cancel(ids)
    while _active(ids, job):
      time.sleep(1)


def _wait(
  ids: list[str], job: str, logs: str, tasks: int, poll: float
) -> dict[tuple[str, int], Queued]:
  """Returns when no task is queued or runs: the last that was seen of each."""
  seen: dict[tuple[str, int], Queued] = {}
  told, cancelled = "", False
  try:
    while True:
      found = slurm_queue.look(ids, job)
      if found is not None:
        for one in found:
          seen[one.array, one.index] = one
        line = _progress(found, logs, tasks)
        if line != told:
          say(line)
          told = line
        bad = any(one.failed or one.stuck for one in found)
        if bad and not cancelled:  # those that run may end; no more are begun
          slurm_queue.cancel(ids, pending=True)
          cancelled = True
        # A job that ended minutes ago is forgotten by Slurm: only those it still names can run.
        if not any(one.active for one in found):
          return seen
      time.sleep(poll)
  except BaseException:
    slurm_queue.cancel(ids)
    raise


def _progress(found: list[Queued], logs: str, tasks: int) -> str:
  running = sum(one.running for one in found)
  waiting = [one for one in found if one.active and not one.running]
  reasons = Counter(one.reason for one in waiting if one.reason not in ("", "None", "Priority"))
  why = f" ({reasons.most_common(1)[0][0]})" if reasons else ""
  done = tasks - len(left(logs, tasks))
  return (
    f"{name_of(logs)}: {done} of {tasks} tasks done, {running} running, {len(waiting)} queued{why}"
  )


def _settle(logs: str, tasks: int, states: dict[tuple[str, int], Queued]) -> None:
  """Waits for the marks of tasks that Slurm calls completed."""
  if any(one.failed for one in states.values()):
    return
  deadline = time.monotonic() + _SETTLE_SECONDS
  while left(logs, tasks) and time.monotonic() < deadline:
    list(Path(logs).iterdir())  # NFS looks anew at a directory that is opened
    time.sleep(0.5)


def _blame(
  ids: list[str],
  ranks: list[int],
  missing: list[int],
  states: dict[tuple[str, int], Queued],
  logs: str,
  options: ExecutorConfig,
) -> UserError:
  for rank in missing:
    told = failure(logs, rank)
    if told:
      return told
  place = {rank: divmod(i, options.slurm.max_array_size) for i, rank in enumerate(ranks)}
  where = {rank: (ids[part], index) for rank, (part, index) in place.items()}

  def order(rank: int) -> tuple[int, int]:
    """Those that ended by themselves, then cancelled ones, then those that were never begun."""
    found = states.get(where[rank])
    if found is None or not found.failed:
      return (0 if found is not None and found.stuck else 2), rank
    return (1 if found.state == "CANCELLED" else 0), rank

  rank = min(missing, key=order)
  array, index = where[rank]
  found = states.get((array, index))
  state = found.state if found else "not in the queue any more"
  if found is not None and found.stuck:
    state = f"{found.state}: {found.reason}"
  remedy = {
    "TIMEOUT": "raise config.executor_options.slurm.time, or --tasks",
    "OUT_OF_MEMORY": "raise config.executor_options.memory_gb_per_task",
  }.get(state, "it was killed, or its node was lost")
  return UserError(
    f"{logs}/slurm_logs/{array}_{index}.out: task {rank} is not done ({state}; {remedy}); "
    f"{len(missing)} of {len(ranks)} tasks are left: run the stage again, it goes on at them"
  )

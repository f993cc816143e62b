"""The tasks on a Ray cluster.

datatrove's RayPipelineExecutor does not serve: a task that fails is a line of its debug log, one
that is killed inside its pool is waited for without end, and the logs of all pipelines share names
in /tmp. What it would run for a task is what `tasks.run_task` runs.
"""

import os
import time
from pathlib import Path
from typing import Any

from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.executors.tasks import (
  failure,
  forget_failures,
  left,
  log_of,
  name_of,
  run_task,
  say,
)
from jaxlm.errors import UserError

_SAY_SECONDS = 5.0
_OBJECT_STORE = 128 << 20  # bytes: documents go through files


def run(steps: list[Any], logs: str, tasks: int, workers: int, options: ExecutorConfig) -> None:
  """See executors.run."""
  import dill

  ranks = left(logs, tasks)
  if not ranks:
    return
  forget_failures(logs)
  resources = _connect(options, workers)
  import ray

  # No retries: Ray repeats a task that runs out of memory without end unless there are none.
  remote = ray.remote(_task).options(max_retries=0, name=name_of(logs), **resources)
  packed = ray.put(dill.dumps(steps))
  running: dict[Any, int] = {}
  queue, failed = iter(ranks), None
  done, total, told = tasks - len(ranks), tasks, 0.0
  try:
    while True:
      while failed is None and len(running) < workers:
        rank = next(queue, None)
        if rank is None:
          break
        running[remote.remote(packed, logs, tasks, rank, str(Path.cwd()))] = rank
      if not running:
        break
      finished, _ = ray.wait(list(running), num_returns=1)
      for one in finished:
        rank = running.pop(one)
        error = _outcome(one, logs, rank)
        failed = failed or error
        done += error is None
      if time.monotonic() - told > _SAY_SECONDS or done == total:
        say(f"{name_of(logs)}: {done} of {total} tasks done, {len(running)} running")
        told = time.monotonic()
  except BaseException:
    for one in running:
      ray.cancel(one, force=True)
    raise
  if failed is not None:
    raise failed


def _connect(options: ExecutorConfig, workers: int) -> dict[str, Any]:
  """Joins the cluster, or starts one. Returns what is reserved for a task."""
  # Otherwise Ray reports the use of a cluster that it starts to its makers.
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
  try:
    import ray
  except ImportError:
    raise UserError("--executor=ray: ray is not installed: pip install 'jaxlm[data,ray]'") from None
  address = options.ray.address or os.environ.get("RAY_ADDRESS", "")
  quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
  resources: dict[str, Any] = {"num_cpus": options.cpus_per_task}
  if not address or address == "local":
    # One started for an earlier pipeline is used again: a start takes seconds. Memory is not
    # reserved there: a machine with less than all tasks ask for would wait for more without end.
    if not ray.is_initialized():
      ray.init(
        address="local",
        num_cpus=workers * options.cpus_per_task,
        object_store_memory=_OBJECT_STORE,
        include_dashboard=False,
        **quiet,
      )
    return resources
  if not ray.is_initialized():
    try:
      ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
      first = next(iter(str(error).strip().splitlines()), type(error).__name__)
      raise UserError(
        f"--executor=ray: no cluster at {address!r} ({first}): check "
        "config.executor_options.ray.address"
      ) from None
  resources["memory"] = options.memory_gb_per_task << 30
  _warn_of_small_nodes(resources)
  return resources


def _warn_of_small_nodes(resources: dict[str, Any]) -> None:
  import ray

  nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
  if not any(
    node.get("CPU", 0) >= resources["num_cpus"] and node.get("memory", 0) >= resources["memory"]
    for node in nodes
  ):
    say(
      f"warning: no node of the Ray cluster has {resources['num_cpus']} CPUs and "
      f"{resources['memory'] >> 30} GiB for a task now: waiting for one; lower "
      "config.executor_options.cpus_per_task or memory_gb_per_task"
    )


def _task(packed: bytes, logs: str, tasks: int, rank: int, folder: str) -> bool:
  """One task, in a process of the cluster. Returns whether it is done; if not, it left word."""
  import dill

  if Path(folder).is_dir():
    os.chdir(folder)  # paths of the config may be relative
  steps = dill.loads(packed)
  try:
    run_task(steps, logs, tasks, rank)
  except Exception:  # it left word
    return False
  return True


def _outcome(reference: Any, logs: str, rank: int) -> UserError | None:
  import ray

  try:
    if ray.get(reference):
      return None
  except ray.exceptions.RayTaskError as error:  # before or after the task itself
    cause = f"{type(error.cause).__name__}: {''.join(str(error.cause).strip().splitlines()[-1:])}"
    return UserError(
      f"--executor=ray: task {rank} could not start ({cause}): "
      "jaxlm must be installed alike on all nodes"
    )
  except ray.exceptions.RayError as error:  # its process, its node or its memory is gone
    return UserError(
      f"{log_of(logs, rank)}: task {rank} was killed ({type(error).__name__}: out of memory, or its"
      " node was lost); run the stage again: it goes on at its tasks"
    )
  return failure(logs, rank) or UserError(f"{log_of(logs, rank)}: task {rank} failed")

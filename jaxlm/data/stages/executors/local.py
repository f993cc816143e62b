"""The tasks in processes of this machine, which are missed when they die."""

from typing import Any

from jaxlm.data.orphans import end_with_parent
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.executors.tasks import run_tasks
from jaxlm.errors import UserError


def run(steps: list[Any], logs: str, tasks: int, workers: int, options: ExecutorConfig) -> None:
  """See executors.run."""
  from concurrent.futures import ProcessPoolExecutor
  from concurrent.futures.process import BrokenProcessPool
  from multiprocessing import get_context

  import dill  # comes with datatrove: its steps hold functions that pickle does not take

  del options
  try:
    if workers == 1:
      run_tasks(steps, logs, tasks, 0, tasks)
      return
    # datatrove's own pool waits forever for a worker that was killed.
    context = get_context("forkserver")
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
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

  run_tasks(dill.loads(steps), logs, tasks, rank, 1)

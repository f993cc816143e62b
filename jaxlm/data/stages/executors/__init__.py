"""The tasks of one pipeline, on this machine, as a Slurm job array or on a Ray cluster.

Each module has `run(steps, logs, tasks, workers, options)`: it runs the tasks of which
logs/completions/ has no mark yet, returns when all have one, and raises UserError when a task
failed or was killed. Tasks are the same on each, and write the same bytes; a stage that was killed
goes on at its tasks under any of them.
"""

from typing import Any

from jaxlm.data.stages.executor_config import Executor, ExecutorConfig


def run(steps: list[Any], logs: str, tasks: int, workers: int, options: ExecutorConfig) -> None:
  """Runs the tasks that are not done, `workers` at a time.

  Args:
    steps: datatrove's pipeline steps.
    logs: the pipeline's logging directory, absolute; on a file system that all nodes share.
    tasks: parts of the input. workers: at once.

  Raises:
    UserError: a task failed or was killed: the first one, and its log.
  """
  if options.kind is Executor.SLURM:
    from jaxlm.data.stages.executors import slurm

    slurm.run(steps, logs, tasks, workers, options)
  elif options.kind is Executor.RAY:
    from jaxlm.data.stages.executors import ray

    ray.run(steps, logs, tasks, workers, options)
  else:
    from jaxlm.data.stages.executors import local

    local.run(steps, logs, tasks, workers, options)

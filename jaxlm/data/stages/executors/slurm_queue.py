"""Slurm's commands: submit, look at the queue, cancel."""

import dataclasses
import os
import subprocess
from collections.abc import Sequence

from jaxlm.errors import UserError

_ACTIVE = {
  "PENDING",
  "RUNNING",
  "CONFIGURING",
  "COMPLETING",
  "REQUEUED",
  "REQUEUE_FED",
  "REQUEUE_HOLD",
  "RESIZING",
  "SIGNALING",
  "STAGE_OUT",
  "STOPPED",
  "SUSPENDED",
  "SPECIAL_EXIT",
}
_FAILED = {"FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"}
_FAILED |= {"CANCELLED", "PREEMPTED", "REVOKED"}
# Reasons that no time removes.
_STUCK = {"DependencyNeverSatisfied", "BadConstraints", "JobHoldMaxRequeue", "InvalidAccount"}
_STUCK |= {"InvalidQOS", "PartitionTimeLimit"}


@dataclasses.dataclass(frozen=True)
class Queued:
  """A task of an array, as the queue shows it."""

  array: str
  index: int
  state: str
  reason: str

  @property
  def stuck(self) -> bool:
    """Queued for something that does not come."""
    return self.state == "PENDING" and (
      self.reason in _STUCK or "requeued held" in self.reason or "requeued_held" in self.reason
    )

  @property
  def active(self) -> bool:
    """Runs, or will."""
    return self.state in _ACTIVE and not self.stuck

  @property
  def running(self) -> bool:
    return self.state in ("RUNNING", "COMPLETING")

  @property
  def failed(self) -> bool:
    """Ended otherwise than well."""
    return self.state in _FAILED


def _environment() -> dict[str, str]:
  """Without what a job that this process belongs to was told."""
  return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}


def _call(command: Sequence[str], text: str | None = None) -> "subprocess.CompletedProcess[str]":
  try:
    return subprocess.run(
      command, input=text, env=_environment(), capture_output=True, text=True, check=False
    )
  except FileNotFoundError:
    raise UserError(
      f"--executor=slurm: there is no {command[0]} on the PATH: run this where jobs are submitted"
    ) from None


def sbatch(script: str, arguments: Sequence[str]) -> str:
  """Submits a script. Returns the job's id. UserError: what sbatch said."""
  found = _call(["sbatch", *arguments], script)
  if found.returncode:
    said = found.stderr.strip().splitlines() or ["no reason given"]
    raise UserError(
      f"--executor=slurm: {said[-1]}: check config.executor_options.slurm (partition, qos, time, "
      "sbatch)"
    )
  return found.stdout.strip().splitlines()[-1].split(";")[0]  # "id" or "id;cluster"


def look(ids: Sequence[str], job: str) -> list[Queued] | None:
  """The tasks of arrays that Slurm still knows; None: it does not answer (look again later).

  job: the jobs' name: ids begin anew when a controller loses its state.
  """
  found = _call(
    [
      "squeue",
      "--noheader",
      "--array",
      "--states=all",
      f"--jobs={','.join(ids)}",
      "--format=%F|%K|%T|%j|%r",
    ]
  )
  if found.returncode:
    return [] if "Invalid job id" in found.stderr else None
  tasks = []
  for line in found.stdout.splitlines():
    array, index, state, name, reason = line.strip().split("|", 4)
    if name == job and index.isdigit():
      tasks.append(Queued(array, int(index), state, reason.strip("()")))
  return tasks


def cancel(ids: Sequence[str], *, pending: bool = False) -> None:
  """Ends the arrays, or what of them has not begun."""
  if ids:
    _call(["scancel", *(["--state=PENDING"] if pending else []), *ids])

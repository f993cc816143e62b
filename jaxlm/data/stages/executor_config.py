"""What runs the tasks of a stage, and what each task is given."""

import dataclasses
import enum
import re

from jaxlm.errors import UserError

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


class Executor(enum.Enum):
  """LOCAL: processes of this machine. SLURM: a job array. RAY: tasks of a Ray cluster."""

  LOCAL = "local"
  SLURM = "slurm"
  RAY = "ray"


@dataclasses.dataclass(kw_only=True)
class SlurmConfig:
  """How the job array is submitted.

  Attributes:
    partition: empty: the cluster's default. qos: empty: none is asked for.
    time: limit of one task, as Slurm writes it: minutes, hours:minutes:seconds, days-hours.
    sbatch: further options of sbatch, each "name=value" or "name": "account=x", "exclusive".
    setup: a line of shell that runs before each task ("module load …"). This interpreter and this
      jaxlm are used in any case, so they must be on a file system that the nodes share.
    max_array_size: tasks of one array at most (`scontrol show config | grep MaxArraySize`); more
      tasks become several arrays, one after the other.
    poll_seconds: between looks at the queue.
  """

  partition: str = ""
  qos: str = ""
  time: str = "24:00:00"
  sbatch: tuple[str, ...] = ()
  setup: str = ""
  max_array_size: int = 1001
  poll_seconds: float = 5.0


@dataclasses.dataclass(kw_only=True)
class RayConfig:
  """address: of the cluster ("auto", "host:6379", "ray://host:10001"); empty: that of RAY_ADDRESS,
  or one that is started on this machine for the time of the stage.
  """

  address: str = ""


@dataclasses.dataclass(kw_only=True)
class ExecutorConfig:
  """What runs the tasks of a stage. No part of a stage's fingerprint: the result is the same.

  Attributes:
    kind: see Executor.
    cpus_per_task: what Slurm and Ray reserve for a task; each computes in one thread.
    memory_gb_per_task: GiB that Slurm and Ray reserve; Slurm ends a task that takes more.
  """

  kind: Executor = Executor.LOCAL
  cpus_per_task: int = 1
  memory_gb_per_task: int = 2
  slurm: SlurmConfig = dataclasses.field(default_factory=SlurmConfig)
  ray: RayConfig = dataclasses.field(default_factory=RayConfig)

  @classmethod
  def of(cls, executor: "str | ExecutorConfig") -> "ExecutorConfig":
    """The config of a name with all else at its default, or the config itself."""
    if isinstance(executor, ExecutorConfig):
      return executor
    return cls().named(executor)

  def named(self, kind: str) -> "ExecutorConfig":
    """A copy of another kind. Raises UserError for a name that is none."""
    try:
      return dataclasses.replace(self, kind=Executor(kind))
    except ValueError:
      names = ", ".join(one.value for one in Executor)
      raise UserError(f"--executor={kind}: one of {names}") from None

  def validate(self, path: str) -> None:
    """Raises UserError for values that can not work."""
    for name in ("cpus_per_task", "memory_gb_per_task"):
      if getattr(self, name) < 1:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be at least 1")
    if not _TIME.fullmatch(self.slurm.time):
      raise UserError(
        f"{path}.slurm.time={self.slurm.time!r}: not a limit of Slurm; write minutes, or "
        "hours:minutes:seconds, or days-hours:minutes:seconds"
      )
    if self.slurm.max_array_size < 1:
      raise UserError(f"{path}.slurm.max_array_size={self.slurm.max_array_size}: must be above 0")
    if self.slurm.poll_seconds <= 0:
      raise UserError(f"{path}.slurm.poll_seconds={self.slurm.poll_seconds}: must be above 0")
    for option in self.slurm.sbatch:
      name = option.partition("=")[0]
      if not name or name.startswith("-"):
        raise UserError(
          f"{path}.slurm.sbatch: {option!r}: write options of sbatch without dashes: 'account=x'"
        )
      if name in ("array", "output", "error"):
        raise UserError(f"{path}.slurm.sbatch: {option!r}: set by jaxlm itself; leave it out")

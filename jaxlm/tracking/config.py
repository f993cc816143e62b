"""Which trackers a run uses."""

import dataclasses
import importlib.util
from pathlib import Path

from jaxlm.errors import UserError
from jaxlm.tracking.base import Composite, Tracker, report_failure


@dataclasses.dataclass(kw_only=True)
class TrackingConfig:
  """The trackers beside `metrics.jsonl`, which every run writes.

  Keys of services come from their environment variables (WANDB_API_KEY, MLFLOW_TRACKING_TOKEN)
  only: a config is saved with the run.

  Attributes:
    tensorboard: event files in WORKDIR/tensorboard.
    wandb: Weights & Biases; WANDB_MODE=offline keeps it on this machine.
    mlflow: MLflow; MLFLOW_TRACKING_URI names the server, otherwise WORKDIR/mlflow.db.
    project: project or experiment of these services.
    run_name: the run's name there; None: the name of the working directory.
  """

  tensorboard: bool = True
  wandb: bool = False
  mlflow: bool = False
  project: str = "jaxlm"
  run_name: str | None = None

  def validate(self, path: str) -> None:
    """Raises UserError if a tracker's package is not installed."""
    for name in ("wandb", "mlflow"):
      if getattr(self, name) and importlib.util.find_spec(name) is None:
        raise UserError(
          f"{path}.{name}=True: {name} is not installed; run `pip install 'jaxlm[{name}]'`"
        )

  def build(self, workdir: str | Path, start_step: int = 0) -> Tracker:
    """The trackers of a run whose first logged step will be `start_step`.

    What earlier processes recorded from that step on is dropped where the tracker can. A service
    that does not start is reported and left out.
    """
    from jaxlm.tracking.jsonl import JsonlTracker

    workdir = Path(workdir)
    name = self.run_name or workdir.resolve().name
    trackers: dict[str, Tracker] = {"jsonl": JsonlTracker(workdir / "metrics.jsonl", start_step)}
    reported: set[str] = set()
    for kind in ("tensorboard", "wandb", "mlflow"):
      if getattr(self, kind):
        try:
          trackers[kind] = _start(kind, workdir, start_step, self.project, name)
        except Exception as error:  # no network, no server, no disk: training goes on without it
          report_failure(kind, error, reported, dropped=True)
    return Composite(trackers, essential=("jsonl",))


def _start(kind: str, workdir: Path, start_step: int, project: str, name: str) -> Tracker:
  if kind == "tensorboard":
    from jaxlm.tracking.tensorboard import TensorBoardTracker

    return TensorBoardTracker(workdir / "tensorboard", start_step)
  if kind == "wandb":
    from jaxlm.tracking.wandb import WandbTracker

    return WandbTracker(workdir, project, name)
  from jaxlm.tracking.mlflow import MlflowTracker

  return MlflowTracker(workdir, project, name)

"""MLflow. MLFLOW_TRACKING_URI names the server; without it: SQLite in the run's directory."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class MlflowTracker:
  """One run a working directory: a resumed job goes on in the run it began."""

  def __init__(self, workdir: str | Path, project: str, name: str):
    from mlflow import MlflowClient

    workdir = Path(workdir).resolve()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    # A client, not mlflow.start_run: no global state, and no second run for a user's own code.
    self._client = MlflowClient(uri or f"sqlite:///{workdir}/mlflow.db")
    id_file = workdir / "mlflow_run_id"
    if id_file.exists():
      self._run_id = id_file.read_text()
      self._client.update_run(self._run_id, status="RUNNING")
      return
    experiment = self._client.get_experiment_by_name(project)
    if experiment is None:
      place = None if uri else (workdir / "mlflow_artifacts").as_uri()
      experiment_id = self._client.create_experiment(project, artifact_location=place)
    else:
      experiment_id = experiment.experiment_id
    self._run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
    id_file.write_text(self._run_id)

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Logs all values in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value in values.items()]
    self._client.log_batch(self._run_id, metrics=metrics)

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Stores the config as the artifact config.json: params are limited in number and length."""
    self._client.log_dict(self._run_id, dict(config), "config.json")

  def close(self) -> None:
    """Marks the run as finished."""
    self._client.set_terminated(self._run_id)

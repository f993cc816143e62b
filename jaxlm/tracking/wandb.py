"""Weights & Biases. The key comes from WANDB_API_KEY; WANDB_MODE=offline needs no network."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WandbTracker:
  """One run a working directory: a resumed job goes on in the run it began."""

  def __init__(self, workdir: str | Path, project: str, name: str):
    import wandb

    id_file = Path(workdir) / "wandb_run_id"
    if not id_file.exists():
      id_file.write_text(uuid.uuid4().hex)
    self._run = wandb.init(
      project=project, name=name, dir=str(workdir), id=id_file.read_text(), resume="allow"
    )
    # Their own step may never go back, ours does on resume: plot against ours.
    self._run.define_metric("*", step_metric="step")

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the values with our step beside them."""
    self._run.log({**values, "step": step})

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Sets the run's config."""
    self._run.config.update(dict(config), allow_val_change=True)

  def close(self) -> None:
    """Finishes the run: uploads what is left."""
    self._run.finish()

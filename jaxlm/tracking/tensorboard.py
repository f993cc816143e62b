"""TensorBoard event files, written by tensorboardX (needs no TensorFlow)."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardTracker:
  """Scalars by name; the config as text. Flushed every 10 seconds."""

  def __init__(self, directory: str | Path, start_step: int = 0):
    from tensorboardX import SummaryWriter

    # purge_step: on resume TensorBoard hides what an earlier process wrote from this step on.
    self._writer = SummaryWriter(logdir=str(directory), flush_secs=10, purge_step=start_step)

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a scalar a name; NaN and infinities are left out."""
    for name, value in values.items():
      if not math.isfinite(value):
        continue  # tensorboardX would warn at every step; metrics.jsonl has them
      self._writer.add_scalar(name, value, step)

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Adds the config as text (indented JSON)."""
    text = json.dumps(config, indent=2)
    self._writer.add_text("config", "    " + text.replace("\n", "\n    "))

  def close(self) -> None:
    """Flushes and closes the file."""
    self._writer.close()

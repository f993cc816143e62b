"""A tiny run, as slow as asked for until it is started again, and its losses in one process."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
import os
import time

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tracking.config import TrackingConfig
from jaxlm.training.config import CheckpointConfig
from jaxlm.training.loop import Loop

following = Loop._next


def slow(self):
  if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
  return following(self)


Loop._next = slow


def get_config():
  return RunConfig(
    model=DecoderConfig(
      vocab_size=0, num_layers=1, embed_dim=32, mlp_dim=32, num_heads=2, max_seq_len=16
    ),
    data=DataConfig(seq_len=16, sources=[SyntheticConfig(name="ids", vocab_size=64)]),
    optim=AdamWConfig(peak_lr=1e-3, schedule=ScheduleConfig(warmup_steps=2)),
    global_batch_size=8,
    num_steps=STEPS,
    checkpoint=CheckpointConfig(every_steps=EVERY),
    tracking=TrackingConfig(tensorboard=False),
  )
"""


def write_config(folder, steps, every=0):
  """The file of a run of so many steps."""
  file = folder / f"config{steps}.py"
  text = CONFIG.replace("STEPS,", f"{steps},").replace("EVERY", str(every))
  file.write_text(text, encoding="utf-8")
  return file


def losses(workdir):
  """Step to loss; a step that was made twice must have been forgotten once."""
  lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  rows = [json.loads(line) for line in lines]
  steps = [row["step"] for row in rows]
  assert len(steps) == len(set(steps)), "a step stands twice in metrics.jsonl"
  return {row["step"]: row["loss"] for row in rows}


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
  """alone(steps): the losses in this one process, on a mesh of 2 × 2 of its devices."""
  import jax

  from jaxlm import run

  made = {}

  def of(steps):
    if steps not in made:
      folder = tmp_path_factory.mktemp("alone")
      scope = {}
      exec(write_config(folder, steps).read_text(encoding="utf-8"), scope)
      config = scope["get_config"]()
      config.mesh.data = 2
      assert run.train(config, folder / "run", devices=jax.devices()[:4])
      made[steps] = losses(folder / "run")
    return made[steps]

  return of


@pytest.fixture
def environment():
  """Of a process that is not a test: CPU devices are chosen by the launcher."""
  keep = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
  return keep | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAXLM_PYTHON": sys.executable}

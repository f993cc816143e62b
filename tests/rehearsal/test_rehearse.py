"""The whole rehearsal in two processes, and what it says when something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import configlib
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.rehearsal import checks, scale
from jaxlm.rehearsal.starts import Starter

ROOT = Path(__file__).resolve().parents[2]


def config() -> RunConfig:
  return RunConfig(
    model=DecoderConfig(
      vocab_size=512, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=11_264
    ),
    data=DataConfig(seq_len=128, sources=[SyntheticConfig(name="ids", vocab_size=512)]),
    optim=AdamWConfig(peak_lr=1e-3),
    mesh=MeshConfig(fsdp=2, model=4),
  )


@pytest.fixture
def file(tmp_path):
  configlib.save_json(config(), tmp_path / "config.json")
  return tmp_path / "config.json"


def rehearse(file, *arguments):
  command = [sys.executable, "-m", "jaxlm.rehearse", f"--config={file}", "--processes=2"]
  found = subprocess.run(
    [*command, *arguments],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  lines = [line for line in found.stdout.splitlines() if line[:1].strip()]
  states = {line[8:31].strip(): line.split()[0] for line in lines}
  return found.returncode, found.stdout, found.stderr, states


def test_a_good_config_passes(file):
  """Breaks if a step of the rehearsal is left out, or one that works is called FAILED."""
  status, out, err, states = rehearse(file, "--chip=h100")
  assert status == 0, out + err
  assert "for 8 devices (fsdp=2 × model=4)" in out and "2 processes × 2 CPU devices" in out
  for name in (
    "config fits",
    "data",
    "memory",
    "processes meet",
    "hosts agree",
    "steps run",
    "rows",
    "loader speed",
    "checkpoint saved",
    "kill noticed",
    "resumed",
    "same as uninterrupted",
  ):
    assert states.get(name) == "OK", out
  assert "losses of steps 3–6 bit for bit, same rows" in " ".join(out.split())


def test_a_mesh_that_does_not_fit_and_processes_that_never_end(file):
  """Breaks if a refusal at full size is hidden by the small run, or a limit is not kept."""
  arguments = ("--config.mesh.model=3", "--seconds=1", "--devices=7", "--chip=v5e")
  status, out, err, states = rehearse(file, *arguments)
  assert status == 1, err
  assert states["config fits"] == "FAILED" and "needs 6 devices but 7 are there" in " ".join(
    out.split()
  )
  assert "no end within" in " ".join(out.split())
  assert "FAILED" in (states["processes meet"], states.get("steps run")), out
  assert states["resumed"] == "-"
  assert "verdict: 2 of" in out or "verdict: 3 of" in out


def test_a_hang_is_a_finding_with_its_place(file, tmp_path):
  """The last process waits for ever for its first row. Breaks if the rehearsal waits with it."""
  small, _, _ = scale.scaled(config(), 2, config().mesh.sizes(8), config().data)
  configlib.save_json(small, tmp_path / "small.json")
  starter = Starter(tmp_path, tmp_path / "small.json", 2, 2, 30.0)
  out = starter.start("hang", "run", "--hold_row=0")
  assert out.status is None and out.seconds < 60
  assert "process 1 at " in out.stands and "process 0 at " in out.stands
  assert out.reason().startswith("no end within")
  (killed, *_) = checks.of_killed(out, tmp_path / "run")
  assert killed.state == checks.FAILED

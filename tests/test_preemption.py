"""SIGTERM costs at most a step, and two runs never share a directory."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

from jaxlm import cli, run, train
from jaxlm.configflag import load_config
from jaxlm.training.preemption import Preemption
from jaxlm.workdir import Workdir

STEPS = 600

CONFIG = f"""
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tracking.config import TrackingConfig


def get_config():
  return RunConfig(
    model=DecoderConfig(
      vocab_size=0, num_layers=1, embed_dim=32, mlp_dim=32, num_heads=2, max_seq_len=16
    ),
    data=DataConfig(seq_len=16, sources=[SyntheticConfig(name="ids", vocab_size=64)]),
    optim=AdamWConfig(peak_lr=1e-3, schedule=ScheduleConfig(warmup_steps=2)),
    global_batch_size=8,
    num_steps={STEPS},
    tracking=TrackingConfig(tensorboard=False),
  )
"""


@pytest.fixture
def arguments(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG, encoding="utf-8")
  return [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]


def test_sigterm_saves_and_the_same_command_finishes(arguments, tmp_path):
  """Breaks if SIGTERM ends the process unsaved, or with a status that asks for no restart."""
  command = [sys.executable, "-m", "jaxlm.train", *arguments]
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  metrics = tmp_path / "run" / "metrics.jsonl"
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
  )
  deadline = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < deadline:
    if metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= 5:
      break
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == cli.PREEMPTED == 75, err
  assert "run the same command again" in out
  steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
  last = steps[-1]
  assert 5 <= last < STEPS
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [str(last)]

  again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
  assert again.returncode == 0, again.stderr
  assert f"steps {last}–{STEPS}" in again.stderr
  steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
  assert steps == list(range(1, STEPS + 1))


def test_signal_is_only_noted_and_the_handler_put_back():
  """Breaks if the handler stops in the middle of a step, or stays installed after training."""
  before = signal.getsignal(signal.SIGTERM)
  with Preemption(lambda step: False) as preemption:
    assert not preemption.requested(1)
    signal.raise_signal(signal.SIGTERM)
    assert preemption.requested(2) and preemption.requested(3)
  assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_the_step_compiles_is_obeyed_after_it(arguments, tmp_path, monkeypatch):
  """Breaks if a signal during the compilation, which takes minutes, ends the process with 143."""
  compile_step = run.compile_step

  def slow(*settings):
    signal.raise_signal(signal.SIGTERM)
    return compile_step(*settings)

  monkeypatch.setattr(run, "compile_step", slow)
  before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # pytest must live on
  try:
    config = load_config(arguments[0].removeprefix("--config="))
    assert not run.train(config, tmp_path / "run", devices=jax.devices()[:1])
  finally:
    signal.signal(signal.SIGTERM, before)
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]


def test_second_run_in_a_workdir_is_refused(arguments, tmp_path, capsys):
  """One line that names the owner; and the lock goes with its holder."""
  workdir = Workdir(tmp_path / "run")
  with workdir.lock():
    assert cli.execute(train.main, doc=train.__doc__, argv=["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
      rf"error: --workdir=\S+/run: in use by process {os.getpid()} on .+\n", error
    )
    assert sorted(p.name for p in workdir.path.iterdir()) == [".lock"]
  with workdir.lock():
    pass

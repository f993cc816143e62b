"""launch/local.py: real processes, one run; no survivor of a dead one."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, losses, write_config

LAUNCH = ROOT / "launch/local.py"


@pytest.fixture(scope="module")
def local():
  spec = importlib.util.spec_from_file_location("launch_local", LAUNCH)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def start(*arguments, environment=None, command):
  return subprocess.Popen(
    [sys.executable, str(LAUNCH), *arguments, "--", sys.executable, *command],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(process, seconds=90):
  """(status, stdout, stderr)"""
  out, err = process.communicate(timeout=seconds)
  return process.returncode, out, err


def alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def running(pid):
  """Whether it is there and no zombie that nobody waits for."""
  try:
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
  except OSError:
    return False
  return state not in "ZX"


def test_two_processes_train_as_one_does(alone, environment, tmp_path):
  """Breaks if the processes do not join, take the same rows, or one's output is lost."""
  config = write_config(tmp_path, 12)
  arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}", "--config.mesh.fsdp=2"]
  process = start(
    "--processes=2",
    "--devices_per_process=2",
    environment=environment,
    command=["-m", "jaxlm.train", *arguments, "--config.mesh.data=2"],
  )
  status, out, err = ended(process)
  assert status == 0, err
  assert "[0] done" in out and "[1] done" not in out, "one process speaks for all"
  assert err.count("4 × cpu") == 1
  expected = alone(12)
  assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-5)
  assert list(losses(tmp_path / "run")) == list(range(1, 13))


def test_one_killed_ends_all_with_its_status(tmp_path):
  """Breaks if a survivor goes on waiting for the one that is gone: the worst kind of hang."""
  code = (
    "import os, sys, time, pathlib; i = os.environ['JAXLM_PROCESS_ID'];"
    f"pathlib.Path({str(tmp_path)!r}, i).write_text(str(os.getpid()));"
    "print('here', flush=True); time.sleep(60)"
  )
  process = start("--processes=3", command=["-c", code])
  deadline = time.monotonic() + 20
  files = [tmp_path / str(i) for i in range(3)]
  while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < deadline:
    time.sleep(0.02)
  pids = [int(f.read_text()) for f in files]
  os.kill(pids[1], signal.SIGKILL)
  status, out, err = ended(process, 20)
  assert status == 128 + signal.SIGKILL
  assert "launch: process 1 ended with status 137: ending all" in err
  assert not any(alive(pid) for pid in pids)
  assert sorted(out.split("\n"))[1:] == ["[0] here", "[1] here", "[2] here"]


def test_the_status_is_that_of_the_first_failure():
  """Breaks if what a failure does to the others, 30 ms later, hides the failure."""
  code = (
    "import os, sys, time; first = os.environ['JAXLM_PROCESS_ID'] == '2';"
    "time.sleep(max(0, float(sys.argv[1]) - time.time()) + (0 if first else 0.03));"
    "os._exit(9 if first else 134)"
  )
  for _ in range(3):
    at = str(time.time() + 1.0)
    status, _, err = ended(start("--processes=3", command=["-c", code, at]))
    assert status == 9, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_is_passed_on_and_status_75_comes_back(number):
  """Breaks if the scheduler's signal, or the end of the terminal, ends the launcher and leaves the
  run unsaved, or alone."""
  code = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75));"
    "print('ready', flush=True); time.sleep(60)"
  )
  process = start("--processes=2", "--max_restarts=3", command=["-c", code])
  assert process.stdout is not None
  assert {process.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
  process.send_signal(number)
  status, _, err = ended(process, 20)
  assert (status, err) == (75, "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own service")
def test_a_killed_launcher_leaves_no_process():
  """Breaks if processes go on without their launcher, on devices that the next start needs."""
  code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
  process = start("--processes=2", command=["-c", code])
  assert process.stdout is not None
  pids = [int(process.stdout.readline().split()[1]) for _ in range(2)]
  process.kill()
  process.wait(timeout=10)
  deadline = time.monotonic() + 10
  while any(map(running, pids)) and time.monotonic() < deadline:
    time.sleep(0.02)
  assert not any(map(running, pids))


def test_restarts_end_after_three_without_a_new_checkpoint(tmp_path):
  """Breaks if a run that fails at once is started for ever, or one that makes progress given up."""
  code = (
    "import sys, pathlib; d = pathlib.Path(sys.argv[1].partition('=')[2]) / 'checkpoints';"
    "d.mkdir(parents=True, exist_ok=True); n = len(list(d.iterdir()));"
    "print('start', n, flush=True); n < 2 and (d / str(n + 1)).mkdir(); sys.exit(9)"
  )
  command = ["-c", code, f"--workdir={tmp_path / 'run'}"]
  status, out, err = ended(start("--processes=1", "--max_restarts=3", command=command))
  assert status == 9
  # Two starts with a new checkpoint; then three restarts and the last of them gave up.
  assert re.findall(r"start (\d)", out) == ["0", "1", "2", "2", "2", "2"]
  assert "3 restarts made no new checkpoint: giving up" in err


def test_bad_input_is_not_tried_again():
  status, out, _ = ended(
    start("--processes=1", "--max_restarts=3", command=["-c", "print('x'); raise SystemExit(2)"])
  )
  assert (status, out) == (2, "[0] x\n")


def test_gpus_are_shared_out(local, monkeypatch):
  """Breaks if two processes see the same GPU."""
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  found = local.environments(2, None, 1234, local.gpus())
  assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["4,5", "6,7"]
  assert [one["JAXLM_PROCESS_ID"] for one in found] == ["0", "1"]
  with pytest.raises(SystemExit, match=r"--processes=5 × 1 GPUs, but 4 are there"):
    local.environments(5, None, 1234, local.gpus())

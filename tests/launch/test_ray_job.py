"""launch/ray_job.py on a Ray cluster that is there already."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import ray_cluster
from tests.launch.conftest import ROOT


@pytest.fixture(scope="module")
def address():
  with ray_cluster.running() as found:
    yield found


def start(address, code, *arguments):
  command = [sys.executable, str(ROOT / "launch/ray_job.py"), f"--address={address}", "--nodes=2"]
  return subprocess.Popen(
    [*command, "--share_nodes", *arguments, "--", sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_processes_know_each_other_and_one_that_fails_ends_all(address, tmp_path):
  """Breaks if a node's output or status is lost, or the others go on without it."""
  code = (
    "import os, sys, time, pathlib; i = os.environ['JAXLM_PROCESS_ID'];"
    f"pathlib.Path({str(tmp_path)!r}, i).write_text(str(os.getpid()));"
    "print('here', os.environ['JAXLM_COORDINATOR'], os.environ['JAXLM_NUM_PROCESSES']);"
    "time.sleep(1 if i == '1' else 60); sys.exit(9)"
  )
  process = start(address, code)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 9, err
  assert "launch: process 1 ended with status 9: ending all" in err
  places = {line.split()[-2] for line in (out + err).splitlines() if " here " in line}
  assert len(places) == 1 and ":" in next(iter(places))
  assert all(f"[{i}] here" in out + err for i in range(2))
  for i in range(2):
    with pytest.raises(ProcessLookupError):
      os.kill(int((tmp_path / str(i)).read_text()), 0)


def test_sigterm_reaches_the_processes_and_75_comes_back(address, tmp_path):
  code = (
    "import os, signal, sys, time, pathlib; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75));"
    f"pathlib.Path({str(tmp_path)!r}, os.environ['JAXLM_PROCESS_ID']).touch(); time.sleep(60)"
  )
  process = start(address, code, "--max_restarts=3")
  deadline = time.monotonic() + 30
  while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 75, err

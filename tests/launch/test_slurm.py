"""launch/slurm.sbatch on a real Slurm of two nodes: cut off, queued again, done, same losses."""

import subprocess
import time

import pytest

from tests import slurm
from tests.launch.conftest import ROOT, losses, write_config

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
STEPS = 40
STEP_SECONDS = 0.8  # at least, until the first restart: not done when the signal comes


@pytest.fixture(scope="module")
def nodes():
  with slurm.cluster() as environment:
    yield environment


def call(environment, *command):
  found = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
  return found.stdout.strip()


def job(environment, number):
  """The fields of `scontrol show job`."""
  text = call(environment, "scontrol", "show", "job", "--oneliner", number)
  return dict(part.split("=", 1) for part in text.split() if "=" in part)


def submit(environment, *arguments):
  script = str(ROOT / "launch/slurm.sbatch")
  options = ["--parsable", f"--chdir={ROOT}", *arguments]
  at = next((i for i, a in enumerate(options) if a.startswith("--config=")), len(options))
  return call(environment, "sbatch", *options[:at], script, *options[at:])


def test_time_limit_queues_the_run_again_and_it_ends_with_the_same_losses(
  nodes, alone, environment, tmp_path
):
  """Breaks if the signal is not passed on, the job not queued again, a step lost or repeated."""
  inside = environment | nodes | {"JAX_NUM_CPU_DEVICES": "2", "STEP_SECONDS": str(STEP_SECONDS)}
  workdir, log = tmp_path / "run", tmp_path / "job.log"
  arguments = [f"--config={write_config(tmp_path, STEPS)}", "--config.mesh.data=2"]
  number = submit(
    inside,
    "--time=1",
    "--signal=TERM@45",  # Slurm looks at the limits twice a minute
    f"--output={log}",
    *arguments,
    f"--workdir={workdir}",
  )
  expected = alone(STEPS)  # meanwhile
  state, raised = {}, False
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    state = job(inside, number)
    if state["JobState"] in ENDED:
      break
    saved = [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    if state["Restarts"] != "0" and saved and not raised:  # once is enough
      call(inside, "scontrol", "update", f"JobId={number}", "TimeLimit=60")
      raised = True
    time.sleep(0.3)
  text = log.read_text(encoding="utf-8")
  assert state["JobState"] == "COMPLETED", text
  assert int(state["Restarts"]) >= 1
  assert "launch: status 75" in text and "0: stopped and saved" in text
  assert f"resuming {workdir}: " in text and "4 × cpu" in text
  found = losses(workdir)
  assert list(found) == list(range(1, STEPS + 1))
  assert found == pytest.approx(expected, abs=1e-5)


def test_bad_input_is_not_queued_again_and_vain_restarts_end(nodes, environment, tmp_path):
  """Breaks if a job that can never work takes its turn in the queue for ever."""
  inside = environment | nodes
  (tmp_path / "failing").write_text('#!/bin/bash\nexit "$STATUS"\n', encoding="utf-8")
  (tmp_path / "failing").chmod(0o755)
  for status, restarts in (2, 0), (9, 1):
    values = {"JAXLM_PYTHON": str(tmp_path / "failing"), "STATUS": str(status)}
    values["JAXLM_MAX_RESTARTS"] = "1"
    number = submit(
      inside | values,
      f"--output={tmp_path / f'{status}.log'}",
      "--config=x",
      f"--workdir={tmp_path}/w",
    )
    deadline = time.monotonic() + 60
    while (state := job(inside, number))["JobState"] != "FAILED" and time.monotonic() < deadline:
      time.sleep(0.2)
    text = (tmp_path / f"{status}.log").read_text(encoding="utf-8")
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", f"{status}:0"), text
    assert int(state["Restarts"]) == restarts
  assert "1 restarts made no new checkpoint: giving up" in text
  assert not list(tmp_path.glob("*.vain"))


def test_no_workdir_is_one_line(environment):
  """Without --workdir the template can't see progress; it must say so and not start anything."""
  found = subprocess.run(
    ["bash", str(ROOT / "launch/slurm.sbatch"), "--config=x"],
    env=environment,
    capture_output=True,
    text=True,
  )
  assert (found.returncode, found.stderr) == (
    2,
    "launch/slurm.sbatch: --workdir=DIR is missing\n",
  )

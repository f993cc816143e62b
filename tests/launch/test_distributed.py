"""Who the processes of a run are, from the environment alone."""

import re
import socket
import subprocess
import sys

import pytest

from jaxlm import distributed
from jaxlm.errors import UserError

MINE = {
  "JAXLM_COORDINATOR": "10.0.0.1:8476",
  "JAXLM_NUM_PROCESSES": "4",
  "JAXLM_PROCESS_ID": "3",
}
SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}


@pytest.mark.parametrize(
  "values",
  [
    {},
    MINE | {"JAXLM_NUM_PROCESSES": "1", "JAXLM_PROCESS_ID": "0"},
    SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"},
    {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # in a batch script or salloc, not under srun
    {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},  # a notebook in a pod
  ],
)
def test_a_process_of_its_own_joins_nobody(values):
  """Breaks if a command in a pod or a batch script waits for others that don't come."""
  assert distributed.settings(values) is None


def test_launcher_s_word_goes_before_what_else_is_found():
  found = distributed.settings(MINE | SLURM | {"JAXLM_START_SECONDS": "5"})
  assert found is not None
  assert (found["coordinator_address"], found["num_processes"], found["process_id"]) == (
    "10.0.0.1:8476",
    4,
    3,
  )
  assert found["initialization_timeout"] == 5 and found["heartbeat_timeout_seconds"] == 100
  assert found["local_device_ids"] == []


def test_one_process_a_node_takes_all_gpus_under_srun():
  """Breaks if JAX's rule for srun, one GPU a process, leaves seven of eight idle."""
  assert distributed.settings(SLURM)["local_device_ids"] == []
  several = distributed.settings(SLURM | {"SLURM_STEP_NUM_TASKS": "16"})
  assert several is not None and "local_device_ids" not in several


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"JAXLM_PROCESS_ID": ""}, r"^JAXLM_PROCESS_ID: not set, but JAXLM_COORDINATOR is"),
    ({"JAXLM_PROCESS_ID": "4"}, r"^JAXLM_PROCESS_ID=4: must be below JAXLM_NUM_PROCESSES=4"),
    ({"JAXLM_NUM_PROCESSES": "x"}, r"^JAXLM_NUM_PROCESSES=x: must be a whole number"),
    ({"JAXLM_COORDINATOR": "host"}, r"^JAXLM_COORDINATOR=host: write host:port"),
    ({"JAXLM_COORDINATOR": "h:x"}, r"^JAXLM_COORDINATOR=h:x: write host:port"),
    ({"JAXLM_COORDINATOR": "h:99999"}, r"^JAXLM_COORDINATOR=h:99999: write host:port"),
    ({"JAXLM_HEARTBEAT_SECONDS": "0"}, r"^JAXLM_HEARTBEAT_SECONDS=0: .* at least 1"),
  ],
)
def test_settings_that_can_not_be_are_one_line(change, message):
  with pytest.raises(UserError, match=message):
    distributed.settings(MINE | change)


@pytest.mark.parametrize(
  "values", [SLURM | {"SLURM_STEP_NUM_TASKS": "x"}, {"OMPI_COMM_WORLD_SIZE": "-1"}]
)
def test_what_a_launcher_says_is_checked_too(values):
  with pytest.raises(
    UserError, match=r"^(SLURM_STEP_NUM_TASKS=x|OMPI_COMM_WORLD_SIZE=-1): must be"
  ):
    distributed.settings(values)


def test_processes_that_do_not_come_are_one_line(environment):
  """Breaks if JAX's client aborts with a C++ stack: in the coordinator, and where there is none."""
  code = (
    "from jaxlm import cli, distributed\n"
    "def main(): distributed.initialize()\n"
    "cli.run(main, doc='')"
  )
  started = []
  for index in (0, 1):
    with socket.socket() as one:
      one.bind(("127.0.0.1", 0))
      port = one.getsockname()[1]
    mine = {
      "JAXLM_COORDINATOR": f"127.0.0.1:{port}",
      "JAXLM_NUM_PROCESSES": "2",
      "JAXLM_PROCESS_ID": str(index),
      "JAXLM_START_SECONDS": "2",
    }
    started.append(
      subprocess.Popen(
        [sys.executable, "-c", code], env=environment | mine, stderr=subprocess.PIPE, text=True
      )
    )
  for process in started:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, "launchers start again: a host may have been late"
    (line,) = re.findall(r"^error: .*", err, re.MULTILINE)
    assert "did not come together within 2 s" in line and "Check failure" not in err

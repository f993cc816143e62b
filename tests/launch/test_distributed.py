"""Who the processes of a run are, from the environment alone."""

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
    ({"JAXLM_HEARTBEAT_SECONDS": "0"}, r"^JAXLM_HEARTBEAT_SECONDS=0: .* at least 1"),
  ],
)
def test_settings_that_can_not_be_are_one_line(change, message):
  with pytest.raises(UserError, match=message):
    distributed.settings(MINE | change)

"""Joins the processes of one run, before JAX is used. A single process is left as it is.

Who the processes are is taken from, in this order:

1. JAXLM_COORDINATOR (host:port of process 0), JAXLM_NUM_PROCESSES and JAXLM_PROCESS_ID, which the
   launchers in launch/ set (local.py, ray_job.py, k8s/);
2. srun, mpirun: what JAX itself finds there;
3. JAXLM_DISTRIBUTED=auto: JAX's own detection in any case (TPU pods, Kubernetes). Without it a TPU
   host or a pod of Kubernetes is a run of its own.

Settings, all optional: JAXLM_START_SECONDS (300) for all processes to appear,
JAXLM_HEARTBEAT_SECONDS (100) after which a silent process is dead and the others end,
JAXLM_COORDINATOR_BIND (all interfaces) that process 0 listens on.
"""

import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError

LEAVE_SECONDS = 5.0

_NAMES = ("JAXLM_COORDINATOR", "JAXLM_NUM_PROCESSES", "JAXLM_PROCESS_ID")


def initialize() -> None:
  """Joins the other processes, if there are any; does nothing the second time.

  Call it before anything touches a device. Collectives between CPUs go through gloo, JAX's default.

  Raises:
    UserError: settings that can not be, or processes that did not appear in time.
  """
  arguments = settings(os.environ)
  if arguments is None:
    return
  import jax

  if jax.distributed.is_initialized():
    return
  try:
    jax.distributed.initialize(**arguments)
  except (RuntimeError, ValueError) as error:
    where = arguments.get("coordinator_address") or "the coordinator that JAX found"
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise UserError(
      f"{where}: the processes of this run did not come together within "
      f"{arguments['initialization_timeout']} s ({first[:200]}): check that all were started, and "
      "that this address can be reached from each; JAXLM_START_SECONDS waits longer"
    ) from None


def say(text: str) -> None:
  """Prints a line on process 0: one speaks for all. Call it after JAX was used."""
  import jax

  if jax.process_index() == 0:
    print(text, flush=True)


def leave(status: int) -> None:
  """Ends this process after a failure, where others may wait for it in a collective.

  JAX leaves a run only together with all other processes, for minutes if need be; until then no
  launcher sees that one failed. Those that failed for the same reason get some seconds.
  """
  jax = sys.modules.get("jax")
  if jax is None or not jax.distributed.is_initialized():
    return
  together = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  together.start()
  together.join(LEAVE_SECONDS)
  if together.is_alive():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def settings(environment: Mapping[str, str]) -> dict[str, Any] | None:
  """The arguments of jax.distributed.initialize; None where there is one process."""
  common: dict[str, Any] = {
    "initialization_timeout": _integer(environment, "JAXLM_START_SECONDS", 300, 1),
    "heartbeat_timeout_seconds": _integer(environment, "JAXLM_HEARTBEAT_SECONDS", 100, 1),
    "coordinator_bind_address": environment.get("JAXLM_COORDINATOR_BIND") or None,
  }
  given = [name for name in _NAMES if environment.get(name)]
  if given:
    missing = [name for name in _NAMES if name not in given]
    if missing:
      raise UserError(f"{missing[0]}: not set, but {given[0]} is: set {', '.join(_NAMES)}, or none")
    count = _integer(environment, "JAXLM_NUM_PROCESSES", 0, 1)
    index = _integer(environment, "JAXLM_PROCESS_ID", 0, 0)
    if index >= count:
      raise UserError(f"JAXLM_PROCESS_ID={index}: must be below JAXLM_NUM_PROCESSES={count}")
    if ":" not in environment["JAXLM_COORDINATOR"]:
      raise UserError(f"JAXLM_COORDINATOR={environment['JAXLM_COORDINATOR']}: write host:port")
    if count == 1:
      return None
    # The launcher shows each process its own devices; [] keeps JAX from choosing one of them.
    return common | {
      "coordinator_address": environment["JAXLM_COORDINATOR"],
      "num_processes": count,
      "process_id": index,
      "local_device_ids": [],
    }
  if environment.get("SLURM_STEP_NODELIST") and int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
    # JAX takes one GPU for each process under srun; a process alone on its node takes them all.
    alone = environment.get("SLURM_STEP_NUM_TASKS") == environment.get("SLURM_STEP_NUM_NODES")
    return common | ({"local_device_ids": []} if alone else {})
  if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
    return common
  if environment.get("JAXLM_DISTRIBUTED") == "auto":
    return common
  return None


def _integer(environment: Mapping[str, str], name: str, default: int, low: int) -> int:
  text = environment.get(name) or str(default)
  if not text.isdigit() or int(text) < low:
    raise UserError(f"{name}={text}: must be a whole number, at least {low}")
  return int(text)

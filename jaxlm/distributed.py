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
# Not that of bad input, after which launchers don't start again: a host may have been late.
_APART = 1

_NAMES = ("JAXLM_COORDINATOR", "JAXLM_NUM_PROCESSES", "JAXLM_PROCESS_ID")


def initialize() -> None:
  """Joins the other processes, if there are any; does nothing the second time.

  Call it before anything touches a device. Collectives between CPUs go through gloo, JAX's default.

  Where processes did not appear in time, this one ends here with one line and status 1: JAX's own
  end is an abort inside its C++ client, which nothing in Python can catch.

  Raises:
    UserError: settings that can not be.
  """
  arguments = settings(os.environ)
  if arguments is None:
    return
  import jax

  if jax.distributed.is_initialized():
    return
  seconds = arguments["initialization_timeout"]
  where = arguments.get("coordinator_address") or "the coordinator that JAX found"
  apart = f"{where}: the processes of this run did not come together"
  advice = "check that all were started, and that this address can be reached from each"

  def give_up() -> None:
    sys.stdout.flush()
    line = f"error: {apart} within {seconds} s: {advice}; JAXLM_START_SECONDS waits longer"
    print(line, file=sys.stderr, flush=True)
    os._exit(_APART)

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  try:
    # Later than the timer: see above.
    jax.distributed.initialize(**arguments | {"initialization_timeout": seconds + 60})
  except (RuntimeError, ValueError) as error:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise UserError(f"{apart} ({first[:200]}): {advice}") from None
  finally:
    timer.cancel()


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
    host, _, port = environment["JAXLM_COORDINATOR"].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
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
  tasks = _integer(environment, "SLURM_STEP_NUM_TASKS", 1, 1)
  if environment.get("SLURM_STEP_NODELIST") and tasks > 1:
    # JAX takes one GPU for each process under srun; a process alone on its node takes them all.
    alone = environment.get("SLURM_STEP_NUM_TASKS") == environment.get("SLURM_STEP_NUM_NODES")
    return common | ({"local_device_ids": []} if alone else {})
  if _integer(environment, "OMPI_COMM_WORLD_SIZE", 1, 1) > 1:
    return common
  if environment.get("JAXLM_DISTRIBUTED") == "auto":
    return common
  return None


def _integer(environment: Mapping[str, str], name: str, default: int, low: int) -> int:
  text = environment.get(name) or str(default)
  if not text.isdecimal() or int(text) < low:
    raise UserError(f"{name}={text}: must be a whole number, at least {low}")
  return int(text)

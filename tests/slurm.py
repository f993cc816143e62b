"""A real Slurm of two nodes on this machine, for tests.

One controller and two slurmd with a munged of their own, all in one directory, on ports that are
free. The nodes' names are loopback addresses: jax.distributed takes the name of the first node for
the coordinator's address, so the names must resolve, and /etc/hosts need not be touched.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NODES = ("127.0.0.1", "127.0.0.2")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
_PATH = "/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", "")


def why_not() -> str | None:
  """Why no Slurm can be started here, or None."""
  missing = [name for name in NEEDED if shutil.which(name, path=_PATH) is None]
  if missing:
    return f"{missing[0]} is not installed: apt-get install slurm-wlm munge"
  if os.geteuid() != 0:
    return "slurmctld and slurmd of a test need root"
  return None


def _ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(("127.0.0.1", 0))
    return [one.getsockname()[1] for one in sockets]


def _config(folder: Path) -> str:
  controller, *nodes = _ports(1 + len(NODES))
  host = socket.gethostname()
  lines = [
    "ClusterName=test",
    f"SlurmctldHost={host}(127.0.0.1)",
    f"SlurmctldPort={controller}",
    "SlurmUser=root",
    "SlurmdUser=root",
    "AuthType=auth/munge",
    # A requeued job waits until its credential has expired: two minutes by default.
    f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",
    f"StateSaveLocation={folder}/state",
    f"SlurmdSpoolDir={folder}/spool-%n",
    f"SlurmctldPidFile={folder}/slurmctld.pid",
    f"SlurmdPidFile={folder}/slurmd-%n.pid",
    f"SlurmctldLogFile={folder}/slurmctld.log",
    f"SlurmdLogFile={folder}/slurmd-%n.log",
    "ProctrackType=proctrack/linuxproc",
    "TaskPlugin=task/none",
    "JobAcctGatherType=jobacct_gather/none",
    "AccountingStorageType=accounting_storage/none",
    "SwitchType=switch/none",
    "MpiDefault=none",
    "SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1",
    "SelectType=select/cons_tres",
    "SelectTypeParameters=CR_Core",
    # More processors and memory than the machine has: both nodes are the same two cores.
    "SlurmdParameters=config_overrides",
    "ReturnToService=2",
    "KillWait=5",
  ]
  for name, port in zip(NODES, nodes):
    lines.append(
      f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=64000"
    )
  lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
  return "\n".join(lines) + "\n"


def _start(folder: Path, *command: str) -> "subprocess.Popen[bytes]":
  environment = os.environ | {"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
  with (folder / f"{command[0]}.out").open("ab") as out:
    return subprocess.Popen(
      [shutil.which(command[0], path=_PATH) or command[0], *command[1:]],
      stdout=out,
      stderr=out,
      stdin=subprocess.DEVNULL,
      env=environment,
      start_new_session=True,
    )


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
  """Starts the two nodes; gives the environment in which sbatch finds them. Skips if it can't."""
  reason = why_not()
  if reason:
    pytest.skip(reason)
  # Not below pytest's own folders: munged wants directories that nobody else can write to.
  folder = Path(tempfile.mkdtemp(prefix="slurm"))
  running: list[subprocess.Popen[bytes]] = []
  try:
    folder.chmod(0o755)
    for name in ("munge", "state"):
      (folder / name).mkdir(mode=0o755)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(_config(folder))
    munge = [f"--{name}={folder}/munge/{name.split('-')[0]}" for name in ("socket", "key-file")]
    munge += [f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed")]
    running.append(_start(folder, "munged", "--foreground", *munge))
    _wait(lambda: (folder / "munge/socket").exists(), folder, "munged")
    running.append(_start(folder, "slurmctld", "-D"))
    running.extend(_start(folder, "slurmd", "-D", "-N", name) for name in NODES)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    _wait(lambda: _idle(environment), folder, "slurmctld")
    yield environment
  finally:
    _stop(folder, running)
    shutil.rmtree(folder, ignore_errors=True)


def _idle(environment: dict[str, str]) -> bool:
  found = subprocess.run(
    ["sinfo", "--noheader", "--Node", "--format=%T"],
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )
  return found.stdout.split() == ["idle"] * len(NODES)


def _wait(ready, folder: Path, what: str, seconds: float = 30) -> None:
  deadline = time.monotonic() + seconds
  while not ready():
    if time.monotonic() > deadline:
      logs = "\n".join(f.read_text(errors="replace")[-800:] for f in folder.glob("*.out"))
      raise RuntimeError(f"{what} is not ready after {seconds:.0f} s: {logs}")
    time.sleep(0.1)


def _stop(folder: Path, running: "list[subprocess.Popen[bytes]]") -> None:
  with contextlib.suppress(OSError, subprocess.TimeoutExpired):
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(
      ["scancel", "--full", "--signal=KILL", "--user=root"],
      env=environment,
      capture_output=True,
      timeout=10,
    )
    subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, timeout=10)
    time.sleep(0.3)
  for process in reversed(running):
    with contextlib.suppress(ProcessLookupError):
      process.terminate()
  for process in reversed(running):
    try:
      process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()

"""Several processes of one command on this machine, joined into one run.

usage: python launch/local.py --processes N [--devices_per_process K] [--max_restarts R] -- COMMAND

With GPUs each process sees its share of them; without, each makes K CPU devices of its own.
Every line of output carries its process: "[1] …". When one process dies, all are ended, and the
status is that of the one that died first. SIGTERM, Ctrl-C and a closed terminal (SIGHUP, unless
nohup) are passed on: the run saves and exits with status 75. When this launcher itself is killed,
so are the processes (on Linux).

--max_restarts R: start again after a failure or a pre-emption, until R restarts in a row made no
new checkpoint in the command's --workdir. Never after status 2 (bad input) or a SIGTERM to this.

examples:
  python launch/local.py --processes 2 --devices_per_process 2 -- \\
    python -m jaxlm.train --config=configs/tiny.py --workdir=runs/tiny --config.mesh.fsdp=2
  python launch/local.py --processes 8 --max_restarts 3 -- python -m jaxlm.train …
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

BAD_INPUT, PREEMPTED = 2, 75
GRACE_SECONDS = 10.0  # between being asked to end and being made to, after another died
SAVE_SECONDS = 600.0  # for the others to end after one was pre-empted


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line; `command` is what follows "--"."""
  parser = argparse.ArgumentParser(
    prog="launch/local.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--processes", type=int, required=True, help="how many")
  parser.add_argument(
    "--devices_per_process", type=int, help="GPUs of each (default: an equal share), or CPU devices"
  )
  parser.add_argument("--max_restarts", type=int, default=0, help="starts without a new checkpoint")
  parser.add_argument(
    "--port", type=int, default=0, help="of the coordinator (default: a free one)"
  )
  own, command = list(argv), []
  if "--" in own:
    at = own.index("--")
    own, command = own[:at], own[at + 1 :]
  arguments = parser.parse_args(own)
  if not command:
    parser.error("name the command after --: … -- python -m jaxlm.train --config=… --workdir=…")
  for name in ("processes", "devices_per_process"):
    if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
      parser.error(f"--{name}={getattr(arguments, name)}: must be at least 1")
  arguments.command = command
  return arguments


def gpus() -> list[str]:
  """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
  if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
    return []
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [name for name in visible.split(",") if name]
  try:
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return []
  return found.stdout.split()


def environments(
  processes: int, devices: int | None, port: int, names: Sequence[str]
) -> list[dict[str, str]]:
  """What each process finds in its environment. names: gpus()."""
  each = devices or (len(names) // processes if names else 1)
  if (names and each * processes > len(names)) or each == 0:
    raise SystemExit(
      f"launch/local.py: --processes={processes} × {max(each, 1)} GPUs, but {len(names)} are there"
    )
  out = []
  for index in range(processes):
    values = {
      "JAXLM_COORDINATOR": f"127.0.0.1:{port}",
      "JAXLM_NUM_PROCESSES": str(processes),
      "JAXLM_PROCESS_ID": str(index),
      "PYTHONUNBUFFERED": "1",
    }
    if names:
      values["CUDA_VISIBLE_DEVICES"] = ",".join(names[index * each : (index + 1) * each])
    else:
      values["JAX_NUM_CPU_DEVICES"] = str(each)
    out.append(os.environ | values)
  return out


def free_port() -> int:
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return int(one.getsockname()[1])


# Run before the command, in its process: the kernel kills that when the thread that started it
# ends.
# (A preexec_fn would fork this process as it is, threads and all: the rehearsal's have JAX in it.)
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
set_parent_death_signal = 1
ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
  sys.exit(1)  # it ended before
try:
  os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
  sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def _with_parent(command: Sequence[str]) -> list[str]:
  if not sys.platform.startswith("linux"):
    return list(command)
  return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


class Group:
  """The processes of one start. output: what they print goes there; None: where this one prints."""

  def __init__(
    self,
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    output: IO[bytes] | None = None,
  ):
    self._threads: list[threading.Thread] = []
    self._lock = threading.Lock()
    self._ended: list[int] = []  # in the order in which they did
    self._errors: IO[bytes] = sys.stderr.buffer if output is None else output
    self.processes: list[subprocess.Popen[bytes]] = []
    for index, environment in enumerate(environments):
      process = subprocess.Popen(
        _with_parent(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this launcher alone, which passes it on once
      )
      self.processes.append(process)
      for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        assert source is not None
        out = target.buffer if output is None else output
        thread = threading.Thread(
          target=self._copy, args=(source, out, f"[{index}] ".encode()), daemon=True
        )
        thread.start()
        self._threads.append(thread)
      threading.Thread(target=self._watch, args=(index,), daemon=True).start()

  def _watch(self, index: int) -> None:
    # Others end within milliseconds of the first: looking now and then would mix them up.
    self.processes[index].wait()
    self._ended.append(index)

  def _copy(self, source: Iterable[bytes], target: IO[bytes], prefix: bytes) -> None:
    for line in source:
      # A closed terminal: read on, or the process would wait for ever to be read.
      with self._lock, contextlib.suppress(OSError):
        target.write(prefix + line.rstrip(b"\n") + b"\n")
        target.flush()

  def signal(self, number: int) -> None:
    """To the processes that live, and to what they started."""
    for process in self.processes:
      if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, number)

  def wait(self) -> int:
    """Until all have ended, which one that fails brings about. Returns the status of the first."""
    status, deadline = 0, float("inf")
    while True:
      ended = {i: self.processes[i].returncode for i in self._ended.copy()}
      states = [ended.get(i) for i in range(len(self.processes))]
      failed = {i: 128 - state if state < 0 else state for i, state in ended.items() if state}
      # A process that was pre-empted has saved; so have the others, which end by themselves.
      bad = {i: state for i, state in failed.items() if state != PREEMPTED}
      if bad and status in (0, PREEMPTED):
        index, status = next(iter(bad.items()))
        if None in states:
          line = f"process {index} ended with status {status}: ending all"
          self._copy([line.encode()], self._errors, b"launch: ")
          self.signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
      elif failed and not status:
        status, deadline = PREEMPTED, time.monotonic() + SAVE_SECONDS
      if None not in states:
        break
      if time.monotonic() > deadline:
        self.signal(signal.SIGKILL)
      time.sleep(0.05)
    for thread in self._threads:
      thread.join(timeout=2)  # a grandchild may hold the pipe open
    return status


def newest_checkpoint(command: Sequence[str]) -> int:
  """The step of the newest whole checkpoint in the command's --workdir; -1: none."""
  folder = None
  for word, following in zip(command, [*command[1:], ""]):
    if word.startswith("--workdir="):
      folder = word.partition("=")[2]
    elif word == "--workdir":
      folder = following
  if folder is None:
    return -1
  steps = [int(p.name) for p in (Path(folder) / "checkpoints").glob("*") if p.name.isdigit()]
  return max(steps, default=-1)


def main(argv: Sequence[str]) -> int:
  arguments = parse(argv)
  names = gpus()
  told: list[int] = []
  group: Group | None = None

  def pass_on(number: int, frame: FrameType | None) -> None:
    told.append(number)
    if group is not None:
      group.signal(number if len(told) < 3 else signal.SIGKILL)

  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, lambda number, frame: pass_on(signal.SIGTERM, frame))
  signal.signal(signal.SIGTERM, pass_on)
  signal.signal(signal.SIGINT, pass_on)
  vain = 0
  while True:
    before = newest_checkpoint(arguments.command)
    port = arguments.port or free_port()
    group = Group(
      arguments.command,
      environments(arguments.processes, arguments.devices_per_process, port, names),
    )
    if told:  # between two starts
      group.signal(told[-1])
    status = group.wait()
    if status in (0, BAD_INPUT) or told or not arguments.max_restarts:
      return status
    vain = 0 if newest_checkpoint(arguments.command) > before else vain + 1
    if vain > arguments.max_restarts:
      print(
        f"launch: status {status}; {arguments.max_restarts} restarts made no new checkpoint: "
        "giving up",
        file=sys.stderr,
      )
      return status
    print(f"launch: status {status}; starting again ({vain} without a checkpoint)", file=sys.stderr)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

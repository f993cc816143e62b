"""Real processes of a scaled-down run: started, watched, killed, never waited for without end."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm import resumption
from jaxlm.errors import UserError

HEARTBEAT_SECONDS = 10
NOTICE_SECONDS = 60.0  # for the others to end after one was killed
DUMP_SECONDS = 1.5  # for a process to say where it stands


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How one start ended.

  Attributes:
    status: of the first process that failed; None: the time limit ended it.
    seconds: from the start to the end.
    log: what all printed, "[rank] line".
    records: what each process wrote; see rehearsal/__main__.py.
    noticed: seconds from the kill until all others had ended; None: no kill, or they hung.
    stands: where each process stood when the time limit came.
  """

  status: int | None
  seconds: float
  log: Path
  records: list[list[dict[str, Any]]]
  noticed: float | None = None
  stands: str = ""

  def events(self, name: str) -> list[dict[str, Any]]:
    """The event's line of each process that has one."""
    return [line for lines in self.records for line in lines if line.get("event") == name]

  @property
  def gloo_failed(self) -> bool:
    """Whether processes that had met did not connect for a collective: not the run's fault."""
    text = self.log.read_text(encoding="utf-8", errors="replace")
    return self.status != 0 and "Gloo context initialization failed" in text

  def reason(self) -> str:
    """One line: why it failed."""
    if self.gloo_failed:
      return (
        "gloo, which stands in for the accelerators' network here, did not connect: rehearse with"
        " fewer --processes, or on an idle machine"
      )
    if self.status is None:
      return f"no end within {self.seconds:.0f} s; {self.stands or 'no process said where it is'}"
    lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
    texts = [re.sub(r"^\[\d+\] ", "", line) for line in lines]
    named = [t for t in texts if t.startswith("error: ")] or [
      t for t in texts if re.match(r"[\w.]*(Error|Exception)\b", t)
    ]
    return f"status {self.status}: {named[0].removeprefix('error: ') if named else self.log}"


@dataclasses.dataclass(frozen=True)
class Starter:
  """Starts processes of one config. folder: of configs, runs, logs. seconds: limit of a start."""

  folder: Path
  config: Path
  processes: int
  devices: int  # of each
  seconds: float

  def start(self, name: str, run: str, *arguments: str, kill_at: Path | None = None) -> Outcome:
    """Starts all and waits for the end; once more where gloo did not connect.

    Args:
      name: of this start, for its log and its records. run: of the run's directory.
      arguments: more flags of rehearsal/__main__.py.
      kill_at: SIGKILL to the last process once this exists and that process is holding.
    """
    out = self._once(name, run, arguments, kill_at)
    if not out.gloo_failed:
      return out
    shutil.rmtree(out.log.with_suffix(".first"), ignore_errors=True)
    (self.folder / "records" / name).rename(out.log.with_suffix(".first"))
    return self._once(name, run, arguments, kill_at)

  def _once(self, name: str, run: str, arguments: tuple[str, ...], kill_at: Path | None) -> Outcome:
    local = _launcher()
    records, log = self.folder / "records" / name, self.folder / f"{name}.log"
    command = [sys.executable, "-m", "jaxlm.rehearsal", f"--config={self.config}"]
    command += [f"--workdir={self.folder / run}", f"--records={records}", *arguments]
    environments = local.environments(self.processes, self.devices, local.free_port(), [])
    for values in environments:
      values |= {"JAX_PLATFORMS": "cpu", "JAXLM_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS)}
      values["JAXLM_START_SECONDS"] = str(max(int(self.seconds) // 2, 1))
      # A checkout that is not installed is found by its own path.
      paths = [str(Path(jaxlm.__file__).parent.parent), values.get("PYTHONPATH", "")]
      values["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def read() -> list[list[dict[str, Any]]]:
      return [resumption.read(records / f"{i}.jsonl") for i in range(self.processes)]

    began = time.monotonic()
    with log.open("wb") as output:
      group = local.Group(command, environments, output)
      noticed, stands, timed_out = None, "", False
      try:
        if kill_at is not None:
          noticed, stands, timed_out = self._kill(group, kill_at, read, log)
        if not timed_out:
          waiter = threading.Thread(target=group.wait, daemon=True)
          waiter.start()
          waiter.join(max(began + self.seconds - time.monotonic(), 1))
          timed_out = waiter.is_alive()
        if timed_out and not stands:
          stands = _where(group, log)
      finally:
        group.signal(signal.SIGKILL)
      status = group.wait()
    if timed_out:
      status = None
    return Outcome(status, time.monotonic() - began, log, read(), noticed, stands)

  def _kill(
    self, group: Any, kill_at: Path, read: Any, log: Path
  ) -> tuple[float | None, str, bool]:
    """(seconds until the others had ended by themselves, where they stood, whether time ran out)"""
    last, deadline = group.processes[-1], time.monotonic() + self.seconds

    def alive() -> list[Any]:
      return [p for p in group.processes if p.poll() is None]

    while not (kill_at.exists() and any(e.get("event") == "holding" for e in read()[-1])):
      if len(alive()) < self.processes:
        return None, "", False  # one failed by itself
      if time.monotonic() > deadline:
        return None, "", True
      time.sleep(0.1)
    killed = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
      os.kill(last.pid, signal.SIGKILL)
    while alive() and time.monotonic() < killed + NOTICE_SECONDS:
      time.sleep(0.05)
    if not alive():
      return time.monotonic() - killed, "", False
    return None, _where(group, log), False


def _where(group: Any, log: Path) -> str:
  """Asks the processes that live for their stacks: "process 0 at training/loop.py:93 (_report)"."""
  size = log.stat().st_size if log.exists() else 0
  group.signal(signal.SIGUSR1)
  time.sleep(DUMP_SECONDS)
  text = log.read_bytes()[size:].decode("utf-8", errors="replace") if log.exists() else ""
  found: dict[str, str] = {}
  main: dict[str, bool] = {}
  for line in text.splitlines():
    rank, _, rest = line.partition("] ")
    if "most recent call first" in rest:
      main[rank] = rest.startswith("Current thread")  # signals are handled by the main thread
    match = re.search(r'jaxlm/((?!rehearsal/)[\w/]+\.py)", line (\d+) in (\w+)', rest)
    if match and main.get(rank) and rank not in found:
      found[rank] = f"process {rank.lstrip('[')} at {match[1]}:{match[2]} ({match[3]})"
  return ", ".join(found[rank] for rank in sorted(found))


def _launcher() -> Any:
  """launch/local.py of this source tree, as a module."""
  file = Path(jaxlm.__file__).parent.parent / "launch" / "local.py"
  if not file.is_file():
    raise UserError(f"{file}: missing: rehearse from jaxlm's source tree, which has the launchers")
  spec = importlib.util.spec_from_file_location("jaxlm_launch_local", file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module

"""Faults for real: processes of one run killed, frozen, cut off in a save; a checkpoint cut short.

usage: python benchmarks/multi_faults.py DIR

Reads DIR/job.json ("gpus", "dtype", "fake", "seconds", "scenarios"), writes DIR/result.json after
every check. A run of one process for each GPU (fake: two of one CPU device each) under
launch/local.py's Group is disturbed and started again; its losses must then be those of the run
that nobody disturbed: within 1e-5 of each loss in float32 (products in full precision), 5e-3 with
bfloat16 products, whose sums depend on the number of GPUs. The loss must fall by a tenth at least
in the undisturbed run: of losses that stay as they are, equality would say nothing.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from multi_rows import QUIET

HERE = Path(__file__).parent
STEPS, EVERY, HOLD = 12, 4, 6  # a checkpoint each EVERY steps; a process stops at the HOLDth batch
HEARTBEAT_SECONDS = 10
NOTICE_SECONDS = 60.0  # the bound: within it the others must have ended by themselves
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}
SCENARIOS = {
  "float32": ("killed", "frozen", "cut", "save"),
  "bfloat16": ("fewer",),
}
PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"


def launcher() -> Any:
  """launch/local.py as a module."""
  file = HERE.parent / "launch" / "local.py"
  spec = importlib.util.spec_from_file_location("launch_local", file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def write_run(folder: Path, dtype: str, fake: bool, gpus: int) -> None:
  """FOLDER/data/small, a dataset, and FOLDER/config.json, a run on it."""
  from jaxlm import configlib
  from jaxlm.config import RunConfig
  from jaxlm.data.config import DataConfig, TokenShardsConfig
  from jaxlm.data.testing import write_dataset
  from jaxlm.layers.config import DType, Remat
  from jaxlm.models.config import DecoderConfig
  from jaxlm.optim.adamw import AdamWConfig
  from jaxlm.optim.schedules import ScheduleConfig
  from jaxlm.tokenizers.byte import ByteTokenizer
  from jaxlm.tracking.config import TrackingConfig
  from jaxlm.training.config import CheckpointConfig

  seq, batch = (16, 8) if fake else (512, 4 * gpus)
  tokenizer = ByteTokenizer()
  rng = np.random.default_rng(0)
  # Few ids, seldom the later ones: learned within some steps.
  count = 2 * STEPS * batch * seq // 60
  documents = [100 + np.minimum(rng.geometric(0.3, rng.integers(30, 90)), 40) for _ in range(count)]
  root = folder / "data" / "small"
  write_dataset(
    root,
    documents,
    shard_tokens=100_000,
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(root / "tokenizer")
  layers, embed, mlp, heads = (1, 32, 32, 2) if fake else (8, 768, 2048, 12)
  config = RunConfig(
    model=DecoderConfig(
      vocab_size=0,
      num_layers=layers,
      embed_dim=embed,
      mlp_dim=mlp,
      num_heads=heads,
      max_seq_len=seq,
      compute_dtype=DType[dtype.upper()],
      remat=Remat.NONE,
    ),
    data=DataConfig(seq_len=seq, sources=[TokenShardsConfig(name="small", path=str(root))]),
    optim=AdamWConfig(peak_lr=1e-2 if fake else 1e-3, schedule=ScheduleConfig(warmup_steps=2)),
    global_batch_size=batch,
    num_steps=STEPS,
    checkpoint=CheckpointConfig(every_steps=EVERY),
    tracking=TrackingConfig(tensorboard=False),
  )
  configlib.save_json(config, folder / "config.json")


@dataclasses.dataclass
class Start:
  """How a start ended: the launcher's status (None: the limit ended it), all output, seconds from
  the disturbance until the undisturbed had ended (None: they had not, within NOTICE_SECONDS)."""

  status: int | None
  text: str
  noticed: float | None = None

  @property
  def last(self) -> str:
    lines = [line for line in self.text.splitlines() if "rror" in line] or self.text.splitlines()
    return f"status {self.status}: {(lines or ['no output'])[-1][:200]}"


class Faults:
  """The scenarios of one job, in a folder of their own."""

  def __init__(self, folder: Path, job: dict[str, Any]):
    self.folder, self.job = folder, job
    self.gpus: int = job["gpus"]
    self.local = launcher()
    self.checks: list[dict[str, str]] = []
    self.deadline = time.monotonic() + job["seconds"]
    self.reference: dict[int, float] = {}
    from jaxlm import configlib

    self.batch = configlib.load_json(folder / "config.json").global_batch_size

  def check(self, name: str, verdict: bool | str, detail: str) -> bool:
    """Notes a verdict, prints it and writes it down at once."""
    word = verdict if isinstance(verdict, str) else PASS if verdict else FAIL
    name = f"{name} ({self.job['dtype']}, {self.gpus} processes)"
    self.checks.append({"name": name, "verdict": word, "detail": detail})
    print(f"{word} {name}: {detail}", file=sys.stderr, flush=True)
    result = {"checks": self.checks, "done": False}
    (self.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return word == PASS

  # ---- starts -----------------------------------------------------------------------------------

  def start(
    self,
    name: str,
    run: str,
    processes: int,
    *arguments: str,
    disturb: Callable[[Any, Path], list[Any] | None] | None = None,
  ) -> Start:
    """Starts the run; disturb: hurts processes of the group, returns those that it hurt."""
    for attempt in range(2):
      found = self._start(f"{name}.{attempt}", run, processes, arguments, disturb)
      # gloo, which stands in for NCCL on CPUs, does not always connect; the run is not at fault.
      if "Gloo context initialization failed" not in found.text or found.status == 0:
        break
    return found

  def _start(
    self, name: str, run: str, processes: int, arguments: Sequence[str], disturb: Any
  ) -> Start:
    records, log = self.folder / "records" / name, self.folder / f"{name}.log"
    command = [sys.executable, "-m", "jaxlm.rehearsal", f"--config={self.folder / 'config.json'}"]
    command += [f"--workdir={self.folder / run}", f"--records={records}", *arguments]
    names = [] if self.job["fake"] else self.local.gpus()[:processes]
    environments = self.local.environments(processes, 1, self.local.free_port(), names)
    for values in environments:
      values["JAXLM_HEARTBEAT_SECONDS"] = str(HEARTBEAT_SECONDS)
      values["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE.parent), values.get("PYTHONPATH", "")))
      )
      if self.job["fake"]:
        values["JAX_PLATFORMS"] = "cpu"
      if self.job["dtype"] == "float32":
        values["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # GPUs take TF32 by themselves
    noticed = None
    with log.open("wb") as output:
      group = self.local.Group(command, environments, output)
      waiter = threading.Thread(target=group.wait, daemon=True)
      try:
        hurt = disturb(group, records) if disturb is not None else None
        if hurt:
          noticed = self._noticed(group, hurt)
        # From here on the launcher does what it does when one has ended: it ends the others.
        waiter.start()
        waiter.join(max(self.deadline - time.monotonic(), 1))
        timed_out = waiter.is_alive()
      finally:
        group.signal(signal.SIGKILL)
      status = group.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    return Start(None if timed_out else status, text, noticed)

  def _noticed(self, group: Any, hurt: list[Any]) -> float | None:
    began = time.monotonic()
    others = [process for process in group.processes if process not in hurt]
    while any(process.poll() is None for process in others):
      if time.monotonic() > began + NOTICE_SECONDS:
        return None
      time.sleep(0.05)
    return time.monotonic() - began

  def _hold_then(self, number: int) -> Callable[[Any, Path], list[Any] | None]:
    """Sends the last process a signal while the others wait for it in a collective."""
    from jaxlm import resumption

    def disturb(group: Any, records: Path) -> list[Any] | None:
      last = records / f"{len(group.processes) - 1}.jsonl"
      while not any(line.get("event") == "holding" for line in resumption.read(last)):
        if any(p.poll() is not None for p in group.processes) or self._late():
          return None
        time.sleep(0.1)
      time.sleep(2)  # the others come to the collective
      os.kill(group.processes[-1].pid, number)
      return [group.processes[-1]]

    return disturb

  def _late(self) -> bool:
    return time.monotonic() > self.deadline

  # ---- verdicts ---------------------------------------------------------------------------------

  def losses(self, run: str) -> dict[int, float]:
    from jaxlm import resumption

    return resumption.losses(self.folder / run)

  def same(self, name: str, run: str, first: int, start: Start) -> None:
    """The losses from step `first` on, of a run that was started again and said where from."""
    tolerance = TOLERANCE[self.job["dtype"]]
    if start.status != 0:
      self.check(name, FAIL, f"the restart failed: {start.last}")
      return
    rows = first * self.batch - self.batch
    found, steps = self.losses(run), range(first, STEPS + 1)
    if self._first_row != rows:
      self.check(name, FAIL, f"went on at row {self._first_row}, expected {rows}")
      return
    missing = [step for step in steps if step not in found]
    if missing:
      self.check(name, FAIL, f"no loss of steps {missing}")
      return
    worst = max(abs(found[s] - self.reference[s]) / abs(self.reference[s]) for s in steps)
    how = "bit for bit" if worst == 0 else f"within {worst:.1e} of each (allowed {tolerance:.0e})"
    detail = f"losses of steps {first}–{STEPS} as uninterrupted, {how}"
    self.check(name, bool(worst <= tolerance), detail)

  def again(self, name: str, run: str, processes: int) -> Start:
    """A restart; keeps the first row that its processes were given."""
    from jaxlm import resumption

    start = self.start(name, run, processes)
    files = (self.folder / "records").glob(f"{name}.*/*.jsonl")
    rows = [row for file in files for row, _ in resumption.rows_of(resumption.read(file))]
    self._first_row = min(rows, default=None)
    return start

  # ---- scenarios --------------------------------------------------------------------------------

  def straight(self) -> bool:
    start = self.start("straight", "straight", self.gpus)
    self.reference = self.losses("straight")
    ran = start.status == 0 and list(self.reference) == list(range(1, STEPS + 1))
    first, last = self.reference.get(1, 0.0), self.reference.get(STEPS, 0.0)
    detail = f"{STEPS} steps, loss {first:.4f} → {last:.4f}" if ran else start.last
    return self.check("uninterrupted", ran and last < 0.9 * first, detail)

  def _one_lost(self, name: str, number: int, fewer: bool) -> None:
    hold = f"--hold_row={HOLD * self.batch}"
    word = signal.Signals(number).name
    start = self.start(name, name, self.gpus, hold, disturb=self._hold_then(number))
    if start.noticed is None:
      self.check(
        f"{name}: the others end", FAIL, f"not within {NOTICE_SECONDS:.0f} s; {start.last}"
      )
    else:
      self.check(
        f"{name}: the others end",
        start.status not in (0, None),
        f"{start.noticed:.1f} s after {word} (heartbeat {HEARTBEAT_SECONDS} s, bound "
        f"{NOTICE_SECONDS:.0f} s); launcher's status {start.status}",
      )
    processes = max(self.gpus // 2, 1) if fewer else self.gpus
    back = self.again(f"{name}_again", name, processes)
    self.same(f"{name}: restart on {processes}", name, EVERY + 1, back)

  def killed(self) -> None:
    self._one_lost("killed", signal.SIGKILL, fewer=True)

  def frozen(self) -> None:
    self._one_lost("frozen", signal.SIGSTOP, fewer=False)

  def cut(self) -> None:
    """The newest checkpoint's largest file is cut in half: the one before it is taken."""
    shutil.copytree(self.folder / "straight", self.folder / "cut")
    newest = self.folder / "cut" / "checkpoints" / str(STEPS)
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)
    start = self.again("cut_again", "cut", self.gpus)
    aside = newest.with_name(f"{STEPS}.damaged").is_dir()
    self.check(
      "checkpoint cut off: seen",
      aside,
      f"{STEPS}.damaged, {file.name} was cut" if aside else start.last,
    )
    self.same("checkpoint cut off: restart", "cut", STEPS - EVERY + 1, start)

  def save(self) -> None:
    """All are killed while the second checkpoint is being written."""
    folder = self.folder / "save" / "checkpoints"

    def disturb(group: Any, records: Path) -> list[Any] | None:
      while not self._late() and all(p.poll() is None for p in group.processes):
        with contextlib.suppress(OSError):
          names = os.listdir(folder)  # noqa: PTH208 quicker than Path, and this is a race
          if any(n.startswith(str(2 * EVERY)) and "tmp" in n for n in names):
            group.signal(signal.SIGKILL)
            return list(group.processes)
          if str(2 * EVERY) in names:
            return None
      return None

    self.start("save", "save", self.gpus, f"--stop_at={2 * EVERY + 1}", disturb=disturb)
    if (folder / str(2 * EVERY)).is_dir():
      self.check("killed in a save", SKIP, "the save was over before it could be hit")
      return
    back = self.again("save_again", "save", self.gpus)
    self.same("killed in a save: restart", "save", EVERY + 1, back)

  def fewer(self) -> None:
    """Saved and stopped, then on half the GPUs."""
    first = self.start("fewer", "fewer", self.gpus, f"--stop_at={EVERY}")
    if first.status != 75:
      self.check("stopped", FAIL, first.last)
    processes = max(self.gpus // 2, 1)
    back = self.again("fewer_again", "fewer", processes)
    self.same(f"stopped: restart on {processes}", "fewer", EVERY + 1, back)

  def run(self) -> None:
    """All scenarios of the job; one that breaks does not stop the others."""
    if self.straight():
      for name in self.job["scenarios"] or SCENARIOS[self.job["dtype"]]:
        if self._late():
          self.check(name, SKIP, "no time left")
          continue
        try:
          getattr(self, name)()
        except Exception as error:
          self.check(name, FAIL, f"{type(error).__name__}: {error}")
    result = {"checks": self.checks, "done": not self._late(), "device": self.job["device"]}
    (self.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def main(folder: Path) -> None:
  """Runs the job in a directory."""
  for name, value in QUIET.items():
    os.environ.setdefault(name, value)
  job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
  write_run(folder, job["dtype"], job["fake"], job["gpus"])
  Faults(folder, job).run()


if __name__ == "__main__":
  main(Path(sys.argv[1]))

"""Several GPUs of one host: throughput, long rows, experts, XLA's flags, faults.

usage: python benchmarks/multi_gpu.py [--parts=scaling,long,moe,flags,faults] [--gpus=1,2,4,8]
         [--budget_s=540] [--models=1b,3b,7b] [--together] [--fake] [--steps=12 --warmup=4]
         [--peer_python=PATH] [--results=FILE] [--retry] [--only=TEXT] [--set=config.KEY=VALUE …]
         [--list]

Runs what is not yet in benchmarks/results.jsonl (and --results) for this type of device, the most
important first, while it fits into the budget: repeated calls finish the table. Each row has
processes of its own and a time limit; a row that fails is a line. Its record is written at once.
--gpus: default all, and half, a quarter … of them; the largest count has the most rows.
--together: rows of fewer GPUs at the same time, on different ones. --retry: those that failed, too.
--only: rows whose name has this text. --list: what would run, nothing more.
--fake: toy shapes on CPU devices; faults and the peer over gloo; records to build/.

jaxlm runs in train.py's worker, one process with all GPUs; the peer is torch_fsdp.py, a process a
GPU; faults are multi_faults.py. Both sides train on the same batches, bfloat16 products, float32
parameters and gradients summed in float32, fused AdamW, clipping. Beside what was measured stands
what jaxlm.plan says. weak: tokens/s a GPU ÷ those of the same rows a GPU on the fewest GPUs.
strong: tokens/s ÷ (those of the same batch on the fewest GPUs × how many times the GPUs). × HF:
tokens/s ÷ the peer's, the better of its ways. × base: of other flags, the table's; of RING, GATHER;
of experts, the dense model over fsdp. MFU: causal attention, of the data sheet's peak.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import train
from multi_rows import (
  FLOOR,
  MODELS,
  PARTS,
  QUIET,
  SECONDS,
  SURE,
  Row,
  chip_of,
  flag_environment,
  make_rows,
  predict,
)

from jaxlm.errors import UserError
from jaxlm.plan.chips import Chip

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
FAKE_RESULTS = HERE.parent / "build" / "multi_gpu_fake.jsonl"
LAST_SECONDS = 15.0  # of the budget, for the table


class CutOffError(Exception):
  """The budget ended a row, which says nothing of the row."""


# ---- where we are -------------------------------------------------------------------------------


def visible(fake: bool, wanted: Sequence[int]) -> list[str]:
  """The GPUs as CUDA_VISIBLE_DEVICES names them. Raises UserError where there are none."""
  if fake:
    return [str(i) for i in range(max(wanted, default=2))]
  named = os.environ.get("CUDA_VISIBLE_DEVICES")
  if named is not None:
    found = [name for name in named.split(",") if name]
  else:
    found = _query("index")
  if not found:
    raise UserError("no GPU is visible here: --fake runs the same rows on CPU devices")
  return found


def _query(what: str) -> list[str]:
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.strip().splitlines()
  return []


def counts(text: str, there: int) -> list[int]:
  """--gpus as sorted numbers; empty: all, and halves. Raises UserError for what is not there."""
  if not text:
    return sorted({max(there >> i, 1) for i in range(there.bit_length())})
  found = sorted({int(word) for word in text.split(",") if word.isdecimal()})
  if not found or found[0] < 1 or "".join(sorted(text)).strip(",0123456789"):
    raise UserError(f"--gpus={text}: write numbers, such as 1,2,4,8")
  if found[-1] > there:
    raise UserError(f"--gpus={text}: {there} GPUs are there")
  return found


def read(files: Iterable[Path], device: str) -> dict[str, dict[str, Any]]:
  """The newest record of each row that was run on this type of device, by its key."""
  found: dict[str, dict[str, Any]] = {}
  for file in dict.fromkeys(files):
    if not file.is_file():
      continue
    for line in file.read_text(encoding="utf-8").splitlines():
      with contextlib.suppress(ValueError):  # a line that was cut short
        record = json.loads(line)
        where = record.get("multi_gpu", {})
        if where.get("device") == device:
          found[where["key"]] = record
  return found


# ---- one row ------------------------------------------------------------------------------------


def run_row(
  row: Row, names: Sequence[str], limit: float, options: argparse.Namespace
) -> dict[str, Any]:
  """Runs it on these GPUs; what was measured, or {"error"}.

  Raises:
    CutOffError: `limit`, seconds, was the rest of the budget and not enough.
  """
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    environment = dict(os.environ) | {k: os.environ.get(k, v) for k, v in QUIET.items()}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "true" if row.who == "faults" else "false"
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    # A checkout that is not installed is found by its own path.
    paths = (str(HERE.parent), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if options.fake:
      environment["JAX_PLATFORMS"] = "cpu"
    else:
      environment["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    try:
      command = _prepare(row, folder, environment, limit, options)
    except UserError as error:
      return {"who": row.who, "error": str(error)}
    status, text = _wait(command, environment, limit)
    out = folder / "result.json"
    result = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    seconds = time.monotonic() - began
    if row.who == "faults" and result:
      if status is not None and not result.get("done"):
        result["error"] = f"status {status}: {reason(text)}"
      elif status is None:
        result["error"] = f"cut off after {limit:.0f} s"
      return {"who": row.who, **result, "wall_seconds": seconds}
    if status is None:
      raise CutOffError
    if status or not result:
      print(text[-3000:], file=sys.stderr)
      line = f"status {status}: {reason(text)}"
      return {"who": row.who, "error": line, "wall_seconds": seconds}
  job = row.job(options.steps, options.warmup)
  return train.summarise({"who": row.who, **result, "wall_seconds": seconds}, job)


def _prepare(
  row: Row, folder: Path, environment: dict[str, str], limit: float, options: argparse.Namespace
) -> list[str]:
  """Writes the job into the folder; the command that does it. Changes the environment."""
  if row.who == "faults":
    job: dict[str, Any] = dict(gpus=row.gpus, dtype=row.model, fake=options.fake)
    job |= dict(seconds=max(limit - 10, 10), device=options.device)
    job["scenarios"] = [name for name in options.scenarios.split(",") if name]
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return [sys.executable, str(HERE / "multi_faults.py"), str(folder)]
  if row.who == "torchtitan":
    there = subprocess.run(
      [options.peer_python, "-c", "import torchtitan"], capture_output=True, check=False
    )
    missing = "skipped: not installed here" if there.returncode else "skipped: no adapter to it yet"
    raise UserError(missing)
  job = row.job(options.steps, options.warmup)
  (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
  vocab = train.SHAPES[row.model].config(row.seq).vocab_size
  distinct = min(train.DISTINCT_BATCHES, options.steps + options.warmup)
  batches: Any = train.make_batches(0, distinct, row.batch, row.seq, vocab, packed=False)
  np.savez(folder / "batches.npz", **batches)
  if row.who == "hf":
    command = [options.peer_python, "-m", "torch.distributed.run", "--nnodes=1"]
    command += [f"--nproc_per_node={row.gpus}", "--master_addr=127.0.0.1"]
    return [*command, f"--master_port={_free_port()}", str(HERE / "torch_fsdp.py"), str(folder)]
  environment |= flag_environment(row.flags, row.gpus, environment)
  if options.fake:
    given = environment.get("XLA_FLAGS", "")
    environment["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={row.gpus}".strip()
  return [sys.executable, str(HERE / "train.py"), f"--worker={folder}"]


def _free_port() -> int:
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return int(one.getsockname()[1])


def _wait(command: list[str], environment: dict[str, str], limit: float) -> tuple[int | None, str]:
  """(status, None: the limit came; what it printed). Whatever it started is ended with it."""
  with tempfile.TemporaryFile() as output:
    try:
      process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
    except OSError as error:
      return 127, f"{command[0]}: {error.strerror}"
    status: int | None = None
    try:
      status = process.wait(limit)
    except subprocess.TimeoutExpired:
      # torchrun and the faults' launcher have children in sessions of their own, which end with
      # their parent or at its SIGTERM.
      process.terminate()
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    finally:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    output.seek(0)
    return status, output.read().decode("utf-8", errors="replace")


def reason(text: str) -> str:
  """The line of a process's output that says best why it failed."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  pattern = (
    r"(?:\[rank\d+\]: )?(error: |[\w.]*(Error|Exception)\b|.*RESOURCE_EXHAUSTED|.*out of mem)"
  )
  named = [line for line in lines if re.match(pattern, line) and "ChildFailedError" not in line]
  return (named[:1] or lines[-1:] or ["no message"])[0][:300]


# ---- all rows -----------------------------------------------------------------------------------


class Runner:
  """Runs rows within a budget of seconds, and writes what came out."""

  def __init__(self, names: Sequence[str], options: argparse.Namespace):
    self.options = options
    self.machine = train.describe_machine()
    self.free = list(names)
    self.deadline = time.monotonic() + options.budget_s - LAST_SECONDS
    self.done: dict[str, dict[str, Any]] = {}  # of this call
    self.cut: list[str] = []
    self.lock = threading.Lock()

  def left(self) -> float:
    return self.deadline - time.monotonic()

  def run(self, rows: Sequence[Row], expected: Mapping[str, float]) -> list[Row]:
    """Runs those that fit; returns those that were left. expected: seconds of each, by key."""
    waiting = list(rows)
    running: dict[Any, Sequence[str]] = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(self.free)) as pool:
      while True:
        for row in list(waiting):
          if running and not self.options.together:
            break
          if expected[row.key] > self.left() or row.gpus > len(self.free):
            continue
          taken, self.free = self.free[: row.gpus], self.free[row.gpus :]
          waiting.remove(row)
          running[pool.submit(self._one, row, taken, expected[row.key], len(running))] = taken
        if not running:
          return waiting
        ended, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in ended:
          self.free = sorted([*self.free, *running.pop(future)], key=_number)
          future.result()

  def _one(self, row: Row, names: Sequence[str], expected: float, beside: int) -> None:
    print(f"{row.key} …", file=sys.stderr, flush=True)
    # A row that hangs must not take the rest of the budget.
    own, left = self.options.row_s or max(3 * expected, 120), self.left()
    try:
      result = run_row(row, names, min(own, left), self.options)
    except CutOffError:
      if own > left:
        with self.lock:
          self.cut.append(row.key)
        return
      result = {"who": row.who, "error": f"no end within {own:.0f} s"}
    except Exception as error:  # one row must not end the others
      result = {"who": row.who, "error": f"{type(error).__name__}: {error}"}
    if "error" in result:
      print(f"{row.key}: {result['error']}", file=sys.stderr, flush=True)
    job = {} if row.who == "faults" else row.job(self.options.steps, self.options.warmup)
    record = train.record(result, job, self.machine)
    record["multi_gpu"] = {"key": row.key, "device": self.options.device, "beside": beside}
    with self.lock:
      self.done[row.key] = record
      if result["who"] == "torchtitan" and "error" in result:
        return  # it was not run
      file = Path(self.options.results)
      file.parent.mkdir(parents=True, exist_ok=True)
      with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def _number(name: str) -> tuple[int, str]:
  return (int(name) if name.isdecimal() else 0, name)


def seconds(row: Row, known: Mapping[str, Mapping[str, Any]], fake: bool) -> float:
  """What a row should take, from the rows of its kind and model that were run."""
  took = [
    record["wall_seconds"]
    for key, record in known.items()
    if key.split()[:2] == [row.who, row.model] and record.get("wall_seconds")
  ]
  if took and row.who != "faults":
    return 1.2 * max(took)
  if row.who == "torchtitan":
    return 1.0
  factor = 0.5 if fake else 1.5 if row.model == "7b" else 1.0
  return SECONDS[row.who] * factor


# ---- the table ----------------------------------------------------------------------------------

COLUMNS = ("", "tokens/s", "a GPU", "ms", "plan", "MFU", "GiB", "plan", "GiB sent", "plan")
RATIOS = ("weak", "strong", "× HF", "× base")


def failed(record: Mapping[str, Any]) -> bool:
  """Whether the row has no figures, or one of its checks failed."""
  return "error" in record or any(c["verdict"] == "FAIL" for c in record.get("checks", []))


def _rate(record: Mapping[str, Any] | None) -> float | None:
  return None if record is None else record.get("tokens_per_second")


def ratios(
  row: Row, rows: Sequence[Row], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
  """RATIOS of a row, those that can be computed; a row of the fewest GPUs has no scaling."""
  rate = _rate(records.get(row.key))
  if rate is None:
    return {}
  measured = [(one, found) for one in rows if (found := _rate(records.get(one.key)))]
  values = {}
  # Microbatches are how a batch fits, not what is trained.
  micro = "config.num_microbatches"

  def alike(one: Row) -> bool:
    plain = not any(axis != "fsdp" for axis, _ in one.mesh) and one.gpus < row.gpus
    return (
      plain
      and (one.who, one.model, one.seq, one.remat, one.flags)
      == (row.who, row.model, row.seq, row.remat, row.flags)
      and [s for s in one.sets if micro not in s] == [s for s in row.sets if micro not in s]
    )

  weak = [pair for pair in measured if alike(pair[0])
          and pair[0].batch * row.gpus == row.batch * pair[0].gpus]  # fmt: skip
  if weak:
    base, its = min(weak, key=lambda pair: pair[0].gpus)
    values["weak"] = (rate / row.gpus) / (its / base.gpus)
  strong = [pair for pair in measured if alike(pair[0]) and pair[0].batch == row.batch]
  if strong:
    base, its = min(strong, key=lambda pair: pair[0].gpus)
    values["strong"] = (rate / row.gpus) / (its / base.gpus)
  peers = [
    found
    for one, found in measured
    if one.who == "hf"
    and (one.model, one.gpus, one.batch, one.seq) == (row.model, row.gpus, row.batch, row.seq)
  ]
  if row.who == "jaxlm" and peers:
    values["× HF"] = rate / max(peers)
  bases = [found for one, found in measured if _is_base(one, row)]
  if bases:
    values["× base"] = rate / bases[0]
  return values


def _is_base(one: Row, row: Row) -> bool:
  """Whether `one` is what a row of other flags, RING or experts is held against."""
  if row.flags != "table":
    return one == dataclasses.replace(row, flags="table", rank=one.rank)
  if row.context == "RING":
    return one == dataclasses.replace(row, context="GATHER", rank=one.rank)
  same = (one.gpus, one.batch, one.seq) == (row.gpus, row.batch, row.seq)
  dense = one.who == "jaxlm" and one.model in ("1b", "toy8") and one.flags == "table"
  plain = [axis for axis, _ in one.mesh] == ["fsdp"]
  return "moe" in row.model and same and dense and plain and not one.sets


def cells(
  row: Row,
  record: Mapping[str, Any],
  plan: Mapping[str, float],
  chip: Chip | None,
  values: Mapping[str, float],
) -> list[str]:
  """A measured row under COLUMNS and RATIOS."""

  def gib(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.1f}"

  rate = record["tokens_per_second"]
  name = row.key.replace("config.", "").replace("gpus=", "")
  sent = record.get("sent_bytes")
  return [
    name,
    f"{rate:,.0f}",
    f"{rate / row.gpus:,.0f}",
    f"{record['ms_per_step']:.1f}",
    f"{plan['step_ms']:.0f}" if plan else "",
    f"{record['tflops']['causal'] * 1e12 / chip.flops:.1%}" if chip else "",
    gib(record["peak_bytes"]),
    gib(plan.get("bytes")),
    gib(sum(sent.values())) if sent else "",
    gib(plan.get("sent_bytes")) if row.gpus > 1 else "",
    *(f"{values[name]:.3f}" if name in values else "" for name in RATIOS),
  ]


def show(
  rows: Sequence[Row],
  every: Sequence[Row],
  records: Mapping[str, Mapping[str, Any]],
  plans: Mapping[str, Mapping[str, float]],
  chip: Chip | None,
  *,
  fake: bool,
) -> None:
  """The table of the rows that have figures, then the verdicts, then what failed.

  every: rows that ratios may be taken to.
  """
  from rich.console import Console
  from rich.table import Table

  of = chip.name if chip else "an unknown device: no MFU, no plan"
  table = Table(title=f"{'TOY SHAPES ON CPU DEVICES; ' if fake else ''}plan and MFU of {of}")
  for i, name in enumerate((*COLUMNS, *RATIOS)):
    table.add_column(name, justify="right" if i else "left", no_wrap=True)
  lines = []
  for row in rows:
    record = records.get(row.key)
    if record is None:
      continue
    for check in record.get("checks", []):
      lines.append(f"{check['verdict']} {check['name']}: {check['detail']}")
    if "error" in record:
      lines.append(f"{row.key}: {record['error']}")
    elif row.who != "faults":
      table.add_row(*cells(row, record, plans[row.key], chip, ratios(row, every, records)))
  for row in rows:
    # The floor is promised of eight GPUs; fewer are shown against it all the same.
    plain = row.flags == "table" and not row.sets and [axis for axis, _ in row.mesh] == ["fsdp"]
    weak = ratios(row, every, records).get("weak")
    if row.who == "jaxlm" and plain and row.model in ("3b", "toy8") and weak is not None:
      word = "SKIP" if fake else "PASS" if weak >= FLOOR else "FAIL"
      name = f"weak scaling of {row.model}, fsdp on {row.gpus} GPUs"
      lines.append(f"{word} {name}: {weak:.3f} (floor {FLOOR} on 8)")
  console = Console()
  console = console if console.is_terminal else Console(width=190)
  if table.row_count:
    console.print(table)
  for line in lines:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


# ---- the command --------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--parts", default=",".join(PARTS))
  parser.add_argument("--gpus", default="")
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--budget_s", type=float, default=540.0, help="seconds for this call")
  parser.add_argument("--row_s", type=float, default=0.0, help="a row's (default: 3 × expected)")
  parser.add_argument("--steps", type=int, default=12, help="timed steps")
  parser.add_argument("--warmup", type=int, default=4, help="steps before them")
  parser.add_argument("--set", action="append", default=[], metavar="config.KEY=VALUE")
  parser.add_argument("--only", default="", help="rows whose name has this text")
  parser.add_argument("--scenarios", default="", help="of faults: killed,frozen,cut,save")
  parser.add_argument("--peer_python", default=sys.executable, help="the Python that has torch")
  parser.add_argument("--results", default="")
  for name in ("together", "fake", "retry", "list"):
    parser.add_argument(f"--{name}", action="store_true")
  options = parser.parse_args(argv)
  for name, allowed in (("parts", PARTS), ("models", MODELS)):
    words = [word for word in getattr(options, name).split(",") if word]
    for word in words:
      if word not in allowed:
        raise UserError(f"--{name}={word}: known are {', '.join(allowed)}")
    setattr(options, name, words)
  options.results = options.results or str(FAKE_RESULTS if options.fake else RESULTS)
  return options


def main(argv: Sequence[str]) -> int:
  """Runs what fits into the budget; returns 1 if a row or a check failed."""
  try:
    options = parse(argv)
    wanted = [int(word) for word in options.gpus.split(",") if word.isdecimal()]
    names = visible(options.fake, wanted)
    gpus = counts(options.gpus, len(names))
    kinds = ["cpu"] if options.fake else _query("name")
    options.device = kinds[0] if kinds else "gpu"
    rows = make_rows(options.parts, gpus, options.models, options.set, options.fake)
    if options.scenarios:  # are not all that the row stands for
      some = (f"scenarios={options.scenarios}",)
      rows = [dataclasses.replace(r, sets=some) if r.who == "faults" else r for r in rows]
    rows = [row for row in rows if options.only in row.key]
    chip = chip_of("H100" if options.fake else options.device)
    plans: dict[str, dict[str, float]] = {}
    for row in list(rows):
      try:
        if row.who == "jaxlm":
          row.job(1, 1)
        plans[row.key] = predict(row, chip) if chip else {}
      except UserError as error:
        rows.remove(row)
        print(f"not possible: {row.key}: {error}", file=sys.stderr)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  files = [Path(options.results)] if options.fake else [RESULTS, Path(options.results)]
  known = read(files, options.device)
  kept = {key: record for key, record in known.items() if not ("error" in record and options.retry)}
  rest = [row for row in rows if row.key not in kept]
  large = [row for row in rest if chip and SURE * plans[row.key].get("bytes", 0) > chip.memory]
  rest = [row for row in rest if row not in large]
  expected = {row.key: seconds(row, known, options.fake) for row in rest}
  if options.list:
    for row in rest:
      print(f"{expected[row.key]:4.0f} s  {row.key}")
    return 0
  if shutil.which(options.peer_python) is None:
    print(f"error: --peer_python={options.peer_python}: no such program", file=sys.stderr)
    return 2
  runner = Runner(names[: gpus[-1]], options)
  left = runner.run(rest, expected)
  records = kept | runner.done
  every = make_rows(PARTS, counts("", len(names)), MODELS, options.set, options.fake)
  show(rows, [*rows, *every], records, plans, chip, fake=options.fake)
  for row in large:
    need = plans[row.key]["bytes"] / 2**30
    print(f"not tried: {row.key}: {need:.0f} GiB a GPU by the plan, too much")
  todo = [*runner.cut, *(row.key for row in left)]
  if todo:
    print(f"left for the next call: {len(todo)} rows, the first: {todo[0]}")
  mine = runner.done.values()
  skipped = [r for r in mine if r["who"] == "torchtitan"]
  return int(any(failed(r) for r in mine if r not in skipped))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

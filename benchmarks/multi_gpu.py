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
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from multi_rows import MODELS, PARTS, SECONDS, SURE, Row, chip_of, make_rows, predict
from multi_run import CutOffError, run_row
from multi_table import failed, show

from jaxlm.errors import UserError

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
FAKE_RESULTS = HERE.parent / "build" / "multi_gpu_fake.jsonl"
LAST_SECONDS = 15.0  # of the budget, for the table


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

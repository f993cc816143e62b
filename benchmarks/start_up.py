"""Time from the command line to the end of step 1, with a cold and a warm compilation cache.

usage: python benchmarks/start_up.py [--config=configs/1b.py:synthetic] [--repeat=1]
         [--config.key=value …]

Each run is `python -m jaxlm.train` in a process and a directory of its own, ended as soon as
metrics.jsonl holds step 1. The first run's JAX_COMPILATION_CACHE_DIR is empty; those after it find
what it compiled. The page cache is warm: a run that only imports goes before.

Columns, in seconds: imports (jaxlm.run and all that it needs, timed apart), ready (from the start
until the parameters exist and training is announced; imports included), step 1 (from there:
tracing, compilation and the step), total.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from jaxlm.tracking.jsonl import read_rows

ROOT = Path(__file__).parent.parent
POLL_SECONDS = 0.02


def import_seconds(environment: Mapping[str, str]) -> float:
  """Seconds that a new interpreter takes from its start until jaxlm.run is imported."""
  began = time.perf_counter()
  command = [sys.executable, "-c", "import jaxlm.run"]
  subprocess.run(command, env=dict(environment), check=True, cwd=ROOT)
  return time.perf_counter() - began


def measure(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
  """Starts a run and ends it after step 1: seconds `ready`, `step_1` and `total`."""
  seen: list[float] = []
  output: list[bytes] = []

  def watch(stream: IO[bytes]) -> None:
    for line in stream:
      output.append(line)
      if not seen and line.startswith(b"training "):
        seen.append(time.perf_counter())

  with tempfile.TemporaryDirectory() as workdir:
    metrics = Path(workdir) / "metrics.jsonl"
    command = [sys.executable, "-m", "jaxlm.train", f"--workdir={workdir}", *arguments]
    began = time.perf_counter()
    process = subprocess.Popen(
      command,
      env=dict(environment),
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    watcher = threading.Thread(target=watch, args=(process.stderr,), daemon=True)
    watcher.start()
    try:
      while not (metrics.exists() and any(row["step"] >= 1 for row in read_rows(metrics))):
        if process.poll() is not None and not metrics.exists():
          watcher.join(1)
          raise SystemExit(b"".join(output[-20:]).decode(errors="replace"))
        time.sleep(POLL_SECONDS)
      end = time.perf_counter()
    finally:
      # Not SIGTERM, which would save a checkpoint first.
      process.kill()
      process.wait()
  ready = (seen[0] if seen else end) - began
  return {"ready": ready, "step_1": end - began - ready, "total": end - began}


def main(argv: Sequence[str]) -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--config", default="configs/1b.py:synthetic")
  parser.add_argument("--repeat", type=int, default=1, help="warm runs")
  options, overrides = parser.parse_known_args(argv)
  arguments = [
    f"--config={options.config}",
    "--config.num_steps=2",
    "--config.optim.schedule.warmup_steps=1",
    "--config.eval.every_steps=0",
    *overrides,
  ]
  with tempfile.TemporaryDirectory() as cache:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    import_seconds(environment)
    print(f"{'cache':8}{'imports':>9}{'ready':>9}{'step 1':>9}{'total':>9}")
    for name in ("cold", *["warm"] * options.repeat):
      imports = import_seconds(environment)
      row = measure(arguments, environment)
      print(
        f"{name:8}{imports:9.2f}{row['ready']:9.2f}{row['step_1']:9.2f}{row['total']:9.2f}",
        flush=True,
      )


if __name__ == "__main__":
  main(sys.argv[1:])

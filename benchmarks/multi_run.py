"""One row of multi_gpu.py, in processes of its own."""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import train
from multi_rows import QUIET, Row, flag_environment

from jaxlm.errors import UserError

HERE = Path(__file__).parent


class CutOffError(Exception):
  """The budget ended a row, which says nothing of the row."""


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

"""A jaxlm run as the model of an op: its files, and the process that scores with it.

The stages know no JAX, so the run is opened in a process of its own, `python -m
jaxlm.score_documents`, one for each task that runs.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

_META = "meta/metadata"  # of a checkpoint: seal, and digests of all arrays


def is_run(model: str) -> bool:
  """Whether a model's path means a run and not a file."""
  return Path(model).expanduser().is_dir()


def newest(model: str, step: int | None) -> int:
  """The step to use. Raises UserError where there is no run, or no such whole checkpoint."""
  root = Path(model).expanduser()
  if not (root / "config.json").is_file():
    raise UserError(f"{model}: no run (config.json is missing) and no model's file; correct it")
  folder = root / "checkpoints"
  steps = sorted(
    int(d.name) for d in folder.glob("*") if d.name.isdigit() and (d / _META).is_file()
  )
  if not steps:
    raise UserError(f"{folder}: no checkpoint yet; train first")
  if step is not None and step not in steps:
    raise UserError(f"{folder}: no step {step}; there are {', '.join(map(str, steps))}")
  return steps[-1] if step is None else step


def files(model: str, step: int | None) -> tuple[str, ...]:
  """What decides the scores: the checkpoint's digests and seal, and the run's config."""
  return (f"{model}/config.json", f"{model}/checkpoints/{newest(model, step)}/{_META}")


class RunScorer:
  """Perplexity a byte by a run, in a process that ends with this object.

  device: what JAX_PLATFORMS is in that process.

  Raises:
    UserError: what the process said when it could not open the run, or that it died.
  """

  def __init__(self, model: str, step: int | None, device: str):
    self._model = model
    step = newest(model, step)
    command = [sys.executable, "-m", "jaxlm.score_documents"]
    command += [f"--workdir={Path(model).expanduser()}", f"--step={step}"]
    self._said = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads fills up)
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      env=os.environ | {"JAX_PLATFORMS": device},
    )
    self._end = weakref.finalize(self, _end, self._process)
    self._answer()

  def bits_per_byte(self, text: str, ends: bool) -> float:
    """ends: whether the text is the whole document, so that its end is predicted too."""
    line = json.dumps({"text": text, "ends": ends}) + "\n"
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(line.encode())
      self._process.stdin.flush()
    except OSError:
      raise self._died() from None
    found = self._answer()
    return float(found["nll"]) / (math.log(2) * found["bytes"])

  def close(self) -> None:
    """Ends the process."""
    self._end()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line.endswith(b"\n"):
      raise self._died()
    answer: dict[str, Any] = json.loads(line)
    return answer

  def _died(self) -> UserError:
    status = self._process.wait()
    self._said.seek(0)
    lines = self._said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    self.close()
    if status < 0:
      return UserError(
        f"{self._model}: the process that scores with it was killed by signal {-status} (out of"
        " memory?); run the stage again, with fewer --workers"
      )
    return UserError(f"{self._model}: {lines[-1].removeprefix('error: ')[:500]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
  process.kill()
  process.wait()
  for stream in (process.stdin, process.stdout):
    if stream is not None:
      with contextlib.suppress(OSError):  # what was not sent can not be
        stream.close()

"""Whether a restart of somebody's run has the rows and losses of the run that was not stopped."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxlm import agreement, configlib, distributed, resumption, run
from jaxlm.checkpoint import Checkpointer, Meta
from jaxlm.config import RunConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.errors import UserError
from jaxlm.layers.config import DType, resolve_dtype
from jaxlm.mesh import MESH_AXES
from jaxlm.resumption import Step
from jaxlm.tracking.config import TrackingConfig
from jaxlm.workdir import Workdir

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # of losses on another mesh, relative
MARK = ".jaxlm-verify-resume"


def verify(
  workdir: str | Path,
  config: RunConfig,
  *,
  steps: int = 4,
  rerun: bool = False,
  scratch: str | Path | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> bool:
  """Restarts a run beside itself, compares step by step and prints a table with a verdict.

  Args:
    workdir: of the run; only read.
    config: for the restart: the run's, with another mesh perhaps.
    steps: recorded steps to compare.
    rerun: compare with steps made anew here, as is done where too few were recorded.
    scratch: made and removed again; None: beside the run. All hosts must see it.
    devices: None: all.

  Returns:
    Whether rows are the same, and losses as near as they should be.
  """
  run.setup_jax()
  directory = Workdir(workdir).require()
  began: RunConfig = configlib.load_json(directory.config)
  devices = list(devices or jax.devices())
  sizes = config.validate_devices(len(devices))
  checkpointer = Checkpointer(directory.checkpoints, read_only=True)
  available = checkpointer.steps()
  if not available:
    raise UserError(f"{directory.checkpoints}: no checkpoint yet; train first")
  recorded = resumption.losses(directory.path)
  chosen = None if rerun else _newest_with_steps(available, recorded, steps)
  start = available[-1] if chosen is None else chosen
  meta = checkpointer.meta(start)
  checkpointer.close()
  place = _scratch(directory, scratch)
  proof = _Proof(directory, place, meta, devices)
  try:
    if chosen is not None:
      compared = [step for step in sorted(recorded) if step > start][:steps]
      span = range(start + 1, compared[-1] + 1)
      what = f"recorded in {directory.metrics}"
      same_mesh = proof.saved_mesh() == sizes and _manner(began) == _manner(config)
      rows = build_pipeline(config.data)
      first, count = meta.next_row, len(span) * config.global_batch_size
      expected = {step: recorded[step] for step in compared}
      expected_rows = resumption.expected_rows(rows, first, count)
    else:
      span = range(start + 1, start + steps + 1)
      what = "made anew without a stop"
      for one in (began, config):
        one.num_steps, one.log_every = max(one.num_steps, span[-1]), 1
      same_mesh = began.mesh.sizes(len(devices)) == sizes and _manner(began) == _manner(config)
      expected, expected_rows = proof.run("straight", began, [span[-1]])
      compared = list(span)
    halfway = [] if chosen is not None or len(span) < 2 else [span[len(span) // 2 - 1]]
    found, found_rows = proof.run("restarted", config, [*halfway, span[-1]])
    all_steps = resumption.compare(
      span, expected, found, expected_rows, found_rows, meta.next_row, config.global_batch_size
    )
    stops = ", ".join(str(s) for s in [start, *halfway])
    distributed.say(
      f"{directory.path}: restarted after step {stops}, on"
      f" {'the same mesh' if same_mesh else 'another mesh'} ({_show(sizes)}); against steps {what}"
    )
    return _verdict([s for s in all_steps if s.step in compared], same_mesh, config, chosen is None)
  finally:
    _barrier("verify-resume: done")
    if jax.process_index() == 0:
      shutil.rmtree(place, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Proof:
  """Restarts of a run's checkpoint in a directory of their own."""

  directory: Workdir
  place: Path
  meta: Meta
  devices: list[jax.Device]

  def run(
    self, name: str, config: RunConfig, stops: list[int]
  ) -> tuple[dict[int, float], resumption.Rows]:
    """Starts from the checkpoint, as often as there are stops; losses and rows of all starts."""
    target = self.place / name
    if jax.process_index() == 0:
      self._copy(target)
    _barrier(f"verify-resume: {name}")
    config = configlib.from_dict(configlib.to_dict(config))
    config.eval.every_steps = 0
    config.checkpoint = dataclasses.replace(
      config.checkpoint, every_steps=0, keep_last=10, keep_every=0
    )
    config.tracking = TrackingConfig(tensorboard=False)
    records = self.place / f"{name}.rows"
    for stop in stops:
      record = resumption.Record(records / f"{jax.process_index()}.jsonl")
      run.train(config, target, stop_at=stop, devices=self.devices, on_batch=record)
    _barrier(f"verify-resume: {name} made")
    lines = [resumption.read(records / f"{i}.jsonl") for i in range(jax.process_count())]
    rows = {n: digest for one in lines for n, digest in resumption.rows_of(one)}
    return resumption.losses(target), rows

  def _copy(self, target: Path) -> None:
    """The run with this one checkpoint, which takes no room: its files are linked where they can be
    (nothing writes to a checkpoint's files; deleting a link leaves the run's own)."""
    target.mkdir(parents=True)
    shutil.copy2(self.directory.config, target / "config.json")
    if self.directory.tokenizer.is_dir():
      shutil.copytree(self.directory.tokenizer, target / "tokenizer")
    step = str(self.meta.step)
    source = self.directory.checkpoints / step
    shutil.copytree(source, target / "checkpoints" / step, copy_function=_link)

  def saved_mesh(self) -> dict[str, int] | None:
    """The sizes of the mesh that the checkpoint was saved from; None where it does not tell."""
    file = self.directory.checkpoints / str(self.meta.step) / "state" / "_sharding"
    try:
      for text in json.loads(file.read_text(encoding="utf-8")).values():
        values = json.loads(text)
        if "axis_names" in values:
          found = dict(zip(values["axis_names"], values["shape"], strict=True))
          return {axis: int(found.get(axis, 1)) for axis in MESH_AXES}
    except (OSError, ValueError, AttributeError, TypeError):
      pass
    return None


def _verdict(steps: list[Step], same_mesh: bool, config: RunConfig, anew: bool) -> bool:
  """Prints the table and the verdict line."""
  dtype = str(jax.numpy.dtype(resolve_dtype(getattr(config.model, "compute_dtype", DType.AUTO))))
  limit = 0.0 if same_mesh else TOLERANCE.get(dtype, 2e-2)
  lines = [f"{'step':>8}  {'loss':>12}  {'restarted':>12}  {'difference':>10}  rows"]
  for step in steps:
    show = ["missing" if v is None else f"{v:.7f}" for v in (step.expected, step.found)]
    apart = "none" if step.difference == 0 else f"{step.difference:.1e}"
    rows = "same" if step.same_rows else "OTHER"
    lines.append(f"{step.step:>8}  {show[0]:>12}  {show[1]:>12}  {apart:>10}  {rows}")
  distributed.say("\n".join(lines))
  worst = max(step.difference for step in steps)
  other = [step.step for step in steps if not step.same_rows]
  diverged = [step.step for step in steps if not step.finite]
  if diverged:
    distributed.say(
      f"verdict: DIFFERENT: the loss of step {diverged[0]} is not finite, so nothing is shown: the"
      " run diverged; look at config.optim.peak_lr and at the data of that step"
    )
  elif other:
    distributed.say(
      f"verdict: DIFFERENT: step {other[0]} trains on other rows: the data changed since, or its"
      " position is not kept"
    )
  elif worst > limit:
    asked = "bit for bit" if limit == 0 else f"within {limit:.0e} ({dtype})"
    hints = []
    if not anew:
      hints.append("recorded on other hardware or by other code? --rerun compares two made here")
    if jax.default_backend() == "gpu":
      hints.append("XLA_FLAGS=--xla_gpu_deterministic_ops=true makes a GPU's sums repeatable")
    distributed.say(
      f"verdict: DIFFERENT: same rows, but losses differ by up to {worst:.1e} where they should be"
      f" equal {asked}{'; ' if hints else ''}{'; '.join(hints)}"
    )
  else:
    how = "bit for bit" if worst == 0 else f"within {worst:.1e} ({dtype}: {limit:.0e} allowed)"
    distributed.say(f"verdict: THE SAME: {len(steps)} steps, same rows, losses equal {how}")
  return not other and worst <= limit


def _newest_with_steps(available: list[int], recorded: dict[int, float], steps: int) -> int | None:
  for step in reversed(available):
    if len([s for s in recorded if s > step]) >= steps:
      return step
  return None


def _manner(config: RunConfig) -> list[Any]:
  """What else of a mesh's config changes how sums are made."""
  fields = [f.name for f in dataclasses.fields(config.mesh) if f.name not in MESH_AXES]
  return [getattr(config.mesh, name) for name in fields]


def _scratch(directory: Workdir, scratch: str | Path | None) -> Path:
  """An empty directory outside the run, made by process 0."""
  path = directory.path
  place = path.with_name(f"{path.name}.verify-resume") if scratch is None else Path(scratch)
  place = place.absolute()
  with agreement.together():
    if place.is_relative_to(path):
      raise UserError(f"--scratch={place}: lies in the run, which is only read; choose another")
    if jax.process_index() == 0:
      if place.exists():
        if not (place / MARK).exists() and (not place.is_dir() or any(place.iterdir())):
          raise UserError(f"--scratch={place}: holds other files; name a new directory")
        shutil.rmtree(place)
      try:
        place.mkdir(parents=True)
        (place / MARK).touch()
      except OSError as error:
        raise UserError(f"--scratch={place}: {error.strerror}; choose another") from error
  return place


def _link(source: str, target: str) -> None:
  """A hard link, or a copy where that cannot be (another file system)."""
  link: Callable[[str, str], Any] = os.link
  try:
    link(source, target)
  except OSError:
    shutil.copy2(source, target)


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _show(sizes: dict[str, int]) -> str:
  return " × ".join(f"{a}={n}" for a, n in sizes.items() if n > 1) or "one device"

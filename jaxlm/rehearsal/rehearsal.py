"""The course of a rehearsal: full-size checks, three starts, the verdict."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm import configlib, run
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.errors import UserError
from jaxlm.mesh import BATCH_AXES, MESH_AXES
from jaxlm.plan import chips
from jaxlm.rehearsal import checks, memory, scale
from jaxlm.rehearsal.checks import FAILED, NOTE, OK, SKIPPED, Check, check
from jaxlm.rehearsal.starts import Outcome, Starter

MFU = 0.5  # of the best runs: what a loader must keep up with
ACTIVATIONS = 0.2  # of a device's memory, at least, is for activations and buffers


def rehearse(
  config: RunConfig,
  *,
  name: str,
  processes: int = 4,
  devices: int | None = None,
  devices_per_host: int = 8,
  chip: str | None = None,
  folder: str | None = None,
  seconds: float = 240.0,
) -> bool:
  """Rehearses a run and prints the verdict.

  Args:
    config: the real one, validated. name: how it was asked for.
    processes: real ones, on CPU devices.
    devices, devices_per_host, chip: of the real run; None: what the mesh asks for; not known.
    folder: where runs and logs are kept (new or empty); None: nowhere, unless something fails.
    seconds: limit of each start.

  Returns:
    Whether no check failed.
  """
  run.setup_jax()
  kind = None if chip is None else chips.chip(chip)
  asked = scale.devices_of(config, processes)
  devices = asked if devices is None else devices
  found = [_fits(config, devices, devices_per_host)]
  sizes = _sizes(config, devices, asked)
  data, opened = _data(config)
  found.append(opened)
  pipeline = build_pipeline(data)
  full = configlib.from_dict(configlib.to_dict(config))
  full.model.vocab_size = full.model.vocab_size or pipeline.vocab_size
  found.append(_memory(full, sizes, kind))
  small, small_sizes, changes = scale.scaled(config, processes, sizes, data)
  small.validate()
  devices_each = _product(small_sizes) // processes
  print(f"rehearsal of {name} for {devices} devices ({_show(sizes)}):")
  print(f"  {processes} processes × {devices_each} CPU devices ({_show(small_sizes)})")
  for line in changes:
    print(f"  scaled down: {line}")
  print(flush=True)
  with _scratch(folder) as (place, keep):
    starter = Starter(place, place / "config.json", processes, devices_each, seconds)
    configlib.save_json(small, starter.config)
    full.data = data
    configlib.save_json(full, place / "loader.json")
    shards = _loader_shards(sizes, devices, devices_per_host, full.global_batch_size)
    found += _starts(
      starter,
      small,
      shards,
      _needed(full, kind, min(devices_per_host, devices)),
      min(devices_per_host, devices),
    )
    print(checks.table(found))
    failed = [c for c in found if c.state == FAILED]
    if failed:
      keep()
      print(
        f"\nverdict: {len(failed)} of {len(found)} checks FAILED: "
        f"{', '.join(c.name for c in failed)}. Logs: {place}"
      )
    else:
      print(
        "\nverdict: nothing found that would fail on the cluster. Not tried: its network, its"
        " file system, activations' memory, speed."
      )
  return not failed


def _starts(
  starter: Starter, config: RunConfig, shards: int, needed: float | None, host_devices: int
) -> list[Check]:
  """The three starts: straight through; killed; resumed."""
  place = starter.folder
  pipeline = build_pipeline(config.data)
  loader = (f"--loader={place / 'loader.json'}", f"--loader_shards={shards}")
  out: Outcome = starter.start("straight", "straight", *loader)
  found = checks.of_straight(
    out, place / "straight", config, pipeline, starter.processes, starter.devices
  )
  if needed is not None or out.events("loader"):
    remedy = (
      "raise data.num_threads or data.num_workers, put the data on faster storage; or try on a"
      f" host: here {starter.processes} processes shared {os.cpu_count()} cores"
    )
    found.append(checks.of_loader(out, needed, host_devices, remedy))
  later = ["checkpoint saved", "kill noticed", "resumed", "same as uninterrupted"]

  def rest() -> list[Check]:
    done = {c.name for c in found}
    return [Check(n, SKIPPED, "not reached") for n in later if n not in done]

  if any(c.state == FAILED and c.name != "loader speed" for c in found):
    return found + rest()
  hold = (scale.SAVE_EVERY + 1) * config.global_batch_size
  kill_at = place / "killed" / "checkpoints" / str(scale.SAVE_EVERY)
  out = starter.start("killed", "killed", f"--hold_row={hold}", kill_at=kill_at)
  found += checks.of_killed(out, place / "killed")
  if not kill_at.is_dir():
    return found + rest()
  out = starter.start("resumed", "killed")
  found += checks.of_resumed(out, place / "killed", place / "straight", config, pipeline)
  return found + rest()


def _fits(config: RunConfig, devices: int, devices_per_host: int) -> Check:
  def make() -> Check:
    sizes = config.validate_devices(devices)
    hosts = -(-devices // devices_per_host)
    if devices % hosts:
      raise UserError(
        f"--devices={devices}: {hosts} hosts of {devices_per_host} are not filled: "
        "set --devices_per_host to a divisor"
      )
    return Check("config fits", OK, f"{devices} devices on {hosts} hosts: {_show(sizes)}")

  return checks.guarded("config fits", make)


def _sizes(config: RunConfig, devices: int, asked: int) -> dict[str, int]:
  """Of the mesh on the devices, or on those that it asks for where it does not fit them."""
  try:
    return config.mesh.sizes(devices)
  except UserError:
    return config.mesh.sizes(asked)


def _data(config: RunConfig) -> tuple[DataConfig, Check]:
  """What can be read here."""
  try:
    pipeline = build_pipeline(config.data)
  except UserError as error:
    detail = f"random ids stand in for the data, which can't be opened here: {error}"
    return scale.stand_in(config), Check("data", NOTE, detail)
  rows = sum(map(len, pipeline.sources))
  names = ", ".join(s.name for s in pipeline.sources)
  epochs = config.num_steps * config.global_batch_size / rows
  return config.data, Check("data", OK, f"{names}: {rows} rows, {epochs:.2g} passes over them")


def _memory(config: RunConfig, sizes: dict[str, int], chip: chips.Chip | None) -> Check:
  def make() -> Check:
    parts = memory.state_bytes(config, sizes)
    total = sum(parts.values())
    shown = ", ".join(f"{key} {value / memory.GIB:.2f}" for key, value in parts.items())
    detail = f"{total / memory.GIB:.2f} GiB a device without activations ({shown})"
    if chip is None:
      return Check("memory", NOTE, f"{detail}; --chip tells whether that fits")
    return check(
      "memory",
      total <= (1 - ACTIVATIONS) * chip.memory,
      f"{detail}; {chip.name} has {chip.memory / memory.GIB:.0f}",
      "a larger config.mesh.fsdp or model, or more devices",
    )

  return checks.guarded("memory", make)


def _needed(config: RunConfig, chip: chips.Chip | None, host_devices: int) -> float | None:
  """Tokens/s that a host's devices eat."""
  if chip is None:
    return None
  model: Any = config.model
  return host_devices * MFU * chip.flops / model.flops_per_token(config.data.seq_len)


def _loader_shards(sizes: dict[str, int], devices: int, per_host: int, batch: int) -> int:
  """Into how many parts the hosts of the real run split a batch."""
  shares = 1
  for axis in BATCH_AXES:
    shares *= sizes[axis]
  hosts = min(max(devices // per_host, 1), shares)
  return next(n for n in range(hosts, 0, -1) if batch % n == 0)


def _product(sizes: dict[str, int]) -> int:
  product = 1
  for size in sizes.values():
    product *= size
  return product


def _show(sizes: dict[str, int]) -> str:
  return " × ".join(f"{a}={sizes[a]}" for a in MESH_AXES if sizes[a] > 1) or "one device"


@contextlib.contextmanager
def _scratch(folder: str | None) -> Iterator[tuple[Path, Any]]:
  """(a directory, a function that keeps it)"""
  if folder is not None:
    place = Path(folder).absolute()
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
      raise UserError(f"--workdir={place}: not empty; name a new directory")
    place.mkdir(parents=True, exist_ok=True)
    yield place, lambda: None
    return
  place, kept = Path(tempfile.mkdtemp(prefix="jaxlm-rehearsal-")), []
  try:
    yield place, lambda: kept.append(True)
  finally:
    if not kept:
      shutil.rmtree(place, ignore_errors=True)

"""Plans in words: one mesh in detail, or the fastest of many."""

import copy
import dataclasses

from jaxlm.config import RunConfig
from jaxlm.errors import UserError
from jaxlm.models.config import DecoderConfig
from jaxlm.plan import communication
from jaxlm.plan import memory as memory_of
from jaxlm.plan.chips import Chip
from jaxlm.plan.collectives import format_table
from jaxlm.plan.step_time import Assumptions, bandwidth, step_time


def plan(config: RunConfig, chip: Chip, num_chips: int) -> str:
  """The plan of a config. Raises UserError when its mesh doesn't fit the chips or the model."""
  model = _check(config)
  sizes = config.validate_devices(num_chips)
  assumed = Assumptions()
  memory, time = memory_of.memory(config, sizes), step_time(config, sizes, chip, assumed)
  tokens = config.global_batch_size * config.data.seq_len
  axes = " × ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"
  cells = [("axes", "collective", "what", "runs", "MiB each", "GiB sent", "ms")]
  for m in sorted(communication.messages(config, sizes), key=lambda m: -m.total_bytes_sent):
    seconds = m.total_bytes_sent / (bandwidth(m.axes, sizes, chip) * assumed.link)
    size, sent = f"{m.result_bytes / 2**20:,.1f}", f"{m.total_bytes_sent / 2**30:,.2f}"
    where = "×".join(m.axes)
    cells.append((where, m.kind, m.what, str(m.runs), size, sent, f"{1000 * seconds:,.0f}"))
  lines = [
    f"{model.num_params() / 1e9:.2f} B parameters, {tokens:,} tokens a step on "
    f"{num_chips} × {chip.name}: {axes}, {config.num_microbatches} microbatches, "
    f"remat {model.remat.name}",
    "",
    "memory of a device, GiB:",
    memory_of.table(memory, chip.memory),
    "",
    "sent by each device in a step:",
    format_table(cells),
    "",
    f"step: {time.expected:.2f} s expected ({time.fastest:.2f} with everything at once, "
    f"{time.slowest:.2f} one after the other): products {time.compute:.2f}, messages beside them "
    f"{time.beside:.2f}, waited for {time.waited:.2f}, update {time.update:.3f}",
    f"{tokens / time.expected:,.0f} tokens/s; MFU {100 * time.mfu():.0f} % "
    f"({100 * time.mfu(time.slowest):.0f} to {100 * time.mfu(time.fastest):.0f})",
    f"assumed: {', '.join(f'{k} {v}' for k, v in dataclasses.asdict(assumed).items())}; "
    f"{chip.source}",
  ]
  return "\n".join(lines)


def _check(config: RunConfig) -> DecoderConfig:
  model = config.model
  if not isinstance(model, DecoderConfig):
    raise UserError(f"config.model: a {type(model).__name__}; plans are of a DecoderConfig")
  if model.num_experts:
    raise UserError(
      f"config.model.num_experts={model.num_experts}: no plans yet of mixtures of experts; "
      "benchmarks/aot.py compiles them"
    )
  return model


def search(config: RunConfig, chip: Chip, num_chips: int, *, limit: int = 12) -> str:
  """A table of the meshes (data, fsdp, sequence and model) and microbatches that fit, the fastest
  first."""
  _check(config)
  found = []
  powers = [1 << i for i in range(num_chips.bit_length()) if num_chips % (1 << i) == 0]
  for model in powers:
    for sequence in (1, 2, 4, 8):
      for data in powers:
        for micro in (1, 2, 4, 8, 16):
          if num_chips % (model * sequence * data):
            continue
          trial = copy.deepcopy(config)
          trial.num_microbatches = micro
          mesh = {"data": data, "fsdp": -1, "sequence": sequence, "model": model}
          trial.mesh = dataclasses.replace(config.mesh, **mesh)  # type: ignore[arg-type]
          try:
            trial.mesh.validate("config.mesh")
            sizes = trial.validate_devices(num_chips)
          except UserError:
            continue
          memory = memory_of.memory(trial, sizes).total
          if memory > 0.9 * chip.memory:
            continue
          time = step_time(trial, sizes, chip)
          found.append((time.expected, memory, time.mfu(), micro, sizes))
  if not found:
    raise UserError(
      f"no mesh of {num_chips} × {chip.name} holds config.global_batch_size="
      f"{config.global_batch_size} rows: set config.model.remat=FULL, or use more chips"
    )
  found.sort(key=lambda row: (row[0], row[1]))
  cells = [("mesh", "microbatches", "GiB a device", "s a step", "MFU %")]
  for seconds, memory, mfu, micro, sizes in found[:limit]:
    axes = " × ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
    gib, share = f"{memory / 2**30:.1f}", f"{100 * mfu:.0f}"
    cells.append((axes, str(micro), gib, f"{seconds:.2f}", share))
  return format_table(cells)

"""A config scaled down to what one machine can run, with every parallel axis still there."""

import dataclasses
import math
from typing import Any

from jaxlm import configlib
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig, TokenShardsConfig
from jaxlm.data.task import FillInTheMiddleConfig, FimSplit, MaskedConfig, Vocabulary
from jaxlm.layers.config import DType
from jaxlm.mesh import BATCH_AXES, MESH_AXES, Context
from jaxlm.tracking.config import TrackingConfig

STEPS = 6
SAVE_EVERY = 2
SEQ_LEN = 64  # at least
HEAD_DIM = 8


def devices_of(config: RunConfig, processes: int) -> int:
  """The devices that a mesh asks for; an axis of -1 counts as the processes."""
  sizes = [getattr(config.mesh, axis) for axis in MESH_AXES]
  return math.prod(processes if size == -1 else size for size in sizes)


def scale_mesh(sizes: dict[str, int], processes: int) -> tuple[dict[str, int], list[str]]:
  """The mesh in small: every axis above 1 stays above 1, and the processes divide the product.

  Returns:
    The sizes, and a line for each axis that differs.
  """
  small = {axis: _least_factor(size) for axis, size in sizes.items()}
  # The batch's axes first: they are what processes usually stand for.
  for axis in sorted(MESH_AXES, key=lambda a: a not in BATCH_AXES):
    for factor in range(small[axis], sizes[axis] + 1, small[axis]):
      product = math.prod(small.values()) // small[axis] * factor
      if sizes[axis] % factor == 0 and math.gcd(product, processes) > math.gcd(
        math.prod(small.values()), processes
      ):
        small[axis] = factor
  missing = processes // math.gcd(math.prod(small.values()), processes)
  small["data"] *= missing  # fewer devices than processes
  changed = [f"{a} {sizes[a]} → {small[a]}" for a in MESH_AXES if small[a] != sizes[a]]
  return small, changed


def scaled(
  config: RunConfig, processes: int, sizes: dict[str, int], data: DataConfig
) -> tuple[RunConfig, dict[str, int], list[str]]:
  """The run in small.

  Args:
    config: the real one. sizes: of its mesh, on its devices.
    processes: that will share the work.
    data: what is read: the real data, or a stand-in.

  Returns:
    The config, the sizes of its mesh, and what was changed, in words.
  """
  out: RunConfig = configlib.from_dict(configlib.to_dict(config))
  small, mesh_changes = scale_mesh(sizes, processes)
  for axis in MESH_AXES:
    setattr(out.mesh, axis, small[axis])
  out.mesh.microbatches = None
  out.mesh.offload_optimizer = False  # a CPU has no other memory to move it to
  changes = [f"mesh: {', '.join(mesh_changes)}"] if mesh_changes else []
  changes += _scale_model(out, small)
  out.data = configlib.from_dict(configlib.to_dict(data))
  if all(isinstance(s, TokenShardsConfig | SyntheticConfig) for s in data.sources):
    # (Rows of other sources were cut when they were made.)
    unit = 2 * small["sequence"] * small["model"] * out.objective.loss_chunks
    out.data.seq_len = min(unit * -(-SEQ_LEN // unit), config.data.seq_len)
  out.num_microbatches = min(config.num_microbatches, 2)
  rows = math.prod(small[axis] for axis in BATCH_AXES) * out.num_microbatches
  unit = math.lcm(rows * out.mesh.pipeline_microbatches, processes)
  out.global_batch_size = unit * -(-8 // unit)
  out.num_steps, out.log_every = STEPS, 1
  schedule: Any = out.optim.schedule
  schedule.warmup_steps = min(schedule.warmup_steps, 2)
  out.checkpoint = dataclasses.replace(
    config.checkpoint, every_steps=SAVE_EVERY, keep_last=STEPS, keep_every=0
  )
  out.eval.every_steps = 0
  out.tracking = TrackingConfig(tensorboard=False)
  for name in ("seq_len",):
    if (before := getattr(config.data, name)) != (after := getattr(out.data, name)):
      changes.append(f"{name} {before} → {after}")
  for name in ("global_batch_size", "num_steps"):
    if (before := getattr(config, name)) != (after := getattr(out, name)):
      changes.append(f"{name} {before} → {after}")
  return out, small, changes


def stand_in(config: RunConfig) -> DataConfig:
  """Random ids in place of data that is not on this machine."""
  data: DataConfig = configlib.from_dict(configlib.to_dict(config.data))
  vocab = config.model.vocab_size or 32_000
  # Random ids have neither words nor characters nor symbols of their own.
  if isinstance(data.task, MaskedConfig):
    data.task.whole_words, data.task.symbol = False, None
  if isinstance(data.task, FillInTheMiddleConfig):
    data.task.split, data.task.symbols = FimSplit.TOKEN, None
  if data.task is not None and config.model.vocab_size:
    # A run's own config.json counts the ids that the task adds.
    vocab -= data.task.build(Vocabulary(vocab, None, None), 0).added
  data.sources, data.phases = [SyntheticConfig(name="random", vocab_size=vocab)], []
  return data


def _scale_model(config: RunConfig, small: dict[str, int]) -> list[str]:
  """Sets what the model's config has of the usual dims; returns what changed, in words."""
  model: Any = config.model
  before = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
  split = small["model"]
  if config.mesh.context is Context.ULYSSES:
    split *= small["sequence"]
  heads = split * 2
  if (kv := before.get("num_kv_heads")) is not None:
    heads = split * min(before["num_heads"] // kv, 2)  # grouped queries stay grouped
  embed = math.lcm(heads * HEAD_DIM, small["fsdp"], small["model"])
  values = {
    "num_layers": 2 * small["stage"],
    "scan_block": 1,
    "num_heads": heads,
    "num_kv_heads": None if kv is None else split,
    "head_dim": HEAD_DIM,
    "embed_dim": embed,
    "mlp_dim": 2 * embed,
    "compute_dtype": DType.FLOAT32,  # so that losses can be compared to their last digits
  }
  for name, value in values.items():
    if name in before:
      setattr(model, name, value)
  for holder in (model, *(v for v in before.values() if configlib.is_config(v))):
    for name in ("num_experts", "experts"):
      count = getattr(holder, name, None)
      if isinstance(count, int) and count > 1:
        chosen = max(getattr(holder, "num_experts_per_token", 1), 4)
        fewer = small["expert"] * -(-chosen // small["expert"])
        setattr(holder, name, min(count, fewer))
  shown = ("num_layers", "embed_dim", "mlp_dim", "num_heads")
  parts = [f"{name} {before[name]} → {getattr(model, name)}" for name in shown if name in before]
  return [f"model: {', '.join(parts)}"]


def _least_factor(number: int) -> int:
  """The smallest prime factor; 1 for 1."""
  return next((n for n in range(2, number + 1) if number % n == 0), 1)

"""What a config computes: its model, objective and optimizer, and the functions to jit.

`compile_step` compiles the training step ahead of time, looks into the result (are the attention
kernels there that were chosen? does it fit into the device's memory?) and finds the fastest
rematerialisation that fits.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm import configlib, tree
from jaxlm.batch import Batch
from jaxlm.config import RunConfig
from jaxlm.data.task import PrefixConfig
from jaxlm.errors import UserError
from jaxlm.kernels import attention
from jaxlm.layers.config import AttentionImpl, Remat
from jaxlm.models.base import ModelDef
from jaxlm.objectives import NextToken
from jaxlm.optim.base import OptimizerContext
from jaxlm.optim.matrices import muon_dims
from jaxlm.optim.mup import lr_factors
from jaxlm.sharding import Layout
from jaxlm.training.placement import check_offload
from jaxlm.training.state import make_init, state_shapes
from jaxlm.training.step import LossFn, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """The parts of a run that compute. Use it under the layout it was built under.

  Attributes:
    model, loss_fn, tx: the parts.
    init: jitted, key -> TrainState; each device makes only its own shards.
    step: jitted, (state, batch) -> (state, metrics); the state is donated.
  """

  model: ModelDef
  loss_fn: LossFn
  tx: optax.GradientTransformation
  init: Any
  step: Any


def build_program(config: RunConfig) -> Program:
  """The program of a config whose vocab_size is resolved. Nothing is compiled yet."""
  model = config.model.build()
  loss_fn = make_loss_fn(config)
  tx = make_optimizer(config, model)
  step = make_train_step(
    model,
    loss_fn,
    tx,
    num_microbatches=config.num_microbatches,
    skip_nonfinite=config.checkpoint.max_skipped_steps > 0,
    dropout_seed=config.seed if getattr(config.model, "dropout", 0) else None,
  )
  return Program(model, loss_fn, tx, jax.jit(make_init(model, tx)), jax.jit(step, donate_argnums=0))


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A training step for one shape of batch on one mesh.

  Attributes:
    call: (state, batch) -> (state, metrics); the state is donated.
    remat: what the model was compiled with, None for a model without the choice.
    attention: the kernels in it.
    bytes_needed: device memory of the state, the batch and everything in between.
    bytes_limit: what the device has, None where it does not tell.
  """

  call: Any
  remat: Remat | None
  attention: frozenset[AttentionImpl]
  bytes_needed: int
  bytes_limit: int | None

  @property
  def fits(self) -> bool:
    """Whether the step needs no more memory than the device has, as far as that is known."""
    return self.bytes_limit is None or self.bytes_needed <= self.bytes_limit

  def describe(self) -> str:
    """One line: kernels, rematerialisation, memory."""
    parts = ["attention " + "+".join(sorted(impl.name for impl in self.attention))]
    if self.remat is not None:
      parts.append(f"remat {self.remat.name}")
    of = "" if self.bytes_limit is None else f" of {self.bytes_limit / 2**30:.1f}"
    parts.append(f"{self.bytes_needed / 2**30:.1f}{of} GiB a device")
    return ", ".join(parts)


def compile_step(config: RunConfig, layout: Layout) -> CompiledStep:
  """Compiles the training step of a resolved config, under its active layout.

  With config.model.remat=AUTO the candidates are compiled from the fastest on, until one fits; the
  answer is kept (`known_remat`), so that a second start compiles that one alone.

  Raises:
    UserError: not even the smallest fits.
  """
  choice = getattr(config.model, "remat", None)
  if choice is not Remat.AUTO:
    return _checked(_compile(config, layout), config)
  limit = _bytes_limit(layout)
  order = [Remat.NONE, Remat.MINIMAL, Remat.QKV, Remat.FULL]
  if limit is None:
    order = order[:1]
  key = configlib.fingerprint(config) + f"-{jax.__version__}-{limit}"
  cache = _RematCache()
  known = cache.get(key)
  if known in order:
    order = order[order.index(known) :]
  for remat in order:
    step = _compile(_with_remat(config, remat), layout)
    if step.fits:
      break
  cache.put(key, remat)
  return _checked(step, config)


def _with_remat(config: RunConfig, remat: Remat) -> RunConfig:
  config = configlib.from_dict(configlib.to_dict(config))
  config.model.remat = remat  # type: ignore[attr-defined]
  return config


def _compile(config: RunConfig, layout: Layout) -> CompiledStep:
  program = build_program(config)
  check_offload(layout)
  state = state_shapes(program.init, layout)
  rows = (config.global_batch_size, config.data.seq_len)
  where = layout.sharding(("act_batch", "act_seq"))

  def array(dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(rows, dtype, sharding=where)

  ids = array(jnp.int32)
  batch = Batch(
    inputs=ids,
    targets=ids,
    loss_weights=array(jnp.float32),
    segment_ids=None if config.data.attend_across_documents else ids,
    positions=ids,
    prefix=ids if isinstance(config.data.task, PrefixConfig) else None,
  )
  with attention.chosen() as kernels:
    lowered = program.step.lower(state, batch)
  compiled = lowered.compile()
  text = compiled.as_text() if kernels & attention.HLO_NAMES.keys() else ""
  for impl in kernels:
    name = attention.HLO_NAMES.get(impl, "")
    if name not in text:
      raise UserError(
        f"config.model.attention: {impl.name} was chosen, but the compiled step has no {name}: "
        f"this jaxlib ({jax.__version__}) replaced it; set config.model.attention=XLA to go on"
      )
  memory = compiled.memory_analysis()
  needed = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  remat = getattr(config.model, "remat", None)
  return CompiledStep(compiled, remat, frozenset(kernels), needed, _bytes_limit(layout))


def _checked(step: CompiledStep, config: RunConfig) -> CompiledStep:
  if not step.fits:
    assert step.bytes_limit is not None
    raise UserError(
      f"config.global_batch_size={config.global_batch_size}: a step needs "
      f"{step.bytes_needed / 2**30:.1f} GiB a device, which has {step.bytes_limit / 2**30:.1f}: "
      f"set config.num_microbatches={2 * config.num_microbatches}, a smaller "
      "config.global_batch_size, config.model.remat=FULL, or use more devices (config.mesh.fsdp)"
    )
  return step


def _bytes_limit(layout: Layout) -> int | None:
  stats = layout.mesh.local_devices[0].memory_stats() or {}
  return stats.get("bytes_limit")


class _RematCache:
  """Which rematerialisation was found for which config, in ~/.cache/jaxlm/remat.json."""

  def __init__(self) -> None:
    self._file = Path.home() / ".cache" / "jaxlm" / "remat.json"

  def _read(self) -> dict[str, str]:
    try:
      return dict(json.loads(self._file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
      return {}

  def get(self, key: str) -> Remat | None:
    return Remat.__members__.get(self._read().get(key, ""))

  def put(self, key: str, remat: Remat) -> None:
    if self.get(key) is remat:
      return
    # No writable home: the candidates are compiled again each time.
    with contextlib.suppress(OSError):
      self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
      fresh = self._file.with_suffix(f".{os.getpid()}")
      fresh.write_text(json.dumps({**self._read(), key: remat.name}), encoding="utf-8")
      fresh.replace(self._file)


def make_loss_fn(config: RunConfig) -> LossFn:
  """The config's objective: cross-entropy of the targets that config.data.task asks for.

  Raises:
    UserError: the model can not do the task, or would find its targets in its inputs.
  """
  config.validate_task()  # a run's config.json may have been edited
  return NextToken(
    vocab_size=config.model.vocab_size,
    z_loss=config.objective.z_loss,
    label_smoothing=config.objective.label_smoothing,
    softcap=getattr(config.model, "logits_softcap", None),
    load_balance=config.objective.load_balance,
    router_z_loss=config.objective.router_z_loss,
    chunks=config.objective.loss_chunks,
  )


def make_optimizer(config: RunConfig, model: ModelDef) -> optax.GradientTransformation:
  """The config's optimizer, told which parameters decay, which are matrices, and µP's factors."""
  factors = None
  if getattr(config.model, "mup", None) is not None:
    ratios: Any = config.model
    factors = lr_factors(model.logical_axes(), dataclasses.asdict(ratios.mup_ratios))
  return config.optim.build(
    OptimizerContext(
      num_steps=config.num_steps,
      decay_mask=tree.decay_mask,
      muon_dims=muon_dims(model.logical_axes()),
      lr_factors=factors,
    )
  )

"""What a config computes: its model, objective and optimizer, and the functions to jit."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxlm import tree
from jaxlm.batch import Batch
from jaxlm.config import RunConfig
from jaxlm.models.base import ModelDef
from jaxlm.objectives import NextToken
from jaxlm.optim.base import OptimizerContext
from jaxlm.optim.matrices import muon_dims
from jaxlm.training.state import TrainState, make_init
from jaxlm.training.step import LossFn, make_train_step

StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]


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
    dropout_seed=config.seed if getattr(config.model, "dropout", 0) else None,
  )
  return Program(model, loss_fn, tx, jax.jit(make_init(model, tx)), jax.jit(step, donate_argnums=0))


def make_loss_fn(config: RunConfig) -> LossFn:
  """The config's objective."""

  return NextToken(
    vocab_size=config.model.vocab_size,
    z_loss=config.objective.z_loss,
    label_smoothing=config.objective.label_smoothing,
    chunks=config.objective.loss_chunks,
  )


def make_optimizer(config: RunConfig, model: ModelDef) -> optax.GradientTransformation:
  """The config's optimizer, told which parameters decay and which are matrices."""
  return config.optim.build(
    OptimizerContext(
      num_steps=config.num_steps,
      decay_mask=tree.decay_mask,
      muon_dims=muon_dims(model.logical_axes()),
    )
  )

"""The training state: one pytree, made sharded."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm import sharding
from jaxlm.models.base import ModelDef, Params
from jaxlm.sharding import Layout
from jaxlm.training.placement import for_optimizer, on_host, to_host


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 (), updates made so far. Data position and random keys are functions of it.
    params: nested dict of arrays.
    opt_state: the optimizer's.
  """

  step: jax.Array
  params: Params
  opt_state: optax.OptState


def make_init(model: ModelDef, tx: optax.GradientTransformation) -> Any:
  """A function key -> TrainState. Jit it under the layout: nothing is made on one device alone.

  Its jax.eval_shape gives shapes, dtypes and shardings: the target of a checkpoint's restore.
  """

  begin = make_begin(model, tx)
  return lambda key: begin(model.init(key))


def make_begin(model: ModelDef, tx: optax.GradientTransformation) -> Any:
  """A function params -> TrainState at step 0, to be jitted as that of `make_init` is."""

  def begin(params: Params) -> TrainState:
    opt_state = sharding.settle(tx.init(for_optimizer(params, model.logical_axes())))
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=to_host(opt_state))

  return begin


def state_shapes(init: Any, layout: Layout) -> TrainState:
  """Shapes, dtypes, shardings and memories of a new state: the target of a checkpoint's restore."""
  state: TrainState = layout.eval_shape(init, jax.random.key(0))
  if not layout.offload_optimizer:
    return state
  return dataclasses.replace(state, opt_state=on_host(state.opt_state))

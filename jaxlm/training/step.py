"""The one jitted train step, and the evaluation step beside it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm import sharding, tree
from jaxlm.batch import Batch
from jaxlm.models.base import ModelDef, Params
from jaxlm.objectives import LossSum
from jaxlm.training.placement import for_model, for_optimizer, from_host, to_host
from jaxlm.training.state import TrainState

# loss_fn(features, output table, batch, what routers say) -> LossSum
LossFn = Callable[[jax.Array, jax.Array, Batch, Any], LossSum]


def make_loss(model: ModelDef, loss_fn: LossFn) -> Callable[..., LossSum]:
  """loss(params, batch, dropout_key) -> LossSum."""

  def loss(params: Params, batch: Batch, dropout_key: jax.Array | None = None) -> LossSum:
    module = model.bind(params)
    prefix = {} if batch.prefix is None else {"prefix_BT": batch.prefix}
    features, _, router = module.features(
      batch.inputs,
      segment_ids_BT=batch.segment_ids,
      positions_BT=batch.positions,
      dropout_key=dropout_key,
      **prefix,
    )
    with jax.named_scope("loss"):
      return loss_fn(features, module.output_table(), batch, router)

  return loss


def make_train_step(
  model: ModelDef,
  loss_fn: LossFn,
  tx: optax.GradientTransformation,
  *,
  num_microbatches: int = 1,
  dropout_seed: int | None = None,
  skip_nonfinite: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """step(state, batch) -> (state, metrics). Jit it with the state donated.

  Args:
    model, loss_fn, tx: what is trained, on what, how.
    num_microbatches: the batch is run in so many parts, one after another, their gradients added
      up (sums over targets, divided once at the end: a mean of means would be wrong).
    dropout_seed: None without dropout. The step's key is a function of it and of the step.
    skip_nonfinite: where the objective or the gradient's norm is not finite, parameters and
      optimizer (its count of steps too, so its learning rate) keep every bit; only state.step
      counts on. Losses of finite steps were bit for bit those without it, but the compiler may then
      copy some arrays: on a CPU device 17 % more temporary memory (AdamW, 127 MB of state).

  Returns:
    The step. Its metrics are float32 scalars: loss (nats a target), objective (with z-loss and
    smoothing), weight (targets), grad_norm (before clipping), param_norm (before the update, of the
    weights as they are used), and of a model with experts router_load_balance, router_z_loss,
    router_load_entropy and router_dropped (means over layers).
  """
  loss = make_loss(model, loss_fn)

  def grads_of(params: Params, batch: Batch, key: jax.Array | None) -> tuple[LossSum, Params]:
    def total(params: Params) -> tuple[jax.Array, LossSum]:
      sums = loss(params, batch, key)
      return sums.total, sums

    (_, sums), grads = jax.value_and_grad(total, has_aux=True)(params)
    return sums, grads

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    key = None
    if dropout_seed is not None:
      key = jax.random.fold_in(jax.random.key(dropout_seed), state.step)
    # Once a step, whatever is done with the weights: gradients are taken of the narrow copy.
    params = tree.cast_matrices(state.params, model.compute_dtype)
    # A norm of the new parameters would be computed by the kernels that write them, which XLA then
    # no longer lets write in place: a copy of the whole state (11 of 281 ms, 1.4 B on an H100).
    param_norm = tree.global_norm(params)
    if num_microbatches == 1:
      sums, grads = grads_of(params, batch, key)
    else:
      parts = jax.tree.map(lambda x: sharding.reshape_rows(x, num_microbatches), batch)

      def add(carry: Any, part_and_index: Any) -> tuple[Any, None]:
        part, index = part_and_index
        part_key = None if key is None else jax.random.fold_in(key, index)
        return jax.tree.map(jnp.add, carry, grads_of(params, part, part_key)), None

      first = jax.tree.map(lambda x: x[0], parts)
      shapes = jax.eval_shape(loss, params, first, key)
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
      start = (zeros, jax.tree.map(jnp.zeros_like, state.params))
      (sums, grads), _ = jax.lax.scan(add, start, (parts, jnp.arange(num_microbatches)))
    weight = jnp.maximum(sums.weight, 1.0)
    # Optax knows nothing of meshes: inside, the compiler chooses the layouts; outside, updates
    # and state keep theirs, so that the step compiles once.
    with jax.named_scope("optimizer"):
      grads = jax.tree.map(lambda g, p: g.astype(p.dtype) / weight, grads, state.params)
      axes = model.logical_axes()
      grads_here, params_here = for_optimizer(grads, axes), for_optimizer(state.params, axes)
      before = from_host(state.opt_state)
      update = sharding.auto(tx.update, (grads_here, before))
      updates, opt_state = update(grads_here, before, params_here)
      params = optax.apply_updates(state.params, for_model(updates, state.params))
      grad_norm, objective = tree.global_norm(grads), sums.total / weight
      if skip_nonfinite:
        good = jnp.isfinite(grad_norm) & jnp.isfinite(objective)
        # A choice, not a product with 0: 0 × NaN is NaN.
        params, opt_state = jax.tree.map(
          lambda new, old: jnp.where(good, new, old), (params, opt_state), (state.params, before)
        )
    metrics = {
      "loss": sums.nll / weight,
      "objective": objective,
      "weight": sums.weight,
      "grad_norm": grad_norm,
      "param_norm": param_norm,
    }
    if sums.router is not None:
      means = jax.tree.map(lambda x: x / weight, sums.router)
      metrics |= {f"router_{name}": value for name, value in means._asdict().items()}
    return TrainState(step=state.step + 1, params=params, opt_state=to_host(opt_state)), metrics

  return train_step


def make_eval_step(model: ModelDef, loss_fn: LossFn) -> Callable[[Params, Batch], LossSum]:
  """step(params, batch) -> LossSum, without dropout."""
  loss = make_loss(model, loss_fn)
  return lambda params, batch: loss(params, batch)

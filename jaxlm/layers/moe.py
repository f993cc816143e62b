"""A mixture-of-experts feed-forward layer: each token goes through k of E gated MLPs.

B batch, T position, N tokens of one device, D embed, E experts, F mlp of an expert, K experts of a
token, C capacity of an expert, R rows that the experts work on.

Every device routes its own tokens. Over the model axis each has a share of F of all experts; over
the expert axis each has some of the experts, is given the tokens of all devices of that axis, and
hands back their sums of its own experts' results: nothing is dropped for a full buffer.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxlm.kernels.grouped_matmul import Backends, grouped_matmul
from jaxlm.layers.config import GATED, Activation, Router
from jaxlm.layers.moe_aux import MoeAux, Sums, overload, summary
from jaxlm.layers.moe_rows import capacity_rows, combine, counts, dispatch, grouped_rows
from jaxlm.sharding import Initializer, active, constant, constrain, gather, param

X_AXES = ("act_batch", "act_seq", "act_embed")


_Arrays = tuple[jax.Array, ...]


# Room for a quarter and a half more than an even load, and for twice that load.
LADDER = (1.25, 1.5, 2.0)


class MoeMlp(nnx.Module):
  """Σ_k g_k expert_k(x): the likeliest experts of each token (arXiv:1701.06538).

  The weights g are their probabilities, normalised to sum 1 as in Mixtral (arXiv:2401.04088). A
  single expert is weighted by its probability as it is (Switch): normalised, it would be the
  constant 1, and the router would learn nothing from the loss. Experts are SwiGLU or GEGLU without
  biases; the router computes in float32.

  Attributes:
    router_kind: what the router's logits become. normalize_gates: False: the weights of a token's
      experts are their scores as they are. router_scale: multiplies the weights.
    router_bias: a vector is added to the scores where experts are chosen, and not where they are
      weighted (arXiv:2408.15664). It has no gradient.
    groups, groups_per_token: the experts of a token are of its best groups alone, a group being as
      good as its two best experts together with SIGMOID (DeepSeek-V3, arXiv:2412.19437), as its
      best one with SOFTMAX (DeepSeek-V2, arXiv:2405.04434).
    capacity_factor: None: no choice is ever dropped, and experts are grouped matmuls over groups of
      any size. A number: each device's experts take at most capacity_factor · N · K / E tokens
      each, earlier tokens first, in one dense batched matmul; what finds no place adds nothing.
    ladder: capacity factors, rising, for capacity_factor None: the first with room for the fullest
      expert is taken, step by step and device by device, so that nothing is dropped and the dense
      product serves; grouped matmuls come in where even the last is too small. (): those alone.
      None: LADDER on GPUs, where grouped matmuls are slow (benchmarks/README.md), () elsewhere.
    backends: of the grouped matmuls; None: the fastest known.
  """

  def __init__(
    self,
    *,
    embed_dim: int,
    mlp_dim: int,
    num_experts: int,
    experts_per_token: int,
    activation: Activation,
    router_kind: Router = Router.SOFTMAX,
    normalize_gates: bool = True,
    router_scale: float = 1.0,
    router_bias: bool = False,
    groups: int = 1,
    groups_per_token: int = 1,
    capacity_factor: float | None = None,
    ladder: tuple[float, ...] | None = None,
    backends: Backends | None = None,
    init: Initializer,
    init_out: Initializer,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    if activation not in GATED:
      raise ValueError(f"{activation=}: experts are gated, SWIGLU or GEGLU")
    if not 1 <= experts_per_token <= num_experts:
      raise ValueError(f"{experts_per_token=}: must be between 1 and {num_experts=}")
    D, E, F = embed_dim, num_experts, mlp_dim
    self.activation, self.experts_per_token, self.dtype = activation, experts_per_token, dtype
    self.router_kind, self.normalize_gates = router_kind, normalize_gates
    self.router_scale, self.has_router_bias = router_scale, router_bias
    self.groups, self.groups_per_token = groups, groups_per_token
    self.capacity_factor, self.ladder, self.backends = capacity_factor, ladder, backends

    def make(how: Initializer, shape: tuple[int, ...], *axes: str) -> nnx.Param:
      return param(how, rngs.params(), shape, axes, param_dtype)

    self.router = make(init, (D, E), "embed", "router")
    if router_bias:
      self.router_bias = make(constant(0.0), (E,), "router")
    self.gate = make(init, (E, D, F), "experts", "embed", "mlp")
    self.up = make(init, (E, D, F), "experts", "embed", "mlp")
    self.down = make(init_out, (E, F, D), "experts", "mlp", "embed")

  def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, MoeAux]:
    router_DE = gather(self.router[...], jnp.float32)
    if self.has_router_bias:
      # A last row of the router's matrix on its way to the devices.
      bias_1E = self.router_bias[...].astype(jnp.float32)[None]
      router_DE = jnp.concatenate([router_DE, jax.lax.stop_gradient(bias_1E)])
    weights = (
      router_DE,
      gather(self.gate[...], self.dtype),
      gather(self.up[...], self.dtype),
      gather(self.down[...], self.dtype),
    )
    layout = active()
    if layout is None:
      y_BTD, sums = self._local(x_BTD, *weights)
    else:
      x_spec, w_spec = layout.spec(X_AXES), layout.spec(("experts", None, "mlp"))
      token_axes = tuple(a for entry in x_spec[:2] for a in _mesh_axes(entry))
      if set(token_axes) & set(_mesh_axes(w_spec[2])):
        raise ValueError("`mlp` must not be on a mesh axis that splits tokens")
      # Weights that are whole on an axis get the sum of its devices' gradients, and results that
      # are whole on it hand each device its share: the transpose of shard_map sees to both.
      y_BTD, sums = jax.shard_map(
        functools.partial(
          self._local, mlp_axes=_mesh_axes(w_spec[2]), expert_axes=_mesh_axes(w_spec[0])
        ),
        in_specs=(x_spec, jax.P(), w_spec, w_spec, layout.spec(("experts", "mlp", None))),
        out_specs=(x_spec, jax.P(token_axes)),
        check_vma=False,
      )(constrain(x_BTD, *X_AXES), *weights)
    aux = summary(sums, num_tokens=math.prod(x_BTD.shape[:2]))
    if self.has_router_bias:
      pull = overload(self.router_bias[...].astype(jnp.float32), sums)
      aux = aux._replace(load_balance=aux.load_balance + pull)
    return checkpoint_name(y_BTD, "mlp"), aux

  def _local(
    self,
    x_BTD: jax.Array,
    router_DE: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    *,
    mlp_axes: tuple[str, ...] = (),
    expert_axes: tuple[str, ...] = (),
  ) -> tuple[jax.Array, Sums]:
    """One device's tokens through the experts, of which it may hold some, and a part of F."""
    (E, D), K = gate_EDF.shape[:2], self.experts_per_token
    x_ND = x_BTD.reshape(-1, D)

    bias_1E = router_DE[D:] if self.has_router_bias else None
    logits_NE = jnp.einsum(
      "ND,DE->NE", x_ND.astype(jnp.float32), router_DE[:D], precision=lax.Precision.HIGHEST
    )
    probs_NE, gates_NK, experts_NK = self._route(logits_NE, bias_1E)

    choices_A = counts(experts_NK, router_DE.shape[1])
    x_ND = x_ND.astype(self.dtype)
    if expert_axes:
      x_ND, gates_NK, experts_NK = (
        lax.all_gather(one, expert_axes, axis=0, tiled=True) for one in (x_ND, gates_NK, experts_NK)
      )
      here_NK = experts_NK - lax.axis_index(expert_axes) * E
      # Experts of other devices become an expert E, behind all others and without rows.
      experts_NK = jnp.where((here_NK >= 0) & (here_NK < E), here_NK, E)
    N = x_ND.shape[0]
    sizes_E = counts(experts_NK, E)
    order = jnp.argsort(experts_NK.reshape(-1), stable=True)
    # The concatenation is one pass with the cast of the weights, and lets one product read x once.
    gate_up_EDF = jnp.concatenate([gate_EDF, up_EDF], axis=-1)
    arrays = (x_ND, gates_NK, gate_up_EDF, down_EFD)

    def capacity(factor: float) -> int:
      return min(N, math.ceil(factor * N * K / router_DE.shape[1]))

    C = None if self.capacity_factor is None else capacity(self.capacity_factor)
    steps = self._ladder() if C is None else ()
    if steps:
      capacities = tuple(capacity(factor) for factor in steps)
      index = jnp.searchsorted(jnp.asarray(capacities), jnp.max(sizes_E))
      y_ND = self._climb(capacities, index, (order, experts_NK, sizes_E), arrays)
    else:
      y_ND = self._work(C, (order, experts_NK, sizes_E), arrays)[0]
    if mlp_axes:
      y_ND = lax.psum(y_ND, mlp_axes)
    if expert_axes:
      y_ND = lax.psum_scatter(y_ND, expert_axes, scatter_dimension=0, tiled=True)

    kept = jnp.sum(sizes_E if C is None else jnp.minimum(sizes_E, C), dtype=jnp.float32)
    sums = Sums(
      choices_1E=choices_A.astype(jnp.float32)[None],
      probs_1E=jnp.sum(probs_NE, axis=0)[None],
      z_1=jnp.sum(jax.nn.logsumexp(logits_NE, axis=-1) ** 2)[None],
      dropped_1=(jnp.sum(sizes_E, dtype=jnp.float32) - kept)[None],
    )
    return y_ND.reshape(x_BTD.shape), sums

  def _route(
    self, logits_NE: jax.Array, bias_1E: jax.Array | None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(N, E) shares of the scores, (N, K) weights of each token's experts, and those experts."""
    K = self.experts_per_token
    softmax = self.router_kind is Router.SOFTMAX
    scores_NE = jax.nn.softmax(logits_NE, axis=-1) if softmax else jax.nn.sigmoid(logits_NE)
    probs_NE = scores_NE if softmax else scores_NE / jnp.sum(scores_NE, axis=-1, keepdims=True)
    if bias_1E is None and self.groups == 1:
      top_NK, experts_NK = lax.top_k(logits_NE, K)
    else:
      biased_NE = scores_NE if bias_1E is None else scores_NE + bias_1E
      experts_NK = lax.top_k(self._of_best_groups(biased_NE), K)[1]
      top_NK = jnp.take_along_axis(logits_NE, experts_NK, axis=-1)
    if softmax and self.normalize_gates and K > 1:
      gates_NK = jax.nn.softmax(top_NK, axis=-1)
    else:
      gates_NK = jnp.take_along_axis(scores_NE, experts_NK, axis=-1)
      if self.normalize_gates and K > 1:
        gates_NK /= jnp.sum(gates_NK, axis=-1, keepdims=True) + 1e-20
    return (
      probs_NE,
      gates_NK if self.router_scale == 1 else gates_NK * self.router_scale,
      experts_NK,
    )

  def _of_best_groups(self, scores_NE: jax.Array) -> jax.Array:
    """The scores, minus infinity for experts of groups that are not among a token's best."""
    if self.groups == 1:
      return scores_NE
    (N, E), groups = scores_NE.shape, self.groups
    scores_NGe = scores_NE.reshape(N, groups, E // groups)
    counted = 1 if self.router_kind is Router.SOFTMAX else min(2, E // groups)
    best_NG = jnp.sum(lax.top_k(scores_NGe, counted)[0], axis=-1)
    chosen_Ng = lax.top_k(best_NG, self.groups_per_token)[1]
    is_best_NG = jnp.any(chosen_Ng[:, :, None] == jnp.arange(groups)[None, None], axis=1)
    return jnp.where(is_best_NG[:, :, None], scores_NGe, -jnp.inf).reshape(N, E)

  def _ladder(self) -> tuple[float, ...]:
    if self.ladder is not None:
      return self.ladder
    return LADDER if jax.default_backend() == "gpu" else ()

  def _climb(
    self, capacities: tuple[int, ...], index: jax.Array, ids: _Arrays, arrays: _Arrays
  ) -> jax.Array:
    """(N, D): `_work` with the capacity of this index, or grouped products beyond the last.

    Differentiated by hand: between the forward and the backward pass lax.switch keeps what all its
    branches want, zeros for those not taken, which here is more than the products cost. Kept is the
    first product of the smallest capacity; the others, taken rarely, compute theirs again.
    """
    steps = (*capacities, None)

    def forward(index: jax.Array, ids: _Arrays, arrays: _Arrays) -> Any:
      def branch(step: int | None) -> Any:
        def work(ids: _Arrays, arrays: _Arrays) -> tuple[jax.Array, jax.Array]:
          y_ND, h_RF = self._work(step, ids, arrays)
          return y_ND, h_RF if step == capacities[0] else jnp.zeros(kept.shape, kept.dtype)

        return work

      kept = jax.eval_shape(lambda *args: self._work(capacities[0], *args)[1], ids, arrays)
      y_ND, h_RF = lax.switch(index, [branch(step) for step in steps], ids, arrays)
      return y_ND, (index, ids, arrays, h_RF)

    def backward(residuals: Any, dy_ND: jax.Array) -> Any:
      index, ids, arrays, h_RF = residuals

      def branch(step: int | None) -> Any:
        def pull(ids: _Arrays, arrays: _Arrays, h_RF: jax.Array, dy_ND: jax.Array) -> Any:
          known = h_RF if step == capacities[0] else None
          return jax.vjp(lambda a: self._work(step, ids, a, known)[0], arrays)[1](dy_ND)[0]

        return pull

      grads = lax.switch(index, [branch(step) for step in steps], ids, arrays, h_RF, dy_ND)
      return None, None, grads

    climb = jax.custom_vjp(lambda *args: forward(*args)[0])
    climb.defvjp(forward, backward)
    return climb(index, ids, arrays)

  def _work(
    self, C: int | None, ids: _Arrays, arrays: _Arrays, known_RF: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """The tokens (N, D) through their experts, each with room for C rows; None: for all it has.

    Args:
      ids: the choices in the experts' order, each token's experts (N, K), the choices an expert.
      arrays: the tokens (N, D), the weights of their choices (N, K), the experts' weights.
      known_RF: the result of the first product, where it is known (its gradients are still taken).

    Returns:
      Also the result of the first product, (R, 2 F).
    """
    order, experts_NK, sizes_E = ids
    x_ND, gates_NK, gate_up_EDF, down_EFD = arrays
    K, F = experts_NK.shape[1], down_EFD.shape[1]
    if C is None:
      choice_R, row_NK = grouped_rows(order, experts_NK, sizes_E)
    else:
      choice_R, row_NK = capacity_rows(order, experts_NK, sizes_E, C)

    def product(x_RD: jax.Array, w_EDF: jax.Array) -> jax.Array:
      if C is None:
        return grouped_matmul(x_RD, w_EDF, sizes_E, backends=self.backends)
      E, D, F = w_EDF.shape
      return jnp.einsum("ECD,EDF->ECF", x_RD.reshape(E, C, D), w_EDF).reshape(-1, F)

    x_RD = dispatch(K, x_ND, choice_R, row_NK)
    gates_R1 = dispatch(1, gates_NK.reshape(-1, 1), choice_R, row_NK)
    h_RF = product(x_RD, gate_up_EDF) if known_RF is None else _known(x_RD, gate_up_EDF, known_RF)
    h_RF = checkpoint_name(h_RF, "mlp")
    gate_RF, up_RF = h_RF[:, :F], h_RF[:, F:]
    match self.activation:
      case Activation.SWIGLU:
        act_RF = jax.nn.silu(gate_RF) * up_RF
      case _:
        exact = self.activation is Activation.GEGLU_EXACT
        act_RF = jax.nn.gelu(gate_RF, approximate=not exact) * up_RF
    # A token's weight of its expert commutes with the last product. Applied before it, its gradient
    # needs no second look at the product's result, which then need not be kept.
    act_RF = (act_RF.astype(jnp.float32) * gates_R1).astype(self.dtype)
    return combine(K, product(act_RF, down_EFD), choice_R, row_NK), h_RF


@jax.custom_vjp
def _known(x_RD: jax.Array, w_EDF: jax.Array, y_RF: jax.Array) -> jax.Array:
  """y, which is the product of x, C rows an expert, and w: only its gradients are computed."""
  return y_RF


def _known_backward(
  args: tuple[jax.Array, jax.Array], dy_RF: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
  x_RD, w_EDF = args
  E, D, F = w_EDF.shape
  x_ECD, dy_ECF = x_RD.reshape(E, -1, D), dy_RF.reshape(E, -1, F)
  dx_ECD = jnp.einsum("ECF,EDF->ECD", dy_ECF, w_EDF)
  return dx_ECD.reshape(-1, D), jnp.einsum("ECD,ECF->EDF", x_ECD, dy_ECF), None


_known.defvjp(lambda x, w, y: (y, (x, w)), _known_backward)


def _mesh_axes(entry: Any) -> tuple[str, ...]:
  """The mesh axes of one entry of a PartitionSpec."""
  if entry is None:
    return ()
  return (entry,) if isinstance(entry, str) else tuple(entry)

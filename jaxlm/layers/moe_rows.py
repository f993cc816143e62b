"""Which row of the experts' work a token's choice is.

N tokens, K experts of a token, E experts, C capacity of an expert, R rows, D embed.

Choices are the N·K pairs of a token and one of its experts, in the order of tokens. Rows are what
the experts work on. `choice_R` says which choice a row holds, N·K if none; `row_NK` in which row
a choice is, R if dropped. With both at hand every copy, forward and backward, is a gather: the
scatters that differentiation would make of gathers are far slower on GPUs.
"""

import functools

import jax
import jax.numpy as jnp


def counts(experts_NK: jax.Array, E: int) -> jax.Array:
  """int32 (E,), the choices of each expert."""
  return jnp.sum(experts_NK.reshape(-1, 1) == jnp.arange(E)[None], axis=0, dtype=jnp.int32)


def grouped_rows(
  order: jax.Array, experts_NK: jax.Array, sizes_E: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(choice_R, row_NK) where the experts' rows follow each other, then those of no expert here."""
  E, num_choices = sizes_E.shape[0], order.shape[0]
  mine_R = jnp.arange(num_choices) < jnp.sum(sizes_E)
  row_NK = jnp.where(experts_NK.reshape(-1) < E, _inverse(order), num_choices)
  return jnp.where(mine_R, order, num_choices), row_NK


def _inverse(order: jax.Array) -> jax.Array:
  ids = jnp.arange(order.shape[0], dtype=order.dtype)
  return jnp.zeros_like(order).at[order].set(ids, unique_indices=True)


def capacity_rows(
  order: jax.Array, experts_NK: jax.Array, sizes_E: jax.Array, C: int
) -> tuple[jax.Array, jax.Array]:
  """(choice_R, row_NK) where expert e has the rows from e C on, filled with its first choices."""
  E, num_choices = sizes_E.shape[0], order.shape[0]
  starts_E = jnp.cumsum(sizes_E) - sizes_E
  slots_1C = jnp.arange(C)[None]
  sources_EC = order.at[starts_E[:, None] + slots_1C].get(mode="fill", fill_value=num_choices)
  choice_EC = jnp.where(slots_1C < sizes_E[:, None], sources_EC, num_choices)
  experts = experts_NK.reshape(-1)
  ranks = _inverse(order) - starts_E.at[experts].get(mode="clip")
  kept = (ranks < C) & (experts < E)
  return choice_EC.reshape(-1), jnp.where(kept, experts * C + ranks, E * C)


def _rows(x: jax.Array, ids: jax.Array) -> jax.Array:
  """x[ids], zeros for ids past the end."""
  return x.at[ids].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dispatch(K: int, x_ND: jax.Array, choice_R: jax.Array, row_NK: jax.Array) -> jax.Array:
  """(R, D): the token of each row's choice, K choices a token."""
  return _rows(x_ND, choice_R // K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def combine(K: int, y_RD: jax.Array, choice_R: jax.Array, row_NK: jax.Array) -> jax.Array:
  """(N, D): the sum of each token's rows, in float32 inside. The transpose of dispatch."""
  y_NKD = _rows(y_RD, row_NK).reshape(-1, K, y_RD.shape[1])
  return jnp.sum(y_NKD, axis=1, dtype=jnp.float32).astype(y_RD.dtype)


dispatch.defvjp(
  lambda K, x, choice, row: (dispatch(K, x, choice, row), (choice, row)),
  lambda K, ids, dy: (combine(K, dy, *ids), None, None),
)
combine.defvjp(
  lambda K, y, choice, row: (combine(K, y, choice, row), (choice, row)),
  lambda K, ids, dy: (dispatch(K, dy, *ids), None, None),
)

"""Small helpers over pytrees of parameters."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def path_str(path: tuple[Any, ...]) -> str:
  """`blocks/attn/q` from a key path of jax.tree_util."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def map_with_path(f: Callable[[str, Any], Any], tree: Any) -> Any:
  """Like jax.tree.map, with the path of each leaf as the first argument."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: f(path_str(path), leaf), tree)


def is_scale_or_bias(path: str) -> bool:
  """Whether a parameter is a norm's scale or a bias: those are not decayed and not matrices."""
  return path.rsplit("/", 1)[-1].endswith(("scale", "bias"))


def decay_mask(params: Any) -> Any:
  """True for the parameters that weight decay applies to: all but scales and biases."""
  return map_with_path(lambda path, _: not is_scale_or_bias(path), params)


_TABLES = (["embed", "table"], ["position_embed", "table"])


def cast_matrices(params: Any, dtype: Any) -> Any:
  """The parameters with the matrices in `dtype`: all but scales, biases and tables of vectors.

  Of a table a few rows are taken, and their gradients summed up in the table's own dtype.
  """

  def cast(path: str, x: jax.Array) -> jax.Array:
    whole = is_scale_or_bias(path) or path.split("/")[-2:] in _TABLES
    return x if whole else x.astype(dtype)

  return map_with_path(cast, params)


def count(tree: Any) -> int:
  """The number of scalars in a tree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def global_norm(tree: Any) -> jax.Array:
  """float32 (), the 2-norm over all leaves."""
  squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32)))

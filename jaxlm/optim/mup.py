"""Each parameter's factor of the learning rate under µP, read off the logical names of its dims."""

from collections.abc import Mapping
from typing import Any

# Rows looked up by id, and the output: as at the base width.
_TABLES = frozenset({"vocab", "positions"})


def lr_factors(logical_axes: Any, ratios: Mapping[str, float]) -> Any:
  """For each parameter 1, or 1 / m for a hidden weight whose fan-in is m times the base's.

  Args:
    logical_axes: nested dict of tuples of names, as from ModelDef.logical_axes.
    ratios: m for inputs of the kinds "embed", "attention" (heads) and "mlp".

  Raises:
    ValueError: no parameter has names (µP would silently be off), or one is of no known kind.
  """
  import jax

  def factor(axes: tuple[str, ...]) -> float:
    inner = axes[1:] if axes[0] == "layers" else axes
    if len(inner) < 2 or _TABLES & set(inner):
      return 1.0
    if inner[0] == "embed":
      return 1 / ratios["embed"]
    if inner[-1] == "embed":
      return 1 / ratios["mlp" if inner[0] == "mlp" else "attention"]
    if "embed" in inner or "mlp" in inner:
      raise ValueError(f"µP knows no learning rate for a parameter of dims {axes}")
    return 1.0  # biases and norms of heads

  def is_axes(x: Any) -> bool:
    return isinstance(x, tuple)

  if not jax.tree.leaves(logical_axes, is_leaf=is_axes):
    raise ValueError("the parameters have no logical names: build the model under a Layout")
  return jax.tree.map(factor, logical_axes, is_leaf=is_axes)

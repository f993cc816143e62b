"""Which parameters are matrices to an optimizer, read off the logical names of their dims."""

from typing import Any

# Tables are rows looked up by id, not maps from one space to another.
_TABLES = frozenset({"vocab", "positions"})


def muon_dims(logical_axes: Any) -> Any:
  """For each parameter, optax.contrib.MuonDimensionNumbers, or None if it is no matrix.

  A weight whose last dim is `embed` writes to the residual stream: its input is all dims before.
  One whose first dim is `embed` reads it: its output is all dims after. Leading `layers` and
  `experts` dims are left out of both: each layer, and each expert, has a matrix of its own.

  Args:
    logical_axes: nested dict of tuples of names, as from ModelDef.logical_axes.

  Raises:
    ValueError: no parameter has names (Muon would silently be AdamW everywhere).
  """
  import jax
  import optax

  def dims(axes: tuple[str, ...]) -> Any:
    inner = tuple(i for i, name in enumerate(axes) if name not in ("layers", "experts"))
    if len(inner) < 2 or _TABLES & set(axes) or "embed" not in axes:
      return None
    if axes[-1] == "embed":
      return optax.contrib.MuonDimensionNumbers(inner[:-1], inner[-1:])
    return optax.contrib.MuonDimensionNumbers(inner[:1], inner[1:])

  def is_axes(x: Any) -> bool:
    return isinstance(x, tuple)

  if not jax.tree.leaves(logical_axes, is_leaf=is_axes):
    raise ValueError("the parameters have no logical names: build the model under a Layout")
  return jax.tree.map(dims, logical_axes, is_leaf=is_axes)

"""From logical axis names to shardings, on an explicit mesh.

`Layout` is a mesh and the table of rules. While it is active, `param` creates parameters sharded,
`gather` brings a weight together over the fsdp axis for use, and `einsum`, `constrain` and `take`
say by logical names how their results are laid out. Without an active layout they do plain,
unsharded work, so that models run in a notebook with no set-up.

The mesh is `AxisType.Explicit`: an array's type carries its sharding, so shape evaluation of the
initial state gives checkpoint targets, and an ambiguous layout is an error at trace time.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from jaxlm.batch import Batch
from jaxlm.mesh import MESH_AXES, RULES, MeshConfig, Rule

Axes = Sequence[str | None]
P = jax.P

_active: contextvars.ContextVar["Layout | None"] = contextvars.ContextVar("layout", default=None)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A device mesh and the table that maps logical axes to its axes."""

  mesh: jax.sharding.Mesh
  rules: Mapping[str, Rule] = dataclasses.field(default_factory=lambda: dict(RULES))

  def spec(self, axes: Axes) -> jax.P:
    """The PartitionSpec of an array whose dims have these logical names (None: replicated)."""
    unknown = [a for a in axes if a is not None and a not in self.rules]
    if unknown:
      raise ValueError(f"unknown logical axes {unknown}; known: {sorted(self.rules)}")
    return P(*(None if a is None else self.rules[a] for a in axes))

  def sharding(self, axes: Axes) -> NamedSharding:
    """The NamedSharding of an array whose dims have these logical names."""
    return NamedSharding(self.mesh, self.spec(axes))

  def eval_shape(self, f: Callable[..., Any], *args: Any) -> Any:
    """jax.eval_shape under this layout, with shardings on this mesh's own devices.

    (Inside, types name an abstract mesh, which no array can be restored to.)
    """
    with self.activate():
      shapes = jax.eval_shape(f, *args)
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape,
        x.dtype,
        sharding=NamedSharding(self.mesh, P() if x.sharding is None else x.sharding.spec),
      ),
      shapes,
    )

  @contextlib.contextmanager
  def activate(self) -> Iterator["Layout"]:
    """Makes this the layout of everything traced inside."""
    token = _active.set(self)
    try:
      with jax.set_mesh(self.mesh), nnx.logical_axis_rules(tuple(self.rules.items())):
        yield self
    finally:
      _active.reset(token)


def make_layout(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
  """Builds the mesh over `devices` (default: all). Raises UserError if the sizes don't fit."""
  devices = list(devices or jax.devices())
  sizes = config.sizes(len(devices))
  mesh = jax.make_mesh(
    tuple(sizes[a] for a in MESH_AXES),
    MESH_AXES,
    axis_types=(AxisType.Explicit,) * len(MESH_AXES),
    devices=devices,
  )
  return Layout(mesh)


def active() -> Layout | None:
  """The layout in force, if any."""
  return _active.get()


def spec(axes: Axes) -> jax.P | None:
  """The PartitionSpec of logical axes under the active layout; None without one."""
  layout = _active.get()
  return None if layout is None else layout.spec(axes)


Initializer = Callable[..., jax.Array]


def normal(stddev: float) -> Initializer:
  """Initializer of normal values; each device makes only its own shard."""

  def init(key: jax.Array, shape: Sequence[int], dtype: Any, out_sharding: Any) -> jax.Array:
    return stddev * jax.random.normal(key, tuple(shape), dtype, out_sharding=out_sharding)

  return init


def constant(value: float) -> Initializer:
  """Initializer of one value."""

  def init(key: jax.Array, shape: Sequence[int], dtype: Any, out_sharding: Any) -> jax.Array:
    return jnp.full(tuple(shape), value, dtype, out_sharding=out_sharding)

  return init


def param(
  init: Initializer, key: jax.Array, shape: Sequence[int], axes: Axes, dtype: Any = jnp.float32
) -> nnx.Param:
  """A parameter whose every dim has a logical name. Raises ValueError when the ranks differ.

  (An own check: a spec that is shorter than its array is accepted silently by JAX.)
  """
  if len(axes) != len(shape):
    raise ValueError(f"{axes=} must name every dim of {shape=}")
  where = spec(axes)
  value = init(key, shape, dtype, where)
  return nnx.Param(value) if where is None else nnx.Param(value, out_sharding=tuple(axes))


def gather(weight: jax.Array, dtype: Any) -> jax.Array:
  """A weight in the compute dtype, brought together over the fsdp axis (ZeRO-3's all-gather).

  The cast comes first, so that the narrow dtype travels. The transpose of the gather is the
  reduce-scatter of the weight's gradient.
  """
  weight = weight.astype(dtype)
  if _active.get() is None:
    return weight
  current = jax.typeof(weight).sharding.spec
  return jax.sharding.reshard(weight, P(*(_without_fsdp(entry) for entry in current)))


def _without_fsdp(entry: Any) -> Any:
  if isinstance(entry, tuple):
    kept = tuple(a for a in entry if a != "fsdp")
    return kept or None
  return None if entry == "fsdp" else entry


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Lays x out as its logical axes say."""
  where = spec(axes)
  return x if where is None else jax.sharding.reshard(x, where)


def einsum(equation: str, *xs: jax.Array, out: Axes, dtype: Any = None) -> jax.Array:
  """jnp.einsum whose result has the layout of the logical axes `out`."""
  return jnp.einsum(equation, *xs, out_sharding=spec(out), preferred_element_type=dtype)


def reshape(x: jax.Array, shape: Sequence[int], *axes: str | None) -> jax.Array:
  """jnp.reshape whose result has the layout of the logical axes."""
  return jnp.reshape(x, tuple(shape), out_sharding=spec(axes))


def take(table: jax.Array, ids: jax.Array, out: Axes) -> jax.Array:
  """Rows of a table, table[ids], with the layout of the logical axes `out`."""
  return table.at[ids].get(out_sharding=spec(out))


def logical_axes(state: nnx.State) -> Any:
  """A nested dict like the parameters', with each one's tuple of logical names (None: unnamed)."""
  # The only reader of NNX's sharding metadata, whose key was renamed more than once.
  return nnx.to_pure_dict(
    jax.tree.map(
      lambda p: p.replace(p.get_metadata().get("out_sharding")),
      state,
      is_leaf=lambda p: isinstance(p, nnx.Variable),
    )
  )


def like(tree: Any) -> Any:
  """The PartitionSpecs of a tree of arrays (or tracers) on an explicit mesh."""
  return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)


def settle(tree: Any) -> Any:
  """The tree with every array laid out on the mesh, constants too (replicated).

  A constant's type names no mesh until a step returns it: the second step would compile again.
  """
  if _active.get() is None:
    return tree

  def put(x: jax.Array) -> jax.Array:
    known = jax.typeof(x).sharding
    return x if not known.mesh.empty else jax.sharding.reshard(x, P(*(None,) * x.ndim))

  return jax.tree.map(put, tree)


def auto(f: Callable[..., Any], out: Any) -> Callable[..., Any]:
  """f with the compiler choosing the layouts inside, and results laid out like the tree `out`.

  For code that knows nothing of meshes, such as Optax transformations.
  """
  if _active.get() is None:
    return f
  return jax.sharding.auto_axes(f, out_sharding=like(out))


def to_device(arrays: dict[str, np.ndarray], layout: Layout, *, use_segments: bool = True) -> Batch:
  """This host's rows as part of the global batch, spread over the mesh."""
  sharding = layout.sharding(("act_batch", "act_seq"))

  def put(x: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(sharding, x)

  values: dict[str, Any] = {name: put(x) for name, x in arrays.items() if name != "segment_ids"}
  segments = put(arrays["segment_ids"]) if use_segments else None
  return Batch(**values, segment_ids=segments)

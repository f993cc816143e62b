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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from jaxlm.batch import Batch
from jaxlm.devices import arrange
from jaxlm.errors import UserError
from jaxlm.mesh import BATCH_AXES, MESH_AXES, RULES, Context, MeshConfig, Rule, Zero

Axes = Sequence[str | None]
P = jax.P

_active: contextvars.ContextVar["Layout | None"] = contextvars.ContextVar("layout", default=None)


@dataclasses.dataclass(frozen=True)
class Layout:
  """A device mesh and the table that maps logical axes to its axes.

  context: how attention goes over the sequence axis. microbatches: of the pipeline over stages.
  zero: what the fsdp axis splits. offload_optimizer: its state lies in the host's memory.
  """

  mesh: jax.sharding.Mesh
  rules: Mapping[str, Rule] = dataclasses.field(default_factory=lambda: dict(RULES))
  context: Context = Context.GATHER
  microbatches: int = 1
  zero: Zero = Zero.ZERO3
  offload_optimizer: bool = False

  def size(self, *axes: str) -> int:
    """The number of devices along these mesh axes."""
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def row_shard(self) -> tuple[int, int]:
    """(index, count): which of `count` equal, contiguous parts of each batch this process loads.

    Processes whose devices differ along other axes only (tensor parallelism over hosts) share one.

    Raises:
      UserError: its devices do not stand side by side on the batch's axes.
    """
    shares = self.size(*BATCH_AXES)
    where = self.sharding(("act_batch",)).addressable_devices_indices_map((shares,))
    here = sorted({index[0].start or 0 for index in where.values() if index})
    first, size = here[0], len(here)
    if here != list(range(first, first + size)) or shares % size or first % size:
      raise UserError(
        f"config.mesh: process {jax.process_index()} holds the parts {here} of {shares} of a batch,"
        " which do not stand side by side: choose data × fsdp × expert as a multiple of a process's"
        " devices, or a divisor"
      )
    return first // size, shares // size

  @property
  def zigzag(self) -> bool:
    """Whether the tokens of a row lie in zigzag order on the sequence axis."""
    return self.size("sequence") > 1 and self.context is not Context.ULYSSES

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
  mesh = jax.sharding.Mesh(
    arrange(sizes, devices), MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES)
  )
  return Layout(
    mesh,
    config.rules(sizes),
    config.context,
    config.pipeline_microbatches,
    config.zero,
    config.offload_optimizer,
  )


def active() -> Layout | None:
  """The layout in force, if any."""
  return _active.get()


def spec(axes: Axes) -> jax.P | None:
  """The PartitionSpec of logical axes under the active layout; None without one."""
  layout = _active.get()
  return None if layout is None else layout.spec(axes)


def residual_axes(seq_len: int) -> tuple[str, str, str]:
  """The logical axes of the residual stream (B, T, D), whose tokens the model axis splits too.

  Where it doesn't divide them (a single token that is generated) each of its devices has all.
  """
  layout = _active.get()
  if layout is not None:
    rule = layout.rules["act_residual"]
    axes = (rule,) if isinstance(rule, str) else rule or ()
    if seq_len % layout.size(*axes):
      return ("act_batch", "act_seq", "act_embed")
  return ("act_batch", "act_residual", "act_embed")


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
  return without_axis(weight.astype(dtype), "fsdp")


def without_axis(x: jax.Array, axis: str) -> jax.Array:
  """The array brought together over one mesh axis."""
  if _active.get() is None:
    return x

  def rest(entry: Any) -> Any:
    if isinstance(entry, tuple):
      return tuple(a for a in entry if a != axis) or None
    return None if entry == axis else entry

  return jax.sharding.reshard(x, P(*map(rest, jax.typeof(x).sharding.spec)))


def reshape_rows(x: jax.Array, parts: int | None) -> jax.Array:
  """(B, …) -> (parts, B / parts, …), or back for None.

  Part i takes rows i, i + parts, …, so that each device's rows stay where they are.
  """
  layout = _active.get()
  rest = () if layout is None else tuple(jax.typeof(x).sharding.spec)
  if parts is None:
    size = x.shape[0] * x.shape[1]
    where = None if layout is None else P(rest[1], *rest[2:])
    return jnp.reshape(x.swapaxes(0, 1), (size, *x.shape[2:]), out_sharding=where)
  where = None if layout is None else P(rest[0], None, *rest[1:])
  split = jnp.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:]), out_sharding=where)
  return split.swapaxes(0, 1)


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


def laid_out_like(x: jax.Array, other: jax.Array) -> jax.Array:
  """x with the layout of another array of its shape."""
  return x if _active.get() is None else jax.sharding.reshard(x, jax.typeof(other).sharding.spec)


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
  """This host's rows as part of the global batch, spread over the mesh.

  Args:
    arrays: a Batch's fields, (B, T) each: all T tokens of the rows of this host's devices, in the
      order of those devices on the batch's mesh axes. Hosts that share rows give the same ones.
    layout: the mesh. Where it is `zigzag`, the tokens of the result are in that order, alike in all
      fields: what is computed per token, or summed over tokens, does not see it.
    use_segments: False: every row is one document.

  Raises:
    UserError: the sequence axis does not divide T.
  """
  sharding = layout.sharding(("act_batch", "act_seq"))
  shares, n = layout.size(*BATCH_AXES), layout.size("sequence")
  shards = sharding.addressable_devices_indices_map((shares, n))
  here = {index[0].start for index in shards.values() if index}

  def put(x: np.ndarray) -> jax.Array:
    B, T = x.shape
    parts = 2 * n if layout.zigzag else n
    if T % parts:
      raise UserError(
        f"config.data.seq_len={T}: must be divisible by {parts} for config.mesh.sequence={n} and "
        f"config.mesh.context={layout.context.name}"
      )
    if layout.zigzag:
      x = x.reshape(B, parts, T // parts)[:, zigzag(n)].reshape(B, T)
    # Without its shape, a row that several hosts share would be taken for a part of a longer one.
    return jax.make_array_from_process_local_data(sharding, x, (B * shares // len(here), T))

  values: dict[str, Any] = {name: put(x) for name, x in arrays.items() if name != "segment_ids"}
  segments = put(arrays["segment_ids"]) if use_segments else None
  return Batch(**values, segment_ids=segments)


def zigzag(n: int) -> list[int]:
  """Which of a row's 2n chunks stand where in zigzag order: device i holds i and 2n-1-i."""
  return [chunk for i in range(n) for chunk in (i, 2 * n - 1 - i)]

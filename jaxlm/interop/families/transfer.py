"""Tensors into sharded parameters and back, one at a time, by a family's table of weights."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import tree
from jaxlm.errors import UserError
from jaxlm.interop.families.base import Family, How, Weight
from jaxlm.interop.families.registry import family_of, find_family
from jaxlm.interop.tensors import Tensors, check_dtype
from jaxlm.models.base import Params
from jaxlm.models.config import ModelConfig
from jaxlm.sharding import Layout, active

Index = tuple[int, ...]


def import_params(tensors: Tensors, config: ModelConfig, layout: Layout | None = None) -> Params:
  """The parameters of config's model, from the tensors of a Hugging Face model.

  One tensor is read at a time and goes straight to the devices that hold it; on the host there is
  at most a tensor and its copy in the parameters' dtype.

  Args:
    tensors: its config names the family; config may differ from the family's in what is of the run
      (dtypes, scan_layers, …).
    layout: how parameters are laid out; None: as the active one says, or on one device.

  Raises:
    UserError: a tensor is missing, not known, or of a wrong shape or dtype.
  """
  layout = layout or active()
  family = find_family(tensors.config)
  shapes = _shapes(config, layout)
  plan = list(_plan(family, config, shapes))
  names = _check_names(family, tensors, config, [name for name, *_ in plan])
  params: dict[str, jax.Array] = {}
  for name, weight, targets in plan:
    expected = _hf_shape(weight, config, [shapes[path].shape[len(i) :] for path, i in targets])
    if tensors.shape(names[name]) != expected:
      raise UserError(
        f"{names[name]}: has shape {list(tensors.shape(names[name]))}, but config.json asks for "
        f"{list(expected)}"
      )
    parts = _split(
      _read(tensors, names[name]),
      weight,
      [(shapes[path].shape[len(i) :], shapes[path].dtype) for path, i in targets],
    )
    for (path, index), part in zip(targets, parts, strict=True):
      params[path] = _put(params.get(path), shapes[path], index, part)
  for path in _unread(family, config, shapes):
    if path not in params:
      params[path] = _put(None, shapes[path], (), np.zeros(shapes[path].shape, shapes[path].dtype))
  missing = sorted(set(shapes) - set(params))
  assert not missing, f"{family.model_type}: its table has no weights for {missing}"
  return _nested(params)


def export_tensors(
  params: Params, config: ModelConfig, model_type: str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
  """Hugging Face's tensors (name, array), one at a time, in the parameters' dtype.

  Params may be sharded; on several hosts, all must run this, and each gets whole tensors.
  """
  flat = _flat(params)
  for name, weight, targets in _plan(family_of(config, model_type), config, flat):
    yield name, _join([_fetch(flat[path], index) for path, index in targets], weight, config)


def _shapes(config: ModelConfig, layout: Layout | None) -> dict[str, Any]:
  model, key = config.build(), jax.random.key(0)
  if layout is None:
    return _flat(jax.eval_shape(model.init, key))
  with layout.activate():
    model = config.build()
  return _flat(layout.eval_shape(model.init, key))


def _flat(params: Params) -> dict[str, Any]:
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {tree.path_str(path): leaf for path, leaf in leaves}


def _nested(flat: dict[str, Any]) -> Params:
  out: Params = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    inner = out
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[last] = leaf
  return out


def _plan(
  family: Family, config: Any, shapes: dict[str, Any]
) -> Iterator[tuple[str, Weight, list[tuple[str, Index]]]]:
  """Each tensor's name, and the parameters that it fills: (path, index of leading dims)."""
  for weight in family.weights(config):
    if "{layer}" not in weight.name:
      yield weight.name, weight, [(path, ()) for path in weight.paths]
      continue
    for layer in range(config.num_layers):
      prefix, first = block_path(config, layer)
      paths = [f"{prefix}/{path}" for path in weight.paths]
      if paths[0] not in shapes:
        continue  # a layer of another kind: its own weights are in the table too
      if layer in weight.absent:
        continue
      for expert in range(weight.experts or 1):
        index = first if weight.experts is None else (*first, expert)
        name = weight.name.format(layer=layer, expert=expert)
        yield name, weight, [(path, index) for path in paths]


def _unread(family: Family, config: Any, shapes: dict[str, Any]) -> list[str]:
  """The parameters of layers that have no tensor for them."""
  return [
    f"{block_path(config, layer)[0]}/{path}"
    for weight in family.weights(config)
    for layer in weight.absent
    for path in weight.paths
  ]


def block_path(config: Any, layer: int) -> tuple[str, Index]:
  """Where a layer's parameters are: the path of its block, and the index of leading dims."""
  dense = getattr(config, "num_dense_layers", 0)
  if layer < dense:
    stack, count, block = "dense_stack", dense, 1
  else:
    stack, count, block = "stack", config.num_layers - dense, config.scan_block
    layer -= dense
  size = block if config.scan_layers else count
  name = f"{stack}/blocks/layer_{layer % size:0{len(str(size - 1))}d}"
  return name, (layer // size,) if config.scan_layers else ()


def _check_names(
  family: Family, tensors: Tensors, config: Any, wanted: list[str]
) -> dict[str, str]:
  """Wanted name -> name in the file. Raises UserError for names that only one side has."""
  there = set(tensors.names())
  bare = not any(name.startswith(family.prefix) for name in there)
  found = {name: name.removeprefix(family.prefix) if bare else name for name in wanted}
  if missing := [name for name in found.values() if name not in there]:
    raise UserError(f"{missing[0]}: no such tensor ({len(missing)} of {len(found)} are missing)")
  tied = getattr(config, "tie_embeddings", False)
  extra = [
    name
    for name in sorted(there - set(found.values()))
    if not family.ignores(name) and not (tied and name in ("lm_head.weight", "embed_out.weight"))
  ]
  if extra:
    raise UserError(
      f"{extra[0]}: a tensor that model_type={family.model_type!r} with this config.json has no "
      f"place for ({len(extra)} such)"
    )
  return found


# ---- between a tensor and its parameters ------------------------------------------------------


def _read(tensors: Tensors, name: str) -> np.ndarray:
  array = tensors.read(name)
  check_dtype(name, array.dtype)
  return array


def _hf_shape(weight: Weight, config: Any, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
  n = weight.inputs
  if weight.how is How.TABLE:
    return (config.vocab_size, *shapes[0][1:])
  outputs = sum(math.prod(shape[n:]) for shape in shapes)
  inputs = math.prod(shapes[0][:n])
  if n == 0:
    return (outputs,)
  return (outputs, inputs) if weight.how is How.LINEAR else (inputs, outputs)


def _split(
  tensor: np.ndarray, weight: Weight, wanted: list[tuple[tuple[int, ...], Any]]
) -> list[np.ndarray]:
  """The parameters (shape, dtype) that a tensor holds."""
  if weight.how is How.TABLE:
    (shape, dtype), *_ = wanted
    table = np.zeros(shape, dtype)
    table[: tensor.shape[0]] = tensor
    return [table]
  if weight.how is How.LINEAR:
    tensor = tensor.T
  if len(wanted) == 1:
    (shape, dtype), *_ = wanted
    return [np.ascontiguousarray(tensor, dtype).reshape(shape)]
  n, G = weight.inputs, weight.interleaved
  sizes = [math.prod(shape[n:]) // G for shape, _ in wanted]
  # Strided views all the way: each part is copied once, into its dtype.
  grouped = tensor.reshape(*(tensor.shape[:1] if n else (1,)), G, sum(sizes))
  ends = np.cumsum(sizes)
  return [
    np.ascontiguousarray(grouped[..., end - size : end], dtype).reshape(shape)
    for (shape, dtype), size, end in zip(wanted, sizes, ends, strict=True)
  ]


def _join(parts: list[np.ndarray], weight: Weight, config: Any) -> np.ndarray:
  """The tensor that holds these parameters: the reverse of `_split`."""
  n, G = weight.inputs, weight.interleaved
  if weight.how is How.TABLE:
    return parts[0][: config.vocab_size]
  inputs = math.prod(parts[0].shape[:n])
  if len(parts) == 1:
    joined = parts[0].reshape(inputs, -1)
  else:
    joined = np.concatenate([part.reshape(inputs, G, -1) for part in parts], axis=-1)
    joined = joined.reshape(inputs, -1)
  if n == 0:
    return joined.reshape(-1)
  return np.ascontiguousarray(joined.T) if weight.how is How.LINEAR else joined


# ---- between host and devices -----------------------------------------------------------------


def _put(array: jax.Array | None, whole: Any, index: Index, part: np.ndarray) -> jax.Array:
  """The parameter `whole` describes, with `part` at this index of its leading dims."""
  where = getattr(whole, "sharding", None)
  if where is None:
    value = jnp.asarray(part)
    if not index:
      return value
    array = jnp.zeros(whole.shape, whole.dtype) if array is None else array
    return _update(array, value, *index)
  spec = jax.P(*where.spec[len(index) :])
  own = jax.sharding.NamedSharding(where.mesh, spec)
  value = jax.make_array_from_callback(part.shape, own, lambda i: part[i])
  if not index:
    return value
  with jax.set_mesh(where.mesh):
    if array is None:
      array = _zeros(whole.shape, whole.dtype, where)
    return _update(array, value, *index)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: Any, where: Any) -> jax.Array:
  return jnp.zeros(shape, dtype, out_sharding=where)


@functools.partial(jax.jit, donate_argnums=0)
def _update(array: jax.Array, part: jax.Array, *index: jax.Array) -> jax.Array:
  # Where a dim of the index is sharded (stages, experts), the compiler finds the device.
  def update(array: jax.Array, part: jax.Array, *index: jax.Array) -> jax.Array:
    return array.at[index].set(part)

  where = jax.typeof(array).sharding
  if not where.mesh.empty:
    update = jax.sharding.auto_axes(update, out_sharding=where.spec)
  return update(array, part, *index)


def _fetch(array: jax.Array, index: Index) -> np.ndarray:
  """array[index] on the host."""
  where = getattr(array, "sharding", None)
  if not isinstance(where, jax.sharding.NamedSharding) or not isinstance(
    where.mesh, jax.sharding.Mesh
  ):
    return np.asarray(array[index])
  with jax.set_mesh(where.mesh):
    return np.asarray(_take(array, *index))


@jax.jit
def _take(array: jax.Array, *index: jax.Array) -> jax.Array:
  everywhere = jax.P(*(None,) * (array.ndim - len(index)))
  take = jax.sharding.auto_axes(lambda array, *index: array[index], out_sharding=everywhere)
  return take(array, *index)

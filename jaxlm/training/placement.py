"""Where the optimizer's state lies: split over the fsdp axis, or in the host's memory."""

from typing import Any

import jax

from jaxlm import sharding
from jaxlm.errors import UserError
from jaxlm.mesh import RULES, Zero
from jaxlm.sharding import Axes, Layout, active

HOST = "pinned_host"


def for_optimizer(tree: Any, axes: Any) -> Any:
  """The parameters, or their gradients, laid out as the optimizer's state is.

  axes: the logical names of each one's dims. With ZeRO-1 the parameters are whole on every device
  of the fsdp axis, and the optimizer works on a part of them.
  """
  layout = active()
  if layout is None or layout.zero is Zero.ZERO3:
    return tree
  rules = dict(layout.rules) | {"embed": RULES["embed"]}

  def put(x: jax.Array, names: Axes) -> jax.Array:
    where = jax.P(*(None if name is None else rules[name] for name in names))
    return jax.sharding.reshard(x, where)

  return jax.tree.map(put, tree, axes)


def for_model(updates: Any, params: Any) -> Any:
  """The optimizer's updates, laid out as the parameters are."""
  return jax.tree.map(sharding.laid_out_like, updates, params)


def to_host(opt_state: Any) -> Any:
  """The optimizer's state in the host's memory, where the layout wants it there."""
  return _moved(opt_state, jax.memory.Space.Host)


def from_host(opt_state: Any) -> Any:
  """The same in the device's memory, for use."""
  return _moved(opt_state, jax.memory.Space.Device)


def _moved(tree: Any, space: Any) -> Any:
  layout = active()
  if layout is None or not layout.offload_optimizer:
    return tree
  return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, tree)


def on_host(shapes: Any) -> Any:
  """The shapes of an optimizer's state whose arrays lie in the host's memory.

  (What jax.eval_shape returns does not tell in which memory.)
  """

  def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not x.shape:
      return x
    where = x.sharding.with_memory_kind(HOST)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  return jax.tree.map(place, shapes)


def check_offload(layout: Layout) -> None:
  """UserError where the devices have no such memory."""
  if not layout.offload_optimizer:
    return
  device = layout.mesh.devices.flat[0]
  if HOST not in {memory.kind for memory in device.addressable_memories()}:
    raise UserError(
      f"config.mesh.offload_optimizer=True: {device.device_kind} can not keep arrays in its host's "
      "memory: set it to false, and use config.mesh.fsdp or config.optim=AdafactorConfig() to save "
      "memory"
    )

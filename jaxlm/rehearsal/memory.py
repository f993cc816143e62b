"""What a device of the real mesh must hold, from shapes and shardings alone."""

import math
from typing import Any

import jax

from jaxlm.config import RunConfig
from jaxlm.mesh import MeshConfig
from jaxlm.program import build_program
from jaxlm.sharding import Layout, make_layout

GIB = 2.0**30


def state_bytes(config: RunConfig, sizes: dict[str, int]) -> dict[str, float]:
  """Bytes a device of parameters, optimizer state and gradients; activations come on top.

  Args:
    config: its vocab_size is resolved.
    sizes: of the real mesh. Nothing is allocated: the state's shapes are traced on a mesh of one
      device, whose specs name the axes that split it on the real one.
  """
  one = make_layout(MeshConfig(fsdp=1), jax.devices()[:1])
  layout = Layout(one.mesh, config.mesh.rules(sizes), config.mesh.context, one.microbatches)
  with layout.activate():
    program = build_program(config)
  state = layout.eval_shape(program.init, jax.random.key(0))

  def total(tree: Any) -> float:
    return sum(_bytes(leaf, sizes) for leaf in jax.tree.leaves(tree))

  params = total(state.params)
  optimizer = 0.0 if config.mesh.offload_optimizer else total(state.opt_state)
  return {"parameters": params, "optimizer state": optimizer, "gradients": params}


def _bytes(leaf: Any, sizes: dict[str, int]) -> float:
  shape = list(leaf.shape)
  for dim, entry in enumerate(leaf.sharding.spec):
    axes = entry if isinstance(entry, tuple) else (entry,)
    shape[dim] = -(-shape[dim] // math.prod(sizes[axis] for axis in axes if axis is not None))
  return math.prod(shape) * leaf.dtype.itemsize

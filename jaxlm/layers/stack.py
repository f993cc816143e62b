"""A stack of equal blocks: scanned (one compiled body) or unrolled, with rematerialisation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxlm.layers.config import Remat
from jaxlm.layers.pipeline import pipeline, split_layers, whole_on_stages
from jaxlm.sharding import active

# apply(block, x, rows, per_layer) -> (x, out): one block's work. rows, per_layer, out are pytrees.
Apply = Callable[[Any, jax.Array, Any, Any], tuple[jax.Array, Any]]


def checkpoint_policy(remat: Remat) -> Callable[..., Any] | None:
  """The jax.checkpoint policy of a Remat, by the names that layers give their results."""
  save = jax.checkpoint_policies.save_only_these_names
  match remat:
    case Remat.FULL:
      return jax.checkpoint_policies.nothing_saveable
    case Remat.QKV:
      return save("qkv", "context")
    case Remat.MINIMAL:
      return save("qkv", "context", "out", "mlp")
    case Remat.OFFLOAD:
      return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["qkv", "context", "out", "mlp"],
        offload_src="device",
        offload_dst="pinned_host",
      )
    case Remat.NONE | Remat.AUTO:
      return None


class Stack(nnx.Module):
  """num_layers blocks.

  Scanned: parameters are stacked on a leading `layers` dim of num_layers / scan_block, and one
  body of scan_block blocks (`layer_0`, `layer_1`, …) is looped over. Unrolled: num_layers blocks
  side by side (`layer_00`, …).
  """

  def __init__(
    self,
    make: Callable[[nnx.Rngs], nnx.Module],
    num_layers: int,
    *,
    scan: bool,
    scan_block: int,
    remat: Remat,
    rngs: nnx.Rngs,
  ):
    self.scan, self.remat, self.num_layers = scan, remat, num_layers
    self.group_size = scan_block if scan else num_layers
    if scan:
      # transform_metadata keeps the names of the dims true: a bare vmap would leave them one
      # short, and the first name would silently shard the layers.
      def group(r: nnx.Rngs) -> Group:
        return Group(make, scan_block, rngs=r)

      stacked = nnx.transform_metadata(group, in_axes=0, out_axes=0, partition="layers")
      self.blocks = jax.tree.map(
        split_layers, jax.vmap(stacked)(rngs.split(num_layers // scan_block))
      )
    else:
      # Made in a loop: the random numbers of a block are compiled once, not num_layers times (70 s
      # for 24 layers on a GPU).
      def values(r: nnx.Rngs) -> Any:
        return nnx.to_pure_dict(nnx.state(make(r), nnx.Param))

      stacked = jax.lax.map(values, rngs.split(num_layers))
      self.blocks = nnx.eval_shape(
        lambda: Group(make, num_layers, rngs=nnx.Rngs(params=jax.random.key(0)))
      )
      for i, block in enumerate(self.blocks.layers()):
        state = nnx.state(block, nnx.Param)
        nnx.replace_by_pure_dict(state, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        nnx.update(block, state)

  def __call__(
    self, apply: Apply, x: jax.Array, rows: Any, per_layer: Any, *, keys: jax.Array | None = None
  ) -> tuple[jax.Array, Any]:
    """Runs all blocks.

    Args:
      apply: what one block does.
      x: the input of the first block, (B, …).
      rows: a pytree whose leaves have a leading dim B too: what every block is told of the rows.
      per_layer: a pytree whose leaves have a leading dim num_layers, a slice for each block.
      keys: random keys (num_layers,), or None; apply gets (key, slice) for per_layer.

    Returns:
      The last block's output, and the outs stacked on a leading dim num_layers (None from a
      pipeline over the mesh's stages).
    """
    if self.remat not in (Remat.NONE, Remat.AUTO):
      policy = checkpoint_policy(self.remat)
      apply = jax.checkpoint(apply, policy=policy, prevent_cse=not self.scan)

    def run_group(x: jax.Array, rows: Any, group: Any, slices: Any) -> tuple[jax.Array, Any]:
      outs = []
      for i, block in enumerate(group.layers()):
        x, out = apply(block, x, rows, jax.tree.map(lambda leaf, i=i: leaf[i], slices))
        outs.append(out)
      return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)

    slices = (keys, per_layer)
    if not self.scan:
      return run_group(x, rows, self.blocks, slices)
    grouped = jax.tree.map(lambda leaf: leaf.reshape(-1, self.group_size, *leaf.shape[1:]), slices)
    blocks, layout = self.blocks, active()
    if layout is not None and layout.size("stage") > 1:
      if per_layer is None:
        return pipeline(run_group, blocks, x, rows, grouped[0], layout), None
      blocks = whole_on_stages(blocks)

    def body(x: jax.Array, group_and_slice: Any) -> tuple[jax.Array, Any]:
      return run_group(x, rows, *group_and_slice)

    x, outs = jax.lax.scan(body, x, (blocks, grouped))
    return x, jax.tree.map(lambda leaf: leaf.reshape(self.num_layers, *leaf.shape[2:]), outs)


class Group(nnx.Module):
  """A few blocks, one after another."""

  def __init__(self, make: Callable[[nnx.Rngs], nnx.Module], size: int, *, rngs: nnx.Rngs):
    self.names = tuple(f"layer_{i:0{len(str(size - 1))}d}" for i in range(size))
    for name in self.names:
      setattr(self, name, make(rngs))

  def layers(self) -> list[Any]:
    """The blocks in order."""
    return [getattr(self, name) for name in self.names]

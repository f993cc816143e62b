"""Pipeline parallelism: stages of layers, through which microbatches go one after another.

The schedule is GPipe's (Huang et al. 2019, arXiv:1811.06965): with S stages and M microbatches a
step takes M + S - 1 turns, in S - 1 of which a stage idles. Between turns each stage hands its
output to the next (a collective permute); the backward pass is the transpose of the forward one.

M microbatches, S stages, B rows, b = B / M rows of a microbatch, G groups of layers a stage.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.sharding import Layout, reshape_rows, spec, without_axis

# run(x, rows, group, (keys, None)) -> (x, outs): the work of one group of layers.
Run = Callable[[jax.Array, Any, Any, Any], tuple[jax.Array, Any]]


def pipeline(
  run: Run, blocks: Any, x: jax.Array, rows: Any, keys: jax.Array | None, layout: Layout
) -> jax.Array:
  """The output (B, …) of all layers.

  Args:
    run: the work of one group of layers.
    blocks: the groups' parameters, stacked on a leading dim that the stage axis splits.
    x: (B, …), laid out without the stage axis.
    rows: a pytree of arrays (B, …) that every layer is told of.
    keys: random keys (groups, layers of a group), or None; each microbatch gets its own of them.
    layout: the active one. Its `microbatches` is M and divides B.
  """
  S, M = layout.size("stage"), layout.microbatches
  x_Mb, rows_Mb = jax.tree.map(lambda leaf: reshape_rows(leaf, M), (x, rows))

  def stages(blocks: Any, keys: Any, x_Mb: jax.Array, rows_Mb: Any) -> jax.Array:
    stage = jax.lax.axis_index("stage")

    def turn(received: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
      # Before its first and after its last microbatch a stage works on one that counts for nothing.
      m = jnp.clip(t - stage, 0, M - 1)
      rows = jax.tree.map(lambda leaf: leaf[m], rows_Mb)
      x = jnp.where(stage == 0, x_Mb[m], received)

      def body(x: jax.Array, group_and_keys: Any) -> tuple[jax.Array, None]:
        group, keys = group_and_keys
        if keys is not None:
          keys = jax.vmap(jax.random.fold_in, (0, None))(keys, m)
        return run(x, rows, group, (keys, None))[0], None

      y = jax.lax.scan(body, x, (blocks, keys))[0]
      return jax.lax.ppermute(y, "stage", [(i, i + 1) for i in range(S - 1)]), y

    _, y = jax.lax.scan(turn, jnp.zeros_like(x_Mb[0]), jnp.arange(M + S - 1))
    return y[None, S - 1 :]

  staged, everywhere = jax.P("stage"), jax.P()
  y_SMb = jax.shard_map(
    stages,
    in_specs=(staged, staged, everywhere, everywhere),
    out_specs=staged,
    axis_names={"stage"},
    check_vma=False,
  )(blocks, keys, x_Mb, rows_Mb)
  # Only the last stage's are the layers' output.
  return reshape_rows(without_axis(y_SMb, "stage")[-1], None)


def split_layers(leaf: jax.Array) -> jax.Array:
  """One of the layers' stacked parameters, its leading dim laid out by the table of rules."""
  where = spec(("layers",))
  if where is None or where[0] is None:
    return leaf
  return jax.sharding.reshard(leaf, jax.P(where[0], *jax.typeof(leaf).sharding.spec[1:]))


def whole_on_stages(blocks: Any) -> Any:
  """The layers' parameters, all of them on every stage: for work that goes layer by layer."""
  return jax.tree.map(lambda leaf: without_axis(leaf, "stage"), blocks)

"""Speed of a mixture-of-experts layer on one GPU: python benchmarks/moe.py [--backends=…]

For each shape: every direction of the grouped matmul alone by every backend (from which
`ON_CUDA` of jaxlm/kernels/grouped_matmul.py is set), then forward and backward of the layer by
several combinations of backends, beside a dense SwiGLU MLP of the same FLOPs (mlp_dim = k F).
bfloat16 compute, float32 parameters, random data and a random router (groups of unequal size).
Times are medians over runs of calls that are queued back to back. FLOP/s count the products of the
experts: 2 M D F each. A backend that fails has its error in its row.

  --backends=F/X/W,…  combinations of the layer: forward/dx/dw of xla, triton, mosaic_gpu; `ladder`
                      for the layer's choice among capacities; `capacity=1.25` for dense experts of
                      that capacity; default: several
  --shapes=NAME,…     of e8, e64
  --autotune          let tokamax search for the kernels' parameters first (minutes)
  --small             shapes and repeats of a smoke test; runs on a CPU
"""

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm.kernels.grouped_matmul import DW, DX, FORWARD, Backend, Backends, ragged_dot, require
from jaxlm.layers.config import Activation
from jaxlm.layers.mlp import Mlp
from jaxlm.layers.moe import LADDER, MoeMlp
from jaxlm.sharding import normal

DIRECTIONS = {"forward": FORWARD, "dx": DX, "dw": DW}


@dataclasses.dataclass(frozen=True)
class Shape:
  tokens: int
  embed_dim: int
  mlp_dim: int
  experts: int
  per_token: int

  @property
  def product_flops(self) -> float:
    """FLOPs of one product of all rows with one (D, F) matrix each."""
    return 2.0 * self.tokens * self.per_token * self.embed_dim * self.mlp_dim

  def __str__(self) -> str:
    return (
      f"{self.tokens} tokens, D={self.embed_dim}, F={self.mlp_dim}, "
      f"{self.per_token} of {self.experts} experts"
    )


SHAPES = {
  "e8": Shape(16384, 2048, 5632, 8, 2),
  "e64": Shape(16384, 2048, 1024, 64, 8),
}
SMALL = {"e8": Shape(256, 64, 128, 8, 2), "e64": Shape(128, 64, 32, 64, 8)}


def seconds(f: Callable[..., Any], *args: Any, small: bool) -> float:
  """Median seconds of a call, of batches of calls that the device works through without a gap."""
  jax.block_until_ready(f(*args))
  batches, calls = (2, 2) if small else (9, 10)
  times = []
  for _ in range(batches):
    begin = time.perf_counter()
    out = None
    for _ in range(calls):
      out = f(*args)
    jax.block_until_ready(out)
    times.append((time.perf_counter() - begin) / calls)
  return statistics.median(times)


def row(name: str, time_or_error: float | str, flops: float, baseline: float | None = None) -> str:
  if isinstance(time_or_error, str):
    return f"{name:<44} {time_or_error}"
  line = f"{name:<44} {time_or_error * 1e3:9.3f} ms {flops / time_or_error / 1e12:8.1f} TFLOP/s"
  return line if baseline is None else f"{line} {baseline / time_or_error:6.2f} of dense"


def attempt(f: Callable[[], float]) -> float | str:
  """What f returns, or the first line of what it raises."""
  try:
    return f()
  except Exception as e:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:120]}"


def tuned(f: Callable[..., Any], args: Any, autotune: bool) -> Any:
  """A context in which tokamax uses what it found fastest for the ops of f."""
  if not autotune:
    return contextlib.nullcontext()
  import tokamax

  found = tokamax.autotune(f, *args, progress_bar=False)
  for op, data in found.data:
    print(f"  tuned {type(op.op).__name__}: {data.fastest_config}", flush=True)
  return found


def products(shape: Shape, *, small: bool, autotune: bool) -> list[str]:
  """Each direction by each backend, on the sizes that random choices give the groups."""
  M, D, F, E = shape.tokens * shape.per_token, shape.embed_dim, shape.mlp_dim, shape.experts
  sizes = jnp.asarray(np.random.default_rng(0).multinomial(M, [1 / E] * E), jnp.int32)
  keys = jax.random.split(jax.random.key(0), 3)
  # The gate and up projections are one product with (D, 2 F) matrices.
  x = jax.random.normal(keys[0], (M, D), jnp.bfloat16)
  w = jax.random.normal(keys[1], (E, D, 2 * F), jnp.bfloat16)
  dy = jax.random.normal(keys[2], (M, 2 * F), jnp.bfloat16)
  operands = {"forward": (x, w), "dx": (dy, w), "dw": (x, dy)}
  rows = []
  for direction, dims in DIRECTIONS.items():
    for backend in Backend:

      def run(direction: str = direction, dims: Any = dims, backend: Backend = backend) -> float:
        def f(a: jax.Array, b: jax.Array, sizes: jax.Array) -> jax.Array:
          return ragged_dot(a, b, sizes, dims, backend)

        require(backend)
        args = (*operands[direction], sizes)
        with tuned(f, args, autotune and backend is not Backend.XLA):
          return seconds(jax.jit(f), *args, small=small)

      name = f"  grouped matmul {direction}, {backend.value}"
      rows.append(row(name, attempt(run), 2 * shape.product_flops))
      print(rows[-1], flush=True)
  return rows


def train_step(model: nnx.Module, tokens: int, embed_dim: int) -> tuple[Callable[..., Any], Any]:
  """Forward and backward of a layer by its parameters and input, and arguments for it."""
  graph, state = nnx.split(model)
  keys = jax.random.split(jax.random.key(1), 2)
  x_BTD = jax.random.normal(keys[0], (tokens // 64, 64, embed_dim), jnp.bfloat16)
  dy_BTD = jax.random.normal(keys[1], x_BTD.shape, jnp.bfloat16)

  def step(state: Any, x_BTD: jax.Array, dy_BTD: jax.Array) -> Any:
    def f(state: Any, x_BTD: jax.Array) -> jax.Array:
      y = nnx.merge(graph, state)(x_BTD)
      return y[0] if isinstance(y, tuple) else y

    y_BTD, vjp = jax.vjp(f, state, x_BTD)
    return y_BTD, vjp(dy_BTD)

  return step, (state, x_BTD, dy_BTD)


def layers(shape: Shape, names: list[str], *, small: bool, autotune: bool) -> list[str]:
  """The dense MLP, then the layer by every combination."""
  common: Any = dict(
    embed_dim=shape.embed_dim,
    activation=Activation.SWIGLU,
    init=normal(0.02),
    init_out=normal(0.02),
    dtype=jnp.bfloat16,
    param_dtype=jnp.float32,
  )
  flops = 3 * 3 * shape.product_flops

  def dense() -> float:
    mlp_dim = shape.per_token * shape.mlp_dim
    model = Mlp(mlp_dim=mlp_dim, use_bias=False, rngs=nnx.Rngs(0), **common)
    step, args = train_step(model, shape.tokens, shape.embed_dim)
    return seconds(jax.jit(step), *args, small=small)

  def sparse(name: str) -> float:
    how: dict[str, Any]
    if name.startswith("capacity="):
      how = dict(capacity_factor=float(name.removeprefix("capacity=")))
    elif name == "ladder":
      how = dict(ladder=LADDER)
    else:
      how = dict(ladder=(), backends=Backends(*(Backend(part) for part in name.split("/"))))
    model = MoeMlp(
      mlp_dim=shape.mlp_dim,
      num_experts=shape.experts,
      experts_per_token=shape.per_token,
      rngs=nnx.Rngs(0),
      **how,
      **common,
    )
    step, args = train_step(model, shape.tokens, shape.embed_dim)
    with tuned(step, args, autotune and name.replace("xla", "").strip("/") != ""):
      return seconds(jax.jit(step), *args, small=small)

  baseline = attempt(dense)
  rows = [row(f"  dense MLP, mlp_dim={shape.per_token * shape.mlp_dim}", baseline, flops)]
  print(rows[-1], flush=True)
  for name in names:
    found = attempt(lambda name=name: sparse(name))
    known = baseline if isinstance(baseline, float) else None
    rows.append(row(f"  experts, {name}", found, flops, known))
    print(rows[-1], flush=True)
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--backends", default="")
  parser.add_argument("--shapes", default="e8,e64")
  parser.add_argument("--autotune", action="store_true")
  parser.add_argument("--small", action="store_true")
  options = parser.parse_args()
  jax.config.update("jax_numpy_rank_promotion", "raise")
  kernels = ("triton", "mosaic_gpu")
  names = [f"{f}/{x}/{w}" for f in kernels for x in kernels for w in kernels]
  names = options.backends.split(",") if options.backends else [*names, "xla/xla/xla"]
  if not options.backends:
    names += ["ladder", "capacity=1.0", "capacity=1.25"]
  how = dict(small=options.small, autotune=options.autotune)
  table = []
  for name in options.shapes.split(","):
    shape = (SMALL if options.small else SHAPES)[name]
    table += [f"{name}: {shape}", *products(shape, **how), *layers(shape, names, **how)]
  print(f"\n{jax.devices()[0].device_kind}, jax {jax.__version__}: forward + backward of one layer")
  print("(dense: FLOP/s of the same products in a dense MLP; grouped matmul: one direction alone)")
  print("\n".join(table))


if __name__ == "__main__":
  main()

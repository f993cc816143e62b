"""Matrix products of float8 operands with per-tensor scales taken from the tensors at hand.

The formats of Micikevicius et al. 2022 (arXiv:2209.05433): e4m3 (3 mantissa bits, up to 448) for
activations and weights, e5m2 (2 bits, up to 57344) for gradients. Each tensor is divided by one
power of two, so that scaling rounds nothing: a product differs from the exact one only by the
rounding of its operands to float8.

The dots take float8 operands as they are and one scalar multiplies their result in the result's own
dtype: the form that XLA's GemmRewriter turns into one cuBLASLt call, `__cublas$lt$matmul$f8`, with
the scalar as its scale (a conversion between dot and multiplication would prevent that).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxlm.sharding import Axes, active, like, spec

OPERAND = jnp.float8_e4m3fn
GRADIENT = jnp.float8_e5m2

# cuBLASLt keeps fewer bits of the running sum at DEFAULT, which is faster. The backward products
# sum over far more terms (all tokens), so they take the full ones, as in Transformer Engine.
FORWARD_PRECISION = lax.Precision.DEFAULT
BACKWARD_PRECISION = lax.Precision.HIGHEST

# Keeps the scale of an all-zero tensor, and its inverse, finite.
SMALLEST_AMAX = 2.0**-100


def fp8_einsum(equation: str, x: jax.Array, w: jax.Array, *, out: Axes) -> jax.Array:
  """Like sharding.einsum of activations and a weight, with operands rounded to float8.

  The backward pass rounds the incoming gradient to e5m2 and multiplies it with the rounded operands
  of the forward pass, which are what is kept (a byte an element). The rounding itself counts as
  the identity (straight-through).

  Args:
    equation: such as "BTD,DHK->BTHK": the summed dims are the last of x and the first of w, and
      the result has the other dims of x, then those of w.
    x: (…, D) activations, bfloat16 (or another float dtype).
    w: (D, …) weight, already gathered over the fsdp axis.
    out: logical axes of the result, one a dim.

  Returns:
    The product in the dtype of x. A non-finite element of x or w makes all of it non-finite.

  Raises:
    ValueError: the equation is not of that form.
  """
  return _product(_num_summed(equation), tuple(out), x, w)


def _num_summed(equation: str) -> int:
  left, _, result = equation.replace(" ", "").partition("->")
  x, _, w = left.partition(",")
  summed = "".join(dim for dim in x if dim in w)
  if not summed or not x.endswith(summed) or not w.startswith(summed):
    raise ValueError(f"{equation=}: the summed dims must be the last of x and the first of w")
  if result != x.removesuffix(summed) + w.removeprefix(summed):
    raise ValueError(f"{equation=}: the result must have the other dims of x, then those of w")
  return len(summed)


def _quantise(x: jax.Array, dtype: jax.typing.DTypeLike) -> tuple[jax.Array, jax.Array]:
  """(q, scale) with q * scale close to x: q in the float8 dtype, scale a float32 power of two."""
  largest = float(jnp.finfo(dtype).max)
  amax = jnp.maximum(jnp.max(jnp.abs(x)).astype(jnp.float32), SMALLEST_AMAX)
  # Rounding 1.5 s to no mantissa bits gives a power of two in [s, 2 s]. NaN and infinity stay
  # non-finite here, and reach the result through the scale: a cast to float8 may saturate them.
  scale = lax.reduce_precision(amax * (1.5 / largest), exponent_bits=8, mantissa_bits=0)
  return (x.astype(jnp.float32) * (1 / scale)).astype(dtype), scale


def _dot(
  a: jax.Array,
  b: jax.Array,
  a_dims: range,
  b_dims: range,
  scale: jax.Array,
  *,
  dtype: jax.typing.DTypeLike,
  out_spec: jax.P | None,
  precision: lax.Precision,
) -> jax.Array:
  """The sum over a_dims of a and b_dims of b, times a scalar that is a power of two."""
  y = lax.dot_general(
    a,
    b,
    ((tuple(a_dims), tuple(b_dims)), ((), ())),
    precision=precision,
    preferred_element_type=dtype,
    out_sharding=out_spec,
  )
  return y * scale.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(num_summed: int, out: tuple[str | None, ...], x: jax.Array, w: jax.Array) -> jax.Array:
  return _forward(num_summed, out, x, w)[0]


def _forward(num_summed, out, x, w):
  (x8, x_scale), (w8, w_scale) = _quantise(x, OPERAND), _quantise(w, OPERAND)
  y = _dot(
    x8,
    w8,
    range(x.ndim - num_summed, x.ndim),
    range(num_summed),
    x_scale * w_scale,
    dtype=x.dtype,
    out_spec=spec(out),
    precision=FORWARD_PRECISION,
  )
  # Arrays of no elements carry the dtypes.
  empty = (jnp.zeros(0, x.dtype), jnp.zeros(0, w.dtype))
  return y, (x8, x_scale, w8, w_scale, empty)


def _backward(num_summed, out, residuals, dy):
  x8, x_scale, w8, w_scale, (x_like, w_like) = residuals
  dy8, dy_scale = _quantise(dy, GRADIENT)
  num_rows = x8.ndim - num_summed
  x_spec, w_spec = (None, None) if active() is None else like((x8, w8))
  dx = _dot(
    dy8,
    w8,
    range(num_rows, dy.ndim),
    range(num_summed, w8.ndim),
    dy_scale * w_scale,
    dtype=x_like.dtype,
    out_spec=x_spec,
    precision=BACKWARD_PRECISION,
  )
  dw = _dot(
    x8,
    dy8,
    range(num_rows),
    range(num_rows),
    x_scale * dy_scale,
    dtype=w_like.dtype,
    out_spec=w_spec,
    precision=BACKWARD_PRECISION,
  )
  return dx, dw


_product.defvjp(_forward, _backward)

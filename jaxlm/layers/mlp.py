"""The feed-forward layer. B batch, T position, D embed, F mlp."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlm.kernels.fp8 import fp8_einsum
from jaxlm.layers.config import GATED, Activation, Matmul
from jaxlm.sharding import (
  Initializer,
  constant,
  constrain,
  einsum,
  gather,
  param,
  residual_axes,
)

# Its tanh is computed again in the backward pass: kept, it is as large as the result.
_gelu = jax.checkpoint(partial(jax.nn.gelu, approximate=True))
_gelu_exact = jax.checkpoint(partial(jax.nn.gelu, approximate=False))


class Mlp(nnx.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) for the gated activations."""

  def __init__(
    self,
    *,
    embed_dim: int,
    mlp_dim: int,
    activation: Activation,
    use_bias: bool,
    matmul: Matmul = Matmul.COMPUTE,
    init: Initializer,
    init_out: Initializer,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    D, F = embed_dim, mlp_dim
    self.activation, self.use_bias, self.dtype = activation, use_bias, dtype
    self.gated = activation in GATED

    self.einsum = fp8_einsum if matmul is Matmul.FP8 else einsum

    def make(how: Initializer, shape: tuple[int, ...], *axes: str) -> nnx.Param:
      return param(how, rngs.params(), shape, axes, param_dtype)

    if self.gated:
      self.gate = make(init, (D, F), "embed", "mlp")
    self.up = make(init, (D, F), "embed", "mlp")
    self.down = make(init_out, (F, D), "mlp", "embed")
    if use_bias:
      if self.gated:
        self.gate_bias = make(constant(0.0), (F,), "mlp")
      self.up_bias = make(constant(0.0), (F,), "mlp")
      self.down_bias = make(constant(0.0), (D,), "norm")

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    names = ("gate", "up") if self.gated else ("up",)
    residual = residual_axes(x_BTD.shape[1])
    x_BTD = constrain(x_BTD, "act_batch", "act_seq", "act_embed")
    # Split, not sliced: its transpose joins the two gradients, slices would add padded arrays.
    parts = jnp.split(self._project(x_BTD, names), len(names), axis=2)
    gate_BTF, u_BTF = parts[0].squeeze(2), parts[-1].squeeze(2)
    match self.activation:
      case Activation.SWIGLU:
        h_BTF = jax.nn.silu(gate_BTF) * u_BTF
      case Activation.GEGLU:
        h_BTF = _gelu(gate_BTF) * u_BTF
      case Activation.GEGLU_EXACT:
        h_BTF = _gelu_exact(gate_BTF) * u_BTF
      case Activation.GELU:
        h_BTF = _gelu(u_BTF)
      case Activation.GELU_EXACT:
        h_BTF = _gelu_exact(u_BTF)
      case Activation.RELU2:
        h_BTF = jnp.square(jax.nn.relu(u_BTF))
    down = gather(self.down[...], self.dtype)
    y_BTD = self.einsum("BTF,FD->BTD", h_BTF, down, out=residual)
    if self.use_bias:
      y_BTD += self.down_bias[...].astype(self.dtype)[None, None]
    return checkpoint_name(y_BTD, "mlp")

  def _project(self, x_BTD: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """The P projections of these names in one product, (B, T, P, F)."""

    def join(suffix: str) -> jax.Array:
      parts = [gather(getattr(self, name + suffix)[...], self.dtype) for name in names]
      return jnp.stack(parts, axis=-2)

    axes = ("act_batch", "act_seq", None, "act_mlp")
    y_BTPF = self.einsum("BTD,DPF->BTPF", x_BTD, join(""), out=axes)
    if self.use_bias:
      y_BTPF += join("_bias")[None, None]
    return checkpoint_name(y_BTPF, "mlp")

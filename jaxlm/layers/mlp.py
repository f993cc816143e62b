"""The feed-forward layer. B batch, T position, D embed, F mlp."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlm.layers.config import Activation
from jaxlm.sharding import Initializer, constant, einsum, gather, param

ACT = ("act_batch", "act_seq", "act_mlp")


class Mlp(nnx.Module):
  """down(act(up(x))), or down(act(gate(x)) * up(x)) for the gated activations."""

  def __init__(
    self,
    *,
    embed_dim: int,
    mlp_dim: int,
    activation: Activation,
    use_bias: bool,
    init: Initializer,
    init_out: Initializer,
    dtype: Any,
    param_dtype: Any,
    rngs: nnx.Rngs,
  ):
    D, F = embed_dim, mlp_dim
    self.activation, self.use_bias, self.dtype = activation, use_bias, dtype
    self.gated = activation in (Activation.SWIGLU, Activation.GEGLU)

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
    u_BTF = self._project(x_BTD, "up")
    match self.activation:
      case Activation.SWIGLU:
        h_BTF = jax.nn.silu(self._project(x_BTD, "gate")) * u_BTF
      case Activation.GEGLU:
        h_BTF = jax.nn.gelu(self._project(x_BTD, "gate"), approximate=True) * u_BTF
      case Activation.GELU:
        h_BTF = jax.nn.gelu(u_BTF, approximate=True)
      case Activation.RELU2:
        h_BTF = jnp.square(jax.nn.relu(u_BTF))
    down = gather(self.down[...], self.dtype)
    y_BTD = einsum("BTF,FD->BTD", h_BTF, down, out=("act_batch", "act_seq", "act_embed"))
    if self.use_bias:
      y_BTD += self.down_bias[...].astype(self.dtype)[None, None]
    return checkpoint_name(y_BTD, "mlp")

  def _project(self, x_BTD: jax.Array, name: str) -> jax.Array:
    y_BTF = einsum("BTD,DF->BTF", x_BTD, gather(getattr(self, name)[...], self.dtype), out=ACT)
    if self.use_bias:
      y_BTF += getattr(self, f"{name}_bias")[...].astype(self.dtype)[None, None]
    return checkpoint_name(y_BTF, "mlp")

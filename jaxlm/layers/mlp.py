"""The feed-forward layer. B batch, T position, D embed, F mlp."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxlm.layers.config import Activation
from jaxlm.sharding import Initializer, constant, einsum, gather, param


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
    names = ("gate", "up") if self.gated else ("up",)
    y_BTPF = self._project(x_BTD, names)
    u_BTF = y_BTPF[:, :, -1]
    match self.activation:
      case Activation.SWIGLU:
        h_BTF = jax.nn.silu(y_BTPF[:, :, 0]) * u_BTF
      case Activation.GEGLU:
        h_BTF = jax.nn.gelu(y_BTPF[:, :, 0], approximate=True) * u_BTF
      case Activation.GELU:
        h_BTF = jax.nn.gelu(u_BTF, approximate=True)
      case Activation.RELU2:
        h_BTF = jnp.square(jax.nn.relu(u_BTF))
    down = gather(self.down[...], self.dtype)
    y_BTD = einsum("BTF,FD->BTD", h_BTF, down, out=("act_batch", "act_seq", "act_embed"))
    if self.use_bias:
      y_BTD += self.down_bias[...].astype(self.dtype)[None, None]
    return checkpoint_name(y_BTD, "mlp")

  def _project(self, x_BTD: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """The P projections of these names in one product, (B, T, P, F)."""

    def join(suffix: str) -> jax.Array:
      parts = [gather(getattr(self, name + suffix)[...], self.dtype) for name in names]
      return jnp.stack(parts, axis=-2)

    axes = ("act_batch", "act_seq", None, "act_mlp")
    y_BTPF = einsum("BTD,DPF->BTPF", x_BTD, join(""), out=axes)
    if self.use_bias:
      y_BTPF += join("_bias")[None, None]
    return checkpoint_name(y_BTPF, "mlp")

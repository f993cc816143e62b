"""What decoders and encoders are both made of."""

from flax import nnx

from jaxlm.layers.config import resolve_dtype
from jaxlm.layers.embed import Embed
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.sharding import normal


def table(config: DecoderConfig | EncoderConfig, size: int, axis: str, rngs: nnx.Rngs) -> Embed:
  """A table of `size` vectors, its rows named by the logical axis."""
  return Embed(
    size,
    config.embed_dim,
    axis=axis,
    init=normal(config.init_std),
    dtype=resolve_dtype(config.compute_dtype),
    param_dtype=resolve_dtype(config.param_dtype),
    rngs=rngs,
  )

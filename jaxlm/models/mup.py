"""Maximal-update parametrisation (Yang et al. 2022, arXiv:2203.03466): what is tuned at one width
holds at others (plain data: imports no jax).

With m = a dim over that of the base (table 8 of the paper, for Adam):

  weights            init's std       learning rate   in the forward pass
  embedding, norms,  as at the base   as at the base
  biases
  hidden (fan-in m)  / sqrt(m)        / m
  output table       as at the base   as at the base  logits / m
  attention                                           scores / head_dim, not / sqrt(head_dim)

At the base width nothing differs from a model without it. Weight decay is not divided: its product
with the learning rate is the same at every width.
"""

import dataclasses
import math

from jaxlm.errors import UserError


@dataclasses.dataclass(kw_only=True)
class MupConfig:
  """The base that widths are relative to; see the module.

  Attributes:
    embed_dim: its width.
    mlp_dim, attention_dim (num_heads × head_dim): None: in the same ratio to embed_dim as the
      model's own.
    head_dim: None: the model's own (a wider model has more heads).
  """

  embed_dim: int = 128
  mlp_dim: int | None = None
  attention_dim: int | None = None
  head_dim: int | None = None

  def validate(self, path: str) -> None:
    """Raises UserError for values out of range."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and value < 1:
        raise UserError(f"{path}.{field.name}={value}: must be positive")


@dataclasses.dataclass(frozen=True)
class Mup:
  """Ratios of a model's dims to its base's.

  Attributes:
    embed, attention, mlp: m of weights whose inputs are the residual stream, all heads, the MLP.
    head: m of head_dim.
  """

  embed: float = 1.0
  attention: float = 1.0
  mlp: float = 1.0
  head: float = 1.0

  def std(self, init_std: float, inputs: str) -> float:
    """The std of a hidden weight with these inputs: "embed", "attention" or "mlp"."""
    return init_std / math.sqrt(getattr(self, inputs))

  @property
  def score_factor(self) -> float:
    """What scores / sqrt(head_dim) are multiplied by to be / head_dim, the same at the base."""
    return self.head**-0.5

  @property
  def logits_factor(self) -> float:
    return 1 / self.embed


def ratios(
  mup: MupConfig | None, *, embed_dim: int, attention_dim: int, mlp_dim: int, head_dim: int
) -> Mup:
  """The ratios of a model with these dims; all 1 without a base."""
  if mup is None:
    return Mup()
  m = embed_dim / mup.embed_dim
  return Mup(
    embed=m,
    attention=m if mup.attention_dim is None else attention_dim / mup.attention_dim,
    mlp=m if mup.mlp_dim is None else mlp_dim / mup.mlp_dim,
    head=1.0 if mup.head_dim is None else head_dim / mup.head_dim,
  )

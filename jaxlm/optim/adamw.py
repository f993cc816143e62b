"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): two float32 moments a parameter."""

import dataclasses
from typing import TYPE_CHECKING

from jaxlm.optim.base import OptimizerConfig, OptimizerContext, check_decay_rates, check_positive

if TYPE_CHECKING:
  import optax


@dataclasses.dataclass(kw_only=True)
class AdamWConfig(OptimizerConfig):
  """AdamW; b2 = 0.95 is what language models train with (GPT-3, Llama), not Adam's 0.999."""

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8

  @property
  def elementwise(self) -> bool:
    return True

  def precondition(self, context: OptimizerContext) -> "optax.GradientTransformation":
    """First moment / root of the second, both corrected for their start at 0."""
    import optax

    return optax.scale_by_adam(self.b1, self.b2, self.eps)

  def validate(self, path: str) -> None:
    """Raises UserError for values outside their range."""
    super().validate(path)
    check_decay_rates(self, path, "b1", "b2")
    check_positive(self, path, "eps")

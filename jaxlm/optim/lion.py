"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of a momentum, one moment a parameter."""

import dataclasses
from typing import TYPE_CHECKING

from jaxlm.optim.base import OptimizerConfig, OptimizerContext, check_decay_rates

if TYPE_CHECKING:
  import optax


@dataclasses.dataclass(kw_only=True)
class LionConfig(OptimizerConfig):
  """Lion; wants a learning rate 3 to 10 times below AdamW's and as much more weight decay."""

  peak_lr: float = 1e-4
  weight_decay: float = 0.3
  b1: float = 0.9
  b2: float = 0.99

  @property
  def elementwise(self) -> bool:
    return True

  def precondition(self, context: OptimizerContext) -> "optax.GradientTransformation":
    """sign(b1 * momentum + (1 - b1) * gradient)."""
    import optax

    return optax.scale_by_lion(self.b1, self.b2)

  def validate(self, path: str) -> None:
    """Raises UserError for values outside their range."""
    super().validate(path)
    check_decay_rates(self, path, "b1", "b2")

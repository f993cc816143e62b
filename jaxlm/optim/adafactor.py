"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235): a factored second moment, almost no state."""

import dataclasses
from typing import TYPE_CHECKING

from jaxlm.errors import UserError
from jaxlm.optim.base import OptimizerConfig, OptimizerContext, check_decay_rates, check_positive

if TYPE_CHECKING:
  import optax


@dataclasses.dataclass(kw_only=True)
class AdafactorConfig(OptimizerConfig):
  """Adafactor without first moment.

  optax.adafactor subtracts its weight decay unscaled by the learning rate; here it is scaled, as
  in every optimizer of jaxlm.

  Attributes:
    peak_lr: relative to each parameter's RMS if `scale_by_parameter`, absolute otherwise.
    decay_rate: the second moment's decay at step s is 1 - s ** -decay_rate.
    clipping_threshold: the RMS to which a parameter's update is clipped.
    scale_by_parameter: multiply each update by its parameter's RMS (at least 1e-3).
    min_dim_size_to_factor: arrays whose second largest dim is below this keep a full moment.
  """

  peak_lr: float = 1e-2
  weight_decay: float = 0.0
  decay_rate: float = 0.8
  clipping_threshold: float = 1.0
  scale_by_parameter: bool = True
  min_dim_size_to_factor: int = 128

  def precondition(self, context: OptimizerContext) -> "optax.GradientTransformation":
    """The gradient / root of the factored second moment, clipped, scaled."""
    import optax

    parts = [
      optax.scale_by_factored_rms(
        decay_rate=self.decay_rate, min_dim_size_to_factor=self.min_dim_size_to_factor
      ),
      optax.clip_by_block_rms(self.clipping_threshold),
    ]
    if self.scale_by_parameter:
      parts.append(optax.scale_by_param_block_rms())
    return optax.chain(*parts)

  def validate(self, path: str) -> None:
    """Raises UserError for values outside their range."""
    super().validate(path)
    check_decay_rates(self, path, "decay_rate")
    check_positive(self, path, "clipping_threshold")
    if self.min_dim_size_to_factor < 2:
      raise UserError(f"{path}.min_dim_size_to_factor={self.min_dim_size_to_factor}: at least 2")

"""What all optimizers share: clipping, decoupled weight decay and the schedule.

An optimizer is a subclass with its own numbers and one method, `precondition`. Its update is

  parameters -= learning_rate(step) * (precondition(clip(gradients)) + weight_decay * parameters)

for every one of them, so `weight_decay` means the same everywhere (AdamW's decoupled decay,
Loshchilov & Hutter 2019, multiplied by the learning rate), and never touches what `decay_mask`
leaves out.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxlm.errors import UserError
from jaxlm.optim.schedules import Schedule, ScheduleConfig

if TYPE_CHECKING:  # config modules stay light: optax is imported by build()
  import optax


@dataclasses.dataclass(frozen=True)
class OptimizerContext:
  """What an optimizer must know of the run and the model.

  Attributes:
    num_steps: the length of the schedule.
    decay_mask: tree of bools like the parameters (or a function from parameters to it): True
      where weight decay applies. None: everywhere.
    muon_dims: tree like the parameters with optax.contrib.MuonDimensionNumbers at each matrix that
      Muon may orthogonalise (axes not named are stacked layers) and None at all else. Only
      MuonConfig reads it.
    lr_factors: tree like the parameters: each one's learning rate is the schedule's times this
      (see optim/mup.py). Weight decay is not multiplied. None: 1 everywhere.
  """

  num_steps: int
  decay_mask: Any | Callable[[Any], Any] = None
  muon_dims: Any = None
  lr_factors: Any = None


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
  """Base of all optimizers.

  Attributes:
    peak_lr: the learning rate at the end of the warm-up.
    weight_decay: decoupled; multiplied by the learning rate.
    grad_clip_norm: gradients are scaled down to this global 2-norm; None: no clipping.
    schedule: the learning rate's course.
  """

  peak_lr: float = 3e-4
  weight_decay: float = 0.1
  grad_clip_norm: float | None = 1.0
  schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)

  @property
  def elementwise(self) -> bool:
    """Whether each entry's update has about unit size whatever its array's shape, as µP's learning
    rates for Adam take for granted."""
    return False

  def precondition(self, context: OptimizerContext) -> "optax.GradientTransformation":
    """The optimizer itself: gradients to a descent direction of about unit size."""
    raise TypeError(
      f"{type(self).__name__} is not an optimizer: use AdamWConfig or another subclass"
    )

  def build(self, context: OptimizerContext) -> "optax.GradientTransformation":
    """The whole transformation of gradients into updates (to be *added* to the parameters).

    Gradients and parameters are float32 trees of one structure; `update` needs the parameters.
    """
    import jax
    import optax

    factors = context.lr_factors
    if factors is not None and not self.elementwise:
      raise UserError(
        f"config.model.mup: its learning rates are known for AdamWConfig and LionConfig, not for "
        f"{type(self).__name__}: use one of them, or set config.model.mup to none"
      )
    clip = self.grad_clip_norm
    parts = [
      # A place of its own in the chain in any case: a run may go on without clipping.
      optax.identity() if clip is None else optax.clip_by_global_norm(clip),
      self.precondition(context),
      *(
        []
        if factors is None
        else [
          optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
        ]
      ),
      optax.add_decayed_weights(self.weight_decay, context.decay_mask),
      optax.scale_by_learning_rate(self.learning_rate(context.num_steps)),
    ]
    return optax.chain(*parts)

  def learning_rate(self, num_steps: int) -> Schedule:
    """The function from step (from 0) to learning rate that `build` uses."""
    return self.schedule.build(self.peak_lr, num_steps)

  def validate(self, path: str) -> None:
    """Raises UserError for values outside their range."""
    check_positive(self, path, "peak_lr")
    if not 0 <= self.weight_decay < math.inf:  # NaN is not either
      raise UserError(f"{path}.weight_decay={self.weight_decay}: must be a number, not negative")
    if self.grad_clip_norm is not None and not self.grad_clip_norm > 0:
      raise UserError(
        f"{path}.grad_clip_norm={self.grad_clip_norm}: must be above 0, or none for no clipping"
      )
    self.schedule.validate(f"{path}.schedule")


def check_decay_rates(config: OptimizerConfig, path: str, *names: str) -> None:
  """Raises UserError unless each named field lies in [0, 1)."""
  for name in names:
    value = getattr(config, name)
    if not 0 <= value < 1:
      raise UserError(f"{path}.{name}={value}: must be at least 0 and below 1")


def check_positive(config: OptimizerConfig, path: str, *names: str) -> None:
  """Raises UserError unless each named field is above 0."""
  for name in names:
    value = getattr(config, name)
    if not 0 < value < math.inf:
      raise UserError(f"{path}.{name}={value}: must be a number above 0")

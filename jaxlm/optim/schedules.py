"""Learning-rate schedules in closed form: a warm-up, then one of five shapes.

With w = max(warmup_steps, 1) and n = num_steps, step 0 has peak_lr / w (never 0: a step with a
learning rate of 0 is wasted), step w - 1 has peak_lr, and step n - 1, the last one, has the final
value. Between them, with t = (step - (w - 1)) / (n - w) from 0 to 1 and f = final_fraction:

  COSINE        peak_lr * (f + (1 - f) * (1 + cos(pi t)) / 2)           Loshchilov & Hutter 2017
  LINEAR        peak_lr * (f + (1 - f) * (1 - t))                       Defazio et al. 2023
  WSD           peak_lr, then over the last d = decay_fraction * n steps
                peak_lr * (f + (1 - f) * (1 - sqrt(s))), s from 0 to 1  Hu et al. 2024; 1 - sqrt:
                                                                        Hägele et al. 2024
  INVERSE_SQRT  peak_lr * sqrt(w / (step + 1)); knows no end            Vaswani et al. 2017
  CONSTANT      peak_lr; knows no end
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from jaxlm.errors import UserError

Schedule = Callable[[Any], Any]


class ScheduleKind(enum.Enum):
  """The shape after the warm-up; see the module docstring."""

  COSINE = "cosine"
  LINEAR = "linear"
  WSD = "wsd"
  INVERSE_SQRT = "inverse_sqrt"
  CONSTANT = "constant"


@dataclasses.dataclass(kw_only=True)
class ScheduleConfig:
  """How the learning rate moves.

  Attributes:
    kind: the shape.
    warmup_steps: steps of linear warm-up; the last of them has the peak.
    final_fraction: the last step's learning rate / peak_lr (COSINE, LINEAR, WSD).
    decay_fraction: the part of all steps in which WSD decays.
  """

  kind: ScheduleKind = ScheduleKind.COSINE
  warmup_steps: int = 100
  final_fraction: float = 0.1
  decay_fraction: float = 0.2

  def validate(self, path: str) -> None:
    """Raises UserError for values outside their range."""
    if self.warmup_steps < 0:
      raise UserError(f"{path}.warmup_steps={self.warmup_steps}: must not be negative")
    if not 0 <= self.final_fraction <= 1:
      raise UserError(f"{path}.final_fraction={self.final_fraction}: must be from 0 to 1")
    if not 0 < self.decay_fraction <= 1:
      raise UserError(f"{path}.decay_fraction={self.decay_fraction}: must be above 0, at most 1")

  def validate_length(self, num_steps: int, path: str) -> None:
    """Raises UserError if the warm-up (and WSD's decay) do not fit into `num_steps`."""
    if self.kind in (ScheduleKind.INVERSE_SQRT, ScheduleKind.CONSTANT):
      return
    warmup = max(self.warmup_steps, 1)
    if self.warmup_steps >= num_steps > 1:
      raise UserError(
        f"{path}.warmup_steps={self.warmup_steps}: must be below num_steps={num_steps}"
      )
    if self.kind is ScheduleKind.WSD and warmup + self.decay_steps(num_steps) > num_steps:
      raise UserError(
        f"{path}.decay_fraction={self.decay_fraction}: warm-up and decay are longer than"
        f" num_steps={num_steps}; lower it or warmup_steps"
      )

  def decay_steps(self, num_steps: int) -> int:
    """The number of steps in which WSD decays (at least 1)."""
    return max(round(self.decay_fraction * num_steps), 1)

  def build(self, peak_lr: float, num_steps: int, path: str = "optim.schedule") -> Schedule:
    """The schedule: step (int or int32 array, from 0) to learning rate (float32 of its shape).

    It may be called inside jit. After the last step the final value stays.
    """
    self.validate_length(num_steps, path)
    import jax.numpy as jnp

    warmup, final = max(self.warmup_steps, 1), self.final_fraction

    def progress(step: Any, last_at_peak: int, length: int) -> Any:
      return jnp.clip((step - last_at_peak) / max(length, 1), 0.0, 1.0)

    def after_warmup(step: Any) -> Any:
      t = progress(step, warmup - 1, num_steps - warmup)
      match self.kind:
        case ScheduleKind.COSINE:
          return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * t))
        case ScheduleKind.LINEAR:
          return final + (1 - final) * (1 - t)
        case ScheduleKind.WSD:
          decay = self.decay_steps(num_steps)
          s = progress(step, num_steps - decay - 1, decay)
          return final + (1 - final) * (1 - jnp.sqrt(s))
        case ScheduleKind.INVERSE_SQRT:
          return jnp.sqrt(warmup / jnp.maximum(step + 1, warmup))
        case ScheduleKind.CONSTANT:
          return jnp.ones_like(t)

    def schedule(step: Any) -> Any:
      # Steps of 2^24 and more lose their last bits in float32: less than 1e-7 of the progress.
      step = jnp.asarray(step, jnp.float32)
      factor = jnp.where(step < warmup, (step + 1) / warmup, after_warmup(step))
      return jnp.asarray(peak_lr * factor, jnp.float32)

    return schedule

"""Settings of training: objective, checkpoints, evaluation (plain data: imports no jax)."""

import dataclasses
import math

from jaxlm.errors import UserError


@dataclasses.dataclass(kw_only=True)
class ObjectiveConfig:
  """Cross-entropy of the targets: of each next token, or of what config.data.task asks for.

  Attributes:
    z_loss: weight of the mean of log(Z)^2 (PaLM, arXiv:2204.02311, uses 1e-4).
    label_smoothing: the share of each target spread evenly over the vocabulary.
    load_balance: weight of the mean over layers of E Σ f p, which evens out the experts' loads
      (Switch, arXiv:2101.03961, uses 0.01); of models with experts alone.
    router_z_loss: weight of the mean squared logsumexp of the routers' logits (ST-MoE,
      arXiv:2202.08906, uses 0.001).
    loss_chunks: the logits of a step are made in so many parts, one after another: less memory for
      large vocabularies. 1 is fastest. Must divide the sequence length.
  """

  z_loss: float = 0.0
  label_smoothing: float = 0.0
  load_balance: float = 0.01
  router_z_loss: float = 0.001
  loss_chunks: int = 1

  def validate(self, path: str) -> None:
    """Raises UserError for values out of range."""
    for name in ("z_loss", "load_balance", "router_z_loss"):
      if not 0 <= getattr(self, name) < math.inf:  # NaN is not either
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be a number, not negative")
    if not 0 <= self.label_smoothing < 1:
      raise UserError(
        f"{path}.label_smoothing={self.label_smoothing}: must be at least 0 and less than 1"
      )
    if self.loss_chunks < 1:
      raise UserError(f"{path}.loss_chunks={self.loss_chunks}: must be at least 1")


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig:
  """When to save, what to keep, and when to give up.

  Attributes:
    every_steps: a checkpoint each so many steps, and one at the end. 0: only at the end.
    keep_last: the newest so many are kept.
    keep_every: those whose step is a multiple are kept for good. 0: none.
    max_skipped_steps: a step whose loss or gradient is not finite changes no weight and no moment;
      after more than so many in a row the run ends. 0: it ends at the first one, before anything
      of it is saved, and the step needs no copies for the choice.
  """

  every_steps: int = 1000
  keep_last: int = 2
  keep_every: int = 0
  max_skipped_steps: int = 0

  def validate(self, path: str) -> None:
    """Raises UserError for values out of range."""
    if self.every_steps < 0:
      raise UserError(f"{path}.every_steps={self.every_steps}: must not be negative")
    if self.keep_last < 1:
      raise UserError(f"{path}.keep_last={self.keep_last}: must be at least 1")
    for name in ("keep_every", "max_skipped_steps"):
      if getattr(self, name) < 0:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must not be negative")


@dataclasses.dataclass(kw_only=True)
class EvalConfig:
  """Loss on held-out text.

  Attributes:
    path: the dataset whose held-out split is scored; None: that of the first token-shard source.
    split: the split's name.
    every_steps: during training, each so many steps. 0: only after it, by `jaxlm evaluate`.
    batch_size: sequences a batch; None: the run's global batch size.
    max_rows: score only the first so many rows; None: all.
  """

  path: str | None = None
  split: str = "heldout"
  every_steps: int = 0
  batch_size: int | None = None
  max_rows: int | None = None

  def validate(self, path: str) -> None:
    """Raises UserError for values out of range."""
    if self.every_steps < 0:
      raise UserError(f"{path}.every_steps={self.every_steps}: must not be negative")
    for name in ("batch_size", "max_rows"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise UserError(f"{path}.{name}={value}: must be at least 1")

"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) on matrices, AdamW on the rest."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from jaxlm.errors import UserError
from jaxlm.optim.base import OptimizerConfig, OptimizerContext, check_decay_rates, check_positive

if TYPE_CHECKING:
  import optax


@dataclasses.dataclass(kw_only=True)
class MuonConfig(OptimizerConfig):
  """Muon: the momentum of each matrix is replaced by the nearest orthogonal matrix.

  Embeddings, the head, scales and biases (None in `OptimizerContext.muon_dims`) follow AdamW.
  Muon's updates are scaled to `update_rms` = 0.2, the RMS of AdamW's, so that one peak_lr and one
  weight_decay serve both (Liu et al. 2025, arXiv:2502.16982).

  Attributes:
    momentum: the decay of the momentum, with Nesterov's correction.
    newton_schulz_steps: iterations of the orthogonalisation.
    update_rms: the RMS of a matrix's update before the learning rate.
    b1, b2, eps: of AdamW.
  """

  momentum: float = 0.95
  newton_schulz_steps: int = 5
  update_rms: float = 0.2
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8

  def precondition(self, context: OptimizerContext) -> "optax.GradientTransformation":
    """Newton-Schulz of the momentum for matrices, scale_by_adam for the rest.

    optax.contrib.muon is not used whole: its AdamW part knows no decay mask.
    """
    import jax
    import optax

    assert context.muon_dims is not None, "Muon needs OptimizerContext.muon_dims"

    def is_dims(x: Any) -> bool:
      return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)

    def map_dims(f: Any) -> Any:
      return jax.tree.map(f, context.muon_dims, is_leaf=is_dims)

    # optax.partition puts MaskedNode where the other optimizer's parameters are; so must the dims.
    dims = map_dims(lambda d: optax.MaskedNode() if d is None else d)
    matrices = optax.chain(
      optax.contrib.scale_by_muon(
        ns_steps=self.newton_schulz_steps,
        beta=self.momentum,
        eps=self.eps,
        weight_dimension_numbers=dims,
      ),
      _scale_to_rms(self.update_rms, dims),
    )
    return optax.partition(
      {"muon": matrices, "adamw": optax.scale_by_adam(self.b1, self.b2, self.eps)},
      map_dims(lambda d: "adamw" if d is None else "muon"),
    )

  def validate(self, path: str) -> None:
    """Raises UserError for values outside their range."""
    super().validate(path)
    check_decay_rates(self, path, "momentum", "b1", "b2")
    check_positive(self, path, "update_rms", "eps")
    if self.newton_schulz_steps < 1:
      raise UserError(f"{path}.newton_schulz_steps={self.newton_schulz_steps}: must be at least 1")


def _scale_to_rms(rms: float, dims: Any) -> "optax.GradientTransformation":
  """An orthogonal (m, n) matrix has RMS 1 / sqrt(max(m, n)): brings it to `rms`."""
  import jax
  import optax

  def scale(update: Any, dim: Any) -> Any:
    def size(axes: int | tuple[int, ...]) -> int:
      axes = (axes,) if isinstance(axes, int) else axes
      return math.prod(update.shape[axis] for axis in axes)

    return update * (rms * math.sqrt(max(size(dim.reduction_axis), size(dim.output_axis))))

  return optax.stateless(lambda updates, _: jax.tree.map(scale, updates, dims))

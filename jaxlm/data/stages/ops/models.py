"""Ops that ask a model: a quality classifier, and perplexity."""

import dataclasses
import typing

from jaxlm.data.stages.ops import run_model
from jaxlm.data.stages.ops.base import Action, OpConfig, OpContext, need_range, need_share
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp

_HELPER = "python -m jaxlm.data.stages.quality"


@dataclasses.dataclass(kw_only=True)
class QualityConfig(OpConfig):
  """A fastText classifier of good and bad text; metadata quality_score is the probability of good.

  `python -m jaxlm.data.stages.quality train` makes one of the user's samples; the recipe is that of
  DCLM (Li et al. 2024, arXiv:2406.11794), which kept the tenth of best score.

  Attributes:
    model: the file. label: its label for good text.
    threshold: lower scores are dropped; of DROP only.
    characters: of the beginning of a document that are looked at; None: all.
    action: DROP, or TAG for the score alone.
  """

  model: str = ""
  label: str = "good"
  threshold: float = 0.5
  characters: int | None = None
  action: Action = Action.DROP

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import models_steps

    return models_steps.Quality(context, self)

  def files(self) -> tuple[str, ...]:
    return (self.model,) if self.model else ()

  def validate(self, path: str) -> None:
    if not self.model:
      raise UserError(f"{path}.model='': name a fastText model; `{_HELPER} train` makes one")
    super().validate(path)
    need_share(path, threshold=self.threshold)


@dataclasses.dataclass(kw_only=True)
class PerplexityConfig(OpConfig):
  """How far a document is from the text a language model was made of; metadata perplexity.

  A jaxlm run and the n-gram model of `python -m jaxlm.data.stages.quality train-ngram` give it per
  byte (2 to the bits per byte), KenLM (.arpa, .binary, .klm; needs the package kenlm) per word.
  Compare within one model alone.

  Attributes:
    model: the file, or the directory of a run, which each task opens in a process of its own; see
      jaxlm/score_documents.py for texts longer than its context.
    step: of a run, the checkpoint; None: the newest.
    device: of a run, what JAX_PLATFORMS is for that process.
    minimum, maximum: what lies outside is dropped; None: no bound. Very low perplexity is
      boilerplate, very high is noise.
    cuts: metadata perplexity_bucket is how many of them a document reaches: 0 is the head, as in
      CCNet (Wenzek et al. 2020, arXiv:1911.00359), whose cuts were the quantiles 1/3 and 2/3.
    characters: of the beginning of a document that are scored.
  """

  model: str = ""
  step: int | None = None
  device: str = "cpu"
  minimum: float | None = None
  maximum: float | None = None
  cuts: tuple[float, ...] = ()
  characters: int = 20_000

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import models_steps

    return models_steps.Perplexity(context, self)

  def files(self) -> tuple[str, ...]:
    if self.model and run_model.is_run(self.model):
      return run_model.files(self.model, self.step)
    return (self.model,) if self.model else ()

  def validate(self, path: str) -> None:
    if not self.model:
      raise UserError(
        f"{path}.model='': name a run or a model; `{_HELPER} train-ngram` makes a small one"
      )
    try:
      super().validate(path)
    except UserError as error:
      said = str(error)
      raise error if said.startswith(path) else UserError(f"{path}.model: {said}") from None
    if not self.device:
      raise UserError(f"{path}.device='': name a platform of JAX, e.g. cpu or cuda")
    need_range(path, ("minimum", self.minimum), ("maximum", self.maximum))
    if self.characters < 1:
      raise UserError(f"{path}.characters={self.characters}: must be at least 1")
    if list(self.cuts) != sorted(self.cuts):
      raise UserError(f"{path}.cuts={self.cuts}: must rise")

"""The op for harmful content: tags by default, since lists and classifiers remove too much."""

import dataclasses
import typing

from jaxlm.data.stages.ops.base import Action, OpConfig, OpContext, need_share
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp


@dataclasses.dataclass(kw_only=True)
class HarmConfig(OpConfig):
  """Word lists and a classifier; metadata harm_words (hits) and harm_score (probability).

  Word lists take the speech of minorities for harm (Dodge et al. 2021, arXiv:2104.08758), so that
  stage.json holds the share flagged by language and domain in `harm`, whatever the action.

  Attributes:
    word_lists: files of one word or phrase a line, or a JSON list. One that is named by a language
      (en.txt, de.json) is for documents of that metadata language, and of none; others for all.
    min_words: so many hits flag a document; 1 is C4's rule.
    model: a fastText classifier. label: its label for harm. min_score: flags from here.
    characters: of the beginning of a document that the classifier looks at.
    action: TAG, or DROP what is flagged.
  """

  word_lists: tuple[str, ...] = ()
  min_words: int = 1
  model: str = ""
  label: str = "harm"
  min_score: float = 0.5
  characters: int = 20_000
  action: Action = Action.TAG

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import harm_steps

    return harm_steps.Harm(context, self)

  def files(self) -> tuple[str, ...]:
    return (*self.word_lists, *((self.model,) if self.model else ()))

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.files():
      raise UserError(f"{path}: set word_lists or model, or enabled=False")
    need_share(path, min_score=self.min_score)
    if self.min_words < 1:
      raise UserError(f"{path}.min_words={self.min_words}: must be at least 1")

"""Ops on where a document comes from and what language it is in."""

import dataclasses
import os
import typing
from pathlib import Path

from jaxlm.data.stages.ops.base import OpConfig, OpContext, need_share
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp

LID_VARIABLE = "JAXLM_LID_MODEL"


@dataclasses.dataclass(kw_only=True)
class UrlFilterConfig(OpConfig):
  """Drops documents of listed addresses (datatrove's URLFilter); documents without url pass.

  Attributes:
    integrated: datatrove's lists (4.6 million domains, mostly of adult content): 760 MB and some
      seconds a task, so few and large tasks.
    domains, urls: files of more of them, one a line. A line that begins with # is a comment.
    banned_words, banned_subwords, soft_banned_words: files of words of an address; one of the first
      drops it, one of the second also inside a word, soft_word_threshold of the third together.
  """

  integrated: bool = True
  domains: tuple[str, ...] = ()
  urls: tuple[str, ...] = ()
  banned_words: tuple[str, ...] = ()
  banned_subwords: tuple[str, ...] = ()
  soft_banned_words: tuple[str, ...] = ()
  soft_word_threshold: int = 2

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import url_steps

    return url_steps.UrlOp(context, self)

  def files(self) -> tuple[str, ...]:
    return (
      *self.domains,
      *self.urls,
      *self.banned_words,
      *self.banned_subwords,
      *self.soft_banned_words,
    )

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.integrated and not self.files():
      raise UserError(f"{path}: no list: set integrated=True, or name files, or enabled=False")


@dataclasses.dataclass(kw_only=True)
class LanguageConfig(OpConfig):
  """Language by fastText's lid.176: metadata language and language_score; drops the others.

  Attributes:
    model: lid.176.ftz (0.9 MB) or .bin (126 MB). "": where $JAXLM_LID_MODEL says.
    languages: those kept, by their codes ("en", "de"); (): all, and their score alone decides.
    threshold: what a document's score must be above. 0.65 is FineWeb's and RefinedWeb's.
    characters: of the beginning of a document that are looked at; None: all.
    label_only: nothing is dropped.
  """

  skip: tuple[str, ...] = ("code",)
  model: str = ""
  languages: tuple[str, ...] = ("en",)
  threshold: float = 0.65
  characters: int | None = None
  label_only: bool = False

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import language_steps

    return language_steps.LanguageOp(context, self, self.path())

  def path(self) -> str:
    """The model's file, "" where none is named."""
    return self.model or os.environ.get(LID_VARIABLE, "")

  def files(self) -> tuple[str, ...]:
    return (self.path(),) if self.path() else ()

  def validate(self, path: str) -> None:
    remedy = (
      f"set {path}.model or ${LID_VARIABLE} to lid.176.ftz; "
      "`python -m jaxlm.data.stages.quality fetch-lid --out=lid.176.ftz` fetches it"
    )
    if not self.path():
      raise UserError(f"{path}.model='': language identification needs a model: {remedy}")
    if not Path(self.path()).expanduser().is_file():
      raise UserError(f"{path}.model: {self.path()}: no such file; {remedy}")
    need_share(path, threshold=self.threshold)
    if self.characters is not None and self.characters < 1:
      raise UserError(f"{path}.characters={self.characters}: must be at least 1, or None for all")

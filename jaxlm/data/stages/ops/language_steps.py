"""Language identification by datatrove's filter, with a model from a file."""

from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.language_filter import LanguageFilter
from datatrove.utils.lid import FT176LID

from jaxlm.data.stages.ops.base import OpContext
from jaxlm.data.stages.ops.origin import LanguageConfig
from jaxlm.data.stages.ops.steps import Op, load_fasttext
from jaxlm.data.stages.stage_io import Count

LANGUAGE = "language:"  # in Count.extra: the documents of each language that were seen


class LocalLID(FT176LID):
  """datatrove's lid.176 from a file: its own is fetched from the network."""

  def __init__(self, path: str, languages: list[str] | None):
    super().__init__(languages)
    self.path = path
    self._model: Any = None

  @property
  def model(self) -> Any:
    if self._model is None:
      self._model = load_fasttext(self.path)
    return self._model


class LanguageOp(Op):
  """Writes metadata language and language_score, and drops what is not wanted."""

  def __init__(self, context: OpContext, config: LanguageConfig, path: str):
    super().__init__(context)
    self.languages = list(config.languages) or None
    self.threshold = config.threshold
    self.characters = config.characters
    self.filter = LanguageFilter(self.languages, config.threshold, label_only=config.label_only)
    self.filter.model = LocalLID(path, self.languages)

  def start(self) -> None:
    _ = self.filter.model.model  # a file that is no model stops the stage here

  def end(self, rank: int) -> None:
    self.filter.model._model = None

  def judge(self, document: Document, count: Count) -> str | None:
    # Only the beginning goes to the filter, whose verdict is on all that it is given.
    part = Document(text=document.text[: self.characters], id=document.id)
    keep = self.filter.filter(part)
    language, score = part.metadata["language"], min(part.metadata["language_score"], 1.0)
    document.metadata["language"] = language
    document.metadata["language_score"] = round(score, 4)
    count.extra[f"{LANGUAGE}{language}"] += 1
    if keep:
      return None
    wanted = self.languages is None or language in self.languages
    return "low_score" if wanted else "language"

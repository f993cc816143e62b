"""A fastText classifier and perplexity; in the process of the task, but for a jaxlm run."""

import dataclasses
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datatrove.data import Document

from jaxlm.data.stages.ops import run_model
from jaxlm.data.stages.ops.base import Action, OpContext
from jaxlm.data.stages.ops.models import PerplexityConfig, QualityConfig
from jaxlm.data.stages.ops.steps import Cached, Op, label_score, load_fasttext, one_line
from jaxlm.data.stages.stage_io import Count
from jaxlm.errors import UserError

KENLM = (".arpa", ".binary", ".klm", ".bin")


class Quality(Op):
  """Scores, and drops what lies below the threshold."""

  def __init__(self, context: OpContext, config: QualityConfig):
    super().__init__(context)
    self.config = config

    self._model: Any = None

  def start(self) -> None:
    self._model = load_fasttext(self.config.model)
    label_score(self._model, "a", self.config.label)

  def end(self, rank: int) -> None:
    self._model = None

  def judge(self, document: Document, count: Count) -> str | None:
    config = self.config
    line = one_line(document.text, config.characters)
    score = label_score(self._model, line, config.label)
    document.metadata["quality_score"] = round(score, 4)
    count.extra[f"score_{int(min(score, 0.999) * 10) / 10:.1f}"] += 1  # a histogram of tenths
    if config.action is Action.DROP and score < config.threshold:
      return "low_quality_score"
    return None


def _kenlm(path: str) -> Any:
  try:
    import kenlm
  except ImportError:
    raise UserError(
      f"{path}: a KenLM model, but kenlm is not installed: pip install kenlm, or train a model of "
      "bytes with `python -m jaxlm.data.stages.quality train-ngram`"
    ) from None
  try:
    return kenlm.Model(str(Path(path).expanduser()))
  except OSError as error:
    raise UserError(f"{path}: no KenLM model ({error})") from None


def scorer(path: str) -> Callable[[str], float]:
  """Perplexity of a text by the model of that file."""
  if path.endswith(KENLM):
    model = _kenlm(path)
    return lambda text: float(model.perplexity(" ".join(text.split())))
  return _load_ngram(path, files=(path,)).perplexity


@Cached
def _load_ngram(path: str) -> Any:
  from jaxlm.data.stages.ops import ngram

  return ngram.NgramModel.load(path)


class Perplexity(Op):
  """Perplexity into the metadata; bounds and buckets."""

  def __init__(self, context: OpContext, config: PerplexityConfig):
    super().__init__(context)
    if run_model.is_run(config.model):
      # All tasks, whenever they begin, use one checkpoint, though the run may still be trained.
      config = dataclasses.replace(config, step=run_model.newest(config.model, config.step))
    self.config = config

    self._scorer: Callable[[str], float] | None = None
    self._run: run_model.RunScorer | None = None

  def start(self) -> None:
    config = self.config
    if run_model.is_run(config.model):
      self._run = run_model.RunScorer(config.model, config.step, config.device)
    else:
      self._scorer = scorer(config.model)

  def end(self, rank: int) -> None:
    self._scorer = None
    if self._run is not None:
      self._run.close()
      self._run = None

  def perplexity(self, text: str) -> float:
    """Of the beginning of a text."""
    head = text[: self.config.characters]
    if self._run is not None:
      return float(2 ** min(self._run.bits_per_byte(head, len(head) == len(text)), 1000.0))
    assert self._scorer is not None
    return self._scorer(head)

  def judge(self, document: Document, count: Count) -> str | None:
    config = self.config
    if not document.text.strip():
      return "empty"
    value = round(self.perplexity(document.text), 4)
    document.metadata["perplexity"] = value
    if config.cuts:
      bucket = bisect_right(config.cuts, value)
      document.metadata["perplexity_bucket"] = bucket
      count.extra[f"bucket_{bucket}"] += 1
    if config.minimum is not None and value < config.minimum:
      return "low_perplexity"
    if config.maximum is not None and value > config.maximum:
      return "high_perplexity"
    return None

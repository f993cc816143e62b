"""What the datatrove steps of all ops share."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datatrove.data import Document

from jaxlm.data.stages.minhash import PlainTokenizer
from jaxlm.data.stages.ops.base import OpContext, Words
from jaxlm.data.stages.stage_io import Count, CountedOp
from jaxlm.errors import UserError

NEAR = 0.05  # of a threshold: documents that close to it are marked


class Op(CountedOp):
  """An op of the stage clean. An exception on a document makes it an errored one."""

  counts_errors = True

  def __init__(self, context: OpContext):
    super().__init__(context.name, context.counts, context.removed / context.name)
    self.only, self.skip = frozenset(context.only), frozenset(context.skip)

  def _judge(self, document: Document, count: Count) -> tuple[str | None, str]:
    if self.only or self.skip:
      kind = document.metadata.get("format")
      if kind in self.skip or (self.only and kind not in self.only):
        count.extra["passed_by"] += 1
        return None, ""
    return super()._judge(document, count)

  def mark(self, document: Document, reason: str, value: float, limit: float | None) -> None:
    """Puts the value into the metadata where it lies near the limit, for the report's examples.

    Both sides of a threshold must have the same field: metadata near_<op>_<reason>.
    """
    if limit is not None and abs(value - limit) <= NEAR * abs(limit):
      document.metadata[f"near_{self.op}_{reason}"] = round(float(value), 6)


class Filtered(Op):
  """One of datatrove's filters; the first word of its reason is the reason."""

  def __init__(self, context: OpContext, chosen: Any):
    super().__init__(context)
    self.filter = chosen

  def judge(self, document: Document, count: Count) -> str | None:
    if not document.text.strip():
      return "empty"  # a division by zero in some filters
    result = self.filter.filter(document)
    if isinstance(result, tuple):
      keep, reason = result
      return None if keep else str(reason)
    return None if result else "dropped"


def word_tokenizer(words: Words) -> Any:
  """What datatrove's filters take as `language`.

  Their limits (words of a document, letters of a word) are for languages with spaces: ideographs
  alone would all be words too short.
  """
  return PlainTokenizer() if words is Words.REGEX else "eng_Latn"


class Cached:
  """What is loaded from files once a process, for as long as these do not change.

  Steps ask for it at the start of a task and let go at its end: they must stay picklable.
  """

  def __init__(self, load: Callable[..., Any]):
    self._load = functools.lru_cache(maxsize=8)(lambda states, arguments: load(*arguments))
    functools.update_wrapper(self, load)

  def __call__(self, *arguments: Any, files: Iterable[str]) -> Any:
    states = []
    for file in files:
      try:
        stat = Path(file).expanduser().stat()
      except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
      states.append((file, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return self._load(tuple(states), arguments)


def load_fasttext(path: str) -> Any:
  """A fastText model. Raises UserError where the file is none."""
  return _load_fasttext(path, files=(path,))


@Cached
def _load_fasttext(path: str) -> Any:
  try:
    from fasttext.FastText import _FastText
  except ImportError:
    raise UserError("fasttext is not installed: pip install 'jaxlm[data]'") from None
  try:
    return _FastText(str(Path(path).expanduser()))
  except (ValueError, RuntimeError, MemoryError) as error:
    raise UserError(f"{path}: no fastText model ({error}); give another file") from None


def label_score(model: Any, line: str, label: str) -> float:
  """The probability of one label; UserError where the model has no such label."""
  wanted = f"__label__{label}"
  labels, scores = model.predict(line, k=-1)
  for name, score in zip(labels, scores, strict=True):
    if name == wanted:
      return min(float(score), 1.0)  # fastText's softmax goes to 1.00001
  if wanted not in model.get_labels():
    known = ", ".join(one.removeprefix("__label__") for one in model.get_labels()[:8])
    raise UserError(f"the fastText model has no label {label!r}, but {known}; set its label")
  return 0.0


def one_line(text: str, characters: int | None) -> str:
  """The beginning of a text as fastText takes it; lower case, as the trainer writes it."""
  return " ".join(text[:characters].lower().split())

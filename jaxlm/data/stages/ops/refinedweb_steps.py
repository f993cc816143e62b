"""RefinedWeb's corrections of lines."""

import re

from datatrove.data import Document

from jaxlm.data.stages.ops.base import OpContext
from jaxlm.data.stages.ops.heuristics import RefinedWebLinesConfig
from jaxlm.data.stages.ops.steps import Op
from jaxlm.data.stages.stage_io import Count

_COUNTER = re.compile(
  r"\W*\d[\d,.]*\s*[kmb]?\s*(?:likes?|shares?|comments?|retweets?|reposts?|upvotes?|downvotes?|"
  r"downloads?|views?|followers?|replies|reply)\W*",
  re.IGNORECASE,
)
_NUMBER = re.compile(r"[\d\s]+")
_SIGN_IN = re.compile(r"^\s*sign[- ]in\b", re.IGNORECASE)
_READ_MORE = re.compile(r"\bread more\s*(?:\.\.\.|…)\s*$", re.IGNORECASE)
_IN_CART = re.compile(r"\bitems in cart\b", re.IGNORECASE)
_GAPS = re.compile(r"\n{3,}")


class RefinedWebLines(Op):
  """Cuts lines that are no sentences; drops documents that lose too many words by it."""

  def __init__(self, context: OpContext, config: RefinedWebLinesConfig):
    super().__init__(context)
    self.config = config

  def judge(self, document: Document, count: Count) -> str | None:
    kept: list[str] = []
    before = after = removed = 0
    for line in document.text.split("\n"):
      words = len(line.split())
      before += words
      left = self.correct(line, words) if words else ""
      if left is None:
        removed += 1
        continue
      kept.append(left)
      after += words if left == line else len(left.split())
    if not after:
      return "no_lines_left"
    share = 1 - after / before
    self.mark(document, "removed_words", share, self.config.max_removed_words)
    if share > self.config.max_removed_words:
      return "removed_words"
    document.text = _GAPS.sub("\n\n", "\n".join(kept)).strip()
    count.extra["lines_removed"] += removed
    return None

  def correct(self, line: str, words: int) -> str | None:
    """The line without leftovers, or None where all of it goes."""
    if words < 2 or _NUMBER.fullmatch(line) or _COUNTER.fullmatch(line):
      return None
    if sum(map(str.isupper, line)) > self.config.max_uppercase * len(line):
      return None
    if words <= self.config.max_navigation_words:
      for pattern in (_IN_CART, _READ_MORE, _SIGN_IN):
        line = pattern.sub("", line)
      if not line.strip():
        return None
    return line

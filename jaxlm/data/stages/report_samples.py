"""Documents as the report shows them, and those at the ends of a range."""

import heapq
import math
from collections.abc import Iterator
from typing import Any

from jaxlm.data.stages.card_limits import EXAMPLES
from jaxlm.data.stages.chain import clip, reason_of

Json = dict[str, Any]


class Ends:
  """The documents with the lowest and the highest values of a stream."""

  def __init__(self) -> None:
    self.count = 0
    self.lowest, self.highest = math.inf, -math.inf
    self._low: list[tuple[float, int, Json]] = []
    self._high: list[tuple[float, int, Json]] = []

  def add(self, value: float, document: Json) -> None:
    self.count += 1
    self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
    for heap, key in ((self._low, -value), (self._high, value)):
      rank = (key, -self.count)  # of equal values, those met first stay
      if len(heap) < EXAMPLES:
        heapq.heappush(heap, (*rank, shown_document(document)))
      elif rank > heap[0][:2]:
        heapq.heapreplace(heap, (*rank, shown_document(document)))

  def bottom(self) -> list[tuple[float, Json]]:
    return [(-key, d) for key, _, d in sorted(self._low, key=lambda e: e[:2], reverse=True)]

  def top(self) -> list[tuple[float, Json]]:
    return [(key, d) for key, _, d in sorted(self._high, key=lambda e: e[:2], reverse=True)]


def shown_document(document: Json) -> Json:
  metadata = document.get("metadata") or {}
  return {
    "id": str(document.get("id", "")),
    "url": str(metadata.get("url") or ""),
    "reason": reason_of(document, "–"),
    "text": clip(document.get("text", "")),
    "characters": len(document.get("text", "")),
    "numbers": dict(numbers(document)),
  }


def numbers(document: Json) -> Iterator[tuple[str, float]]:
  for field, value in (document.get("metadata") or {}).items():
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
      yield field, value

"""Which of several duplicates stays."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxlm.data.stages.dedup_config import KeepRule


@dataclasses.dataclass(frozen=True)
class Member:
  """A document that has duplicates."""

  at: int
  id: str
  length: int
  score: float
  priority: int
  signature: np.ndarray | None = None

  def rank(self, rule: KeepRule) -> tuple[Any, ...]:
    """The lowest of a cluster stays."""
    first = {KeepRule.LONGEST: -self.length, KeepRule.BEST_SCORE: -self.score}.get(rule, 0)
    return (first, self.priority, self.id, self.at)


@dataclasses.dataclass(frozen=True)
class Decision:
  """A document to drop, and the one that stays in its place."""

  at: int
  kept: int
  kept_id: str
  jaccard: float


def choose(cluster: Iterable[Member], rule: KeepRule, min_jaccard: float = 0.0) -> list[Decision]:
  """Whom the members of a cluster that do not stay are duplicates of.

  In the order of the rule each member stays, unless it is at least min_jaccard like one that does.
  """
  ordered = sorted(cluster, key=lambda member: member.rank(rule))
  kept = [ordered[0]]
  decisions = []
  stack = None if ordered[0].signature is None else ordered[0].signature[None]
  for member in ordered[1:]:
    if stack is None or member.signature is None:
      decisions.append(Decision(member.at, kept[0].at, kept[0].id, 1.0))
      continue
    alike = (stack == member.signature).mean(axis=1)
    best = int(alike.argmax()) if min_jaccard else 0
    if alike[best] >= min_jaccard:
      of = kept[best]
      decisions.append(Decision(member.at, of.at, of.id, round(float(alike[best]), 4)))
    else:
      kept.append(member)
      stack = np.concatenate([stack, member.signature[None]])
  return decisions

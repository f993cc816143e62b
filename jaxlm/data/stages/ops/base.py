"""What all ops of the stage clean share on the side of the config; imports nothing heavy."""

import abc
import dataclasses
import enum
import typing
from pathlib import Path
from typing import ClassVar

from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp


class Words(enum.Enum):
  """What counts as a word. SPACY: the published recipes' choice. REGEX: 20 times faster.

  They disagree on one in eight of GopherQuality's verdicts, so the choice is part of the record.
  """

  REGEX = "regex"
  SPACY = "spacy"


class Action(enum.Enum):
  """TAG: metadata says it, nothing is removed. DROP: the document goes to removed/."""

  TAG = "tag"
  DROP = "drop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpContext:
  """What an op is built with: its name in the config, where its books and removed documents go.

  only, skip: OpConfig's.
  """

  name: str
  counts: Path
  removed: Path
  words: Words = Words.REGEX
  only: tuple[str, ...] = ()
  skip: tuple[str, ...] = ()


@dataclasses.dataclass(kw_only=True)
class OpConfig(abc.ABC):
  """One op of the stage. A new op is a subclass with `build`, in a file of its own.

  VERSION goes up when the same fields decide otherwise than before: a new directory is made then.

  enabled: False leaves the op out, e.g. --config.clean.ops['c4'].enabled=False.
  only: metadata formats ("code", "html") of the documents that it judges; (): all. skip: formats of
    those that it leaves alone. Either way the others pass as they are, and `extra.passed_by` counts
    them. Rules made for prose skip code by default; documents without a format are never skipped.
  """

  VERSION: ClassVar[int] = 1

  enabled: bool = True
  only: tuple[str, ...] = ()
  skip: tuple[str, ...] = ()

  @abc.abstractmethod
  def build(self, context: OpContext) -> "CountedOp":
    """The datatrove step."""

  def files(self) -> tuple[str, ...]:
    """The models and lists that decide with it; their contents are part of the fingerprint."""
    return ()

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work, or a file that is missing."""
    if both := set(self.only) & set(self.skip):
      raise UserError(f"{path}: {min(both)!r} stands in only and in skip: leave it in one of them")
    for file in self.files():
      if not Path(file).expanduser().exists():
        raise UserError(f"{path}: {file}: no such file; correct the path")


def need_share(path: str, **values: float | None) -> None:
  """UserError unless each value is None or in [0, 1]."""
  for name, value in values.items():
    if value is not None and not 0 <= value <= 1:
      raise UserError(f"{path}.{name}={value}: must be from 0 to 1")


def need_range(path: str, low: tuple[str, float | None], high: tuple[str, float | None]) -> None:
  """UserError where the lower bound lies above the upper one: nothing would pass."""
  if low[1] is not None and high[1] is not None and low[1] > high[1]:
    raise UserError(f"{path}.{low[0]}={low[1]}: above {high[0]}={high[1]}: nothing would pass")

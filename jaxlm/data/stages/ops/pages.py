"""Ops that make text: pages to their main text, and repair of characters."""

import dataclasses
import enum
import typing

from jaxlm.data.stages.ops.base import OpConfig, OpContext
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp


class Extractor(enum.Enum):
  """RESILIPARSE: 23 times faster. TRAFILATURA: what FineWeb was made with, fewer leftovers."""

  RESILIPARSE = "resiliparse"
  TRAFILATURA = "trafilatura"


class Normalization(enum.Enum):
  """Unicode normal forms. NFC changes no meaning; NFKC also folds ligatures and superscripts."""

  NONE = "none"
  NFC = "nfc"
  NFKC = "nfkc"


@dataclasses.dataclass(kw_only=True)
class ExtractConfig(OpConfig):
  """Pages (metadata format "html") become their main text; other documents pass.

  Attributes:
    engine: see Extractor.
    timeout_s: of one page with trafilatura, whose start does not count. A page above it is errored.
    favour_precision: trafilatura: rather too little text than too much.
  """

  engine: Extractor = Extractor.RESILIPARSE
  timeout_s: float = 30.0
  favour_precision: bool = True

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import pages_steps

    if self.engine is Extractor.TRAFILATURA:
      return pages_steps.TrafilaturaExtract(context, self)
    return pages_steps.ResiliparseExtract(context)

  def validate(self, path: str) -> None:
    super().validate(path)
    if self.timeout_s <= 0:
      raise UserError(f"{path}.timeout_s={self.timeout_s}: must be above 0")


@dataclasses.dataclass(kw_only=True)
class FixTextConfig(OpConfig):
  """Repairs text that was decoded wrongly (ftfy), normal form, control characters.

  Quotes, HTML entities and full-width characters stay as they are: they carry meaning in code and
  in Chinese and Japanese. `extra.changed` in stage.json counts the documents it changed.

  Attributes:
    mojibake: UTF-8 that was read as another encoding is read again.
    normalization: see Normalization.
    control_characters: those are removed, with terminal escapes; \\r\\n becomes \\n.
  """

  mojibake: bool = True
  normalization: Normalization = Normalization.NFC
  control_characters: bool = True

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import pages_steps

    return pages_steps.FixText(context, self)

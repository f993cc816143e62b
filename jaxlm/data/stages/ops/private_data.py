"""The op for personal data: found, counted, and replaced or tagged, kind by kind."""

import dataclasses
import enum
import typing

from jaxlm.data.stages.ops.base import OpConfig, OpContext

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp


class Handling(enum.Enum):
  """OFF: not looked for. TAG: metadata pii_<kind> counts them. REPLACE: the text changes too."""

  OFF = "off"
  TAG = "tag"
  REPLACE = "replace"


@dataclasses.dataclass(kw_only=True)
class PrivateDataConfig(OpConfig):
  """Personal data by pattern and check digit; metadata pii_<kind> is how many a document has.

  stage.json holds the sums in `extra`: <kind> found, <kind>_documents, replaced_documents.

  Attributes:
    email, ip: datatrove's patterns and replacements (public addresses, also IPv6).
    phone: international (+…) and North American forms; others are too like plain numbers.
    card: payment cards, by the lengths and first digits of their issuers and Luhn's check digit.
    iban: bank accounts, by the length of their country and modulo 97 (ISO 13616).
  """

  email: Handling = Handling.REPLACE
  ip: Handling = Handling.REPLACE
  phone: Handling = Handling.TAG
  card: Handling = Handling.TAG
  iban: Handling = Handling.TAG

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import private_data_steps

    return private_data_steps.PrivateData(context, self)

"""What the stage clean does: its ops in their order, and the published recipes as presets."""

import dataclasses
import re

from jaxlm.data.stages import ops
from jaxlm.data.stages.ops import OpConfig, Words
from jaxlm.errors import UserError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_RESERVED = {"before", "after"}  # the names of the books at both ends


def _default_ops() -> dict[str, OpConfig]:
  return {
    "extract": ops.ExtractConfig(),
    "gopher_repetition": ops.GopherRepetitionConfig(),
    "gopher_quality": ops.GopherQualityConfig(),
    "c4": ops.C4Config(),
    "fineweb": ops.FineWebConfig(),
    "private_data": ops.PrivateDataConfig(),
  }


@dataclasses.dataclass(kw_only=True)
class CleanConfig:
  """What is done with each document, in the order of `ops`.

  On the command line: --config.clean.ops['gopher_quality'].min_doc_words=20 or .enabled=False.

  Attributes:
    ops: by their names, which name their books and their folders below removed/. One class may be
      there twice, under two names.
    words: see Words.
    max_error_ratio: a stage in which a larger share of the documents fails with an exception stops.
  """

  ops: dict[str, OpConfig] = dataclasses.field(default_factory=_default_ops)
  words: Words = Words.REGEX
  max_error_ratio: float = 0.05

  def enabled(self) -> dict[str, OpConfig]:
    """The ops that run, in order."""
    return {name: op for name, op in self.ops.items() if op.enabled}

  def validate(self, path: str) -> None:
    """Raises UserError for values that can not work and files that are missing."""
    if not self.enabled():
      raise UserError(f"{path}.ops: name at least one op")
    for name, op in self.ops.items():
      if not _NAME.fullmatch(name) or name in _RESERVED:
        raise UserError(f"{path}.ops: {name!r} can not name an op: use a-z, 0-9, _ and -")
      if op.enabled:
        op.validate(f"{path}.ops[{name!r}]")
    if not 0 <= self.max_error_ratio <= 1:
      raise UserError(f"{path}.max_error_ratio={self.max_error_ratio}: must be from 0 to 1")


def minimal() -> CleanConfig:
  """Extraction and private data only."""
  return CleanConfig(ops={"extract": ops.ExtractConfig(), "private_data": ops.PrivateDataConfig()})


def gopher(words: Words = Words.REGEX) -> CleanConfig:
  """Gopher's rules alone: Rae et al. 2021 (arXiv:2112.11446)."""
  return CleanConfig(
    ops={
      "extract": ops.ExtractConfig(),
      "gopher_repetition": ops.GopherRepetitionConfig(),
      "gopher_quality": ops.GopherQualityConfig(),
      "private_data": ops.PrivateDataConfig(),
    },
    words=words,
  )


def fineweb(words: Words = Words.SPACY) -> CleanConfig:
  """FineWeb: Penedo et al. 2024 (arXiv:2406.17557), as datatrove's example has it. English.

  Needs lid.176 ($JAXLM_LID_MODEL or ops["language"].model). Its C4 rules drop text with braces.
  """
  return CleanConfig(
    ops={
      "url_filter": ops.UrlFilterConfig(),
      "extract": ops.ExtractConfig(engine=ops.Extractor.TRAFILATURA),
      "language": ops.LanguageConfig(),
      "gopher_repetition": ops.GopherRepetitionConfig(),
      "gopher_quality": ops.GopherQualityConfig(),
      "c4": ops.C4Config(curly_bracket=True),
      "fineweb": ops.FineWebConfig(),
      "private_data": ops.PrivateDataConfig(
        phone=ops.Handling.OFF, card=ops.Handling.OFF, iban=ops.Handling.OFF
      ),
    },
    words=words,
  )


def dclm_rw(words: Words = Words.REGEX) -> CleanConfig:
  """RefinedWeb's heuristics as DCLM has them: Li et al. 2024 (arXiv:2406.11794). English.

  Needs lid.176, as `fineweb`. DCLM's own lists of addresses are not here: datatrove's stand for
  them. Its stop words need not differ from each other; here two different ones are needed. DCLM's
  classifier is `ops["quality"] = QualityConfig(model=…)`, which the user trains.
  """
  return CleanConfig(
    ops={
      "url_filter": ops.UrlFilterConfig(),
      "extract": ops.ExtractConfig(),
      "language": ops.LanguageConfig(),
      "gopher_quality": ops.GopherQualityConfig(),
      "gopher_repetition": ops.GopherRepetitionConfig(),
      "refinedweb_lines": ops.RefinedWebLinesConfig(),
      "private_data": ops.PrivateDataConfig(),
    },
    words=words,
  )


def code() -> CleanConfig:
  """Source code: lines of people, not of machines. Addresses of authors are replaced."""
  return CleanConfig(
    ops={
      "fix_text": ops.FixTextConfig(),
      "code": ops.CodeConfig(only=()),  # text files and records hold code here too
      # Four numbers with dots are versions here more often than addresses.
      "private_data": ops.PrivateDataConfig(
        ip=ops.Handling.TAG, phone=ops.Handling.OFF, card=ops.Handling.OFF, iban=ops.Handling.OFF
      ),
    }
  )

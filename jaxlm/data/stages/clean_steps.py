"""The ops of the stage clean: datatrove's filters with books, and extraction."""

from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.pipeline.formatters.pii import PIIFormatter

from jaxlm.data.stages.config import CleanConfig, Words
from jaxlm.data.stages.minhash import RegexTokenizer
from jaxlm.data.stages.stage_io import Count, CountedOp


class Extract(CountedOp):
  """Pages (metadata format "html") become their main text; other documents pass."""

  def judge(self, document: Document, count: Count) -> str | None:
    if document.metadata.get("format") != "html":
      return None
    from resiliparse.extract.html2text import extract_plain_text

    document.text = extract_plain_text(
      document.text, main_content=True, alt_texts=False, links=False, form_fields=False
    ).strip()
    return None if document.text else "no text"


class Filtered(CountedOp):
  """One of datatrove's filters; the first word of its reason is the reason."""

  def __init__(self, op: str, counts: Path, removed: Path, chosen: Any):
    super().__init__(op, counts, removed)
    self.filter = chosen

  def judge(self, document: Document, count: Count) -> str | None:
    if not document.text.strip():
      return "empty"  # a division by zero in some filters
    result = self.filter.filter(document)
    if isinstance(result, tuple):
      keep, reason = result
      return None if keep else str(reason)
    return None if result else "dropped"


class Replace(CountedOp):
  """Email and public IP addresses are replaced; metadata pii_replaced says whether any was."""

  def __init__(self, op: str, counts: Path, removed: Path):
    super().__init__(op, counts, removed)
    self.formatter = PIIFormatter()

  def judge(self, document: Document, count: Count) -> str | None:
    text = self.formatter.format(document.text)
    document.metadata["pii_replaced"] = int(text != document.text)
    count.extra["documents"] += text != document.text
    document.text = text
    return None


def ops(config: CleanConfig, counts: Path, removed: Path) -> list[CountedOp]:
  """The ops of a config, in order."""
  words: Any = RegexTokenizer() if config.words is Words.REGEX else "eng_Latn"
  filters: dict[str, Any] = {}
  if config.gopher_repetition:
    filters["gopher_repetition"] = GopherRepetitionFilter(language=words)
  if config.gopher_quality:
    filters["gopher_quality"] = GopherQualityFilter(language=words)
  if config.c4:
    filters["c4"] = C4QualityFilter(
      filter_no_terminal_punct=False, filter_curly_bracket=config.c4_curly_bracket, language=words
    )
  if config.fineweb:
    filters["fineweb"] = FineWebQualityFilter(language=words)
  found: list[CountedOp] = [Extract("extract", counts, removed / "extract")] * config.extract
  found += [Filtered(name, counts, removed / name, one) for name, one in filters.items()]
  if config.private_data:
    found.append(Replace("private_data", counts, removed / "private_data"))
  return found

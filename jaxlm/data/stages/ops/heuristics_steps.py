"""datatrove's quality filters with books, and the values of documents near a threshold."""

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import (
  GopherRepetitionFilter,
  find_duplicates,
)
from datatrove.utils.text import PUNCTUATION_SET, split_into_words

from jaxlm.data.stages.ops.base import OpContext
from jaxlm.data.stages.ops.heuristics import (
  C4Config,
  FineWebConfig,
  GopherQualityConfig,
  GopherRepetitionConfig,
)
from jaxlm.data.stages.ops.steps import Filtered, word_tokenizer
from jaxlm.data.stages.stage_io import Count


def repetition(context: OpContext, config: GopherRepetitionConfig) -> Filtered:
  """Gopher's repetition rules. No value is marked: the filter stops at the first that fails."""
  return Filtered(
    context,
    GopherRepetitionFilter(
      dup_line_frac=config.duplicate_lines,
      dup_para_frac=config.duplicate_paragraphs,
      dup_line_char_frac=config.duplicate_line_characters,
      dup_para_char_frac=config.duplicate_paragraph_characters,
      top_n_grams=tuple(enumerate(config.top_n_grams, 2)),
      dup_n_grams=tuple(enumerate(config.duplicate_n_grams, 5)),
      language=word_tokenizer(context.words),
    ),
  )


class GopherQuality(Filtered):
  """Gopher's quality rules."""

  def __init__(self, context: OpContext, config: GopherQualityConfig):
    self.language = word_tokenizer(context.words)
    self.min_words = config.min_doc_words
    chosen = GopherQualityFilter(
      min_doc_words=config.min_doc_words,
      max_doc_words=config.max_doc_words,
      min_avg_word_length=config.min_mean_word_length,
      max_avg_word_length=config.max_mean_word_length,
      max_symbol_word_ratio=config.max_symbol_word_ratio,
      max_bullet_lines_ratio=config.max_bullet_lines,
      max_ellipsis_lines_ratio=config.max_ellipsis_lines,
      max_non_alpha_words_ratio=config.min_alphabetic_words,  # so named, and a minimum
      min_stop_words=config.min_stop_words,
      stop_words=list(config.stop_words) or None,
      language=self.language,
    )
    super().__init__(context, chosen)

  def judge(self, document: Document, count: Count) -> str | None:
    reason = super().judge(document, count)
    if self.min_words and reason in (None, "gopher_short_doc"):
      words = split_into_words(document.text, self.language)  # from datatrove's cache
      if len(words) < 4 * self.min_words:  # of longer ones the count is not near
        real = sum(1 for word in words if any(c not in PUNCTUATION_SET for c in word))
        self.mark(document, "short_doc", real, self.min_words)
    return reason


class C4(Filtered):
  """C4's rules on lines and documents."""

  def __init__(self, context: OpContext, config: C4Config):
    chosen = C4QualityFilter(
      remove_citations=config.citations,
      filter_no_terminal_punct=config.terminal_punctuation,
      min_num_sentences=-1 if config.min_sentences is None else config.min_sentences,
      min_words_per_line=-1 if config.min_words_per_line is None else config.min_words_per_line,
      max_word_length=-1 if config.max_word_length is None else config.max_word_length,
      filter_lorem_ipsum=config.lorem_ipsum,
      filter_javascript=config.javascript,
      filter_curly_bracket=config.curly_bracket,
      filter_policy=config.policy,
      language=word_tokenizer(context.words),
    )
    super().__init__(context, chosen)

  def judge(self, document: Document, count: Count) -> str | None:
    before = document.text.count("\n")
    reason = super().judge(document, count)
    if reason is None:
      if not document.text:  # every line was cut, and no minimum of sentences is set
        return "no_lines_left"
      count.extra["lines_removed"] += before - document.text.count("\n")
    return reason


class FineWeb(Filtered):
  """FineWeb's rules on lines."""

  def __init__(self, context: OpContext, config: FineWebConfig):
    self.config = config
    self.language = word_tokenizer(context.words)
    chosen = FineWebQualityFilter(
      line_punct_thr=config.min_line_punctuation,
      short_line_thr=config.max_short_lines,
      short_line_length=config.short_line_length,
      char_duplicates_ratio=config.max_duplicate_characters,
      new_line_ratio=config.max_newlines_per_word,
      language=self.language,
    )
    super().__init__(context, chosen)

  def judge(self, document: Document, count: Count) -> str | None:
    reason = super().judge(document, count)
    config, text = self.config, document.text
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or reason == "empty":
      return reason
    ended = sum(line.endswith(self.filter.stop_chars) for line in lines) / len(lines)
    short = sum(len(line) <= config.short_line_length for line in lines) / len(lines)
    repeated = find_duplicates(lines)[1] / len(text.replace("\n", ""))
    # One side of each threshold alone would show nothing: each value is of both kinds.
    values = {
      "line_punct_ratio": (ended, config.min_line_punctuation),
      "short_line_ratio": (short, config.max_short_lines),
      "char_dup_ratio": (repeated, config.max_duplicate_characters),
    }
    if reason in (None, "list_ratio"):
      words = max(len(split_into_words(text, self.language)), 1)
      values["list_ratio"] = (text.count("\n") / words, config.max_newlines_per_word)
    for name, (value, limit) in values.items():
      if reason in (None, name):
        self.mark(document, name, value, limit)
    return reason

"""The published quality rules, with their thresholds. A threshold of None is not applied."""

import dataclasses
import typing

from jaxlm.data.stages.ops.base import OpConfig, OpContext, need_range, need_share
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.stage_io import CountedOp


@dataclasses.dataclass(kw_only=True)
class GopherRepetitionConfig(OpConfig):
  """Repetition: Rae et al. 2021 (arXiv:2112.11446), table A1. All are shares, at most.

  Attributes:
    duplicate_lines, duplicate_paragraphs: of the lines, of the paragraphs.
    duplicate_line_characters, duplicate_paragraph_characters: of the characters.
    top_n_grams: characters in the most frequent 2-, 3-, 4-gram of words.
    duplicate_n_grams: characters in repeated 5-, 6-, … 10-grams.
  """

  skip: tuple[str, ...] = ("code",)
  duplicate_lines: float | None = 0.3
  duplicate_paragraphs: float | None = 0.3
  duplicate_line_characters: float | None = 0.2
  duplicate_paragraph_characters: float | None = 0.2
  top_n_grams: tuple[float, ...] = (0.20, 0.18, 0.16)
  duplicate_n_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import heuristics_steps

    return heuristics_steps.repetition(context, self)

  def validate(self, path: str) -> None:
    super().validate(path)
    for field in dataclasses.fields(self):
      if field.name in ("only", "skip"):
        continue
      value = getattr(self, field.name)
      for one in value if isinstance(value, tuple) else (value,):
        if not isinstance(one, bool):
          need_share(path, **{field.name: one})


@dataclasses.dataclass(kw_only=True)
class GopherQualityConfig(OpConfig):
  """Quality: Rae et al. 2021 (arXiv:2112.11446), appendix A1.

  Attributes:
    min_doc_words, max_doc_words: words that are not punctuation alone.
    min_mean_word_length, max_mean_word_length: characters.
    max_symbol_word_ratio: # or … per word. max_bullet_lines, max_ellipsis_lines: of the lines.
    min_alphabetic_words: words with a letter, of all: the rule that hangs most on what is a word.
    min_stop_words: different ones of the, be, to, of, and, that, have, with, or of stop_words.
  """

  skip: tuple[str, ...] = ("code",)
  min_doc_words: int | None = 50
  max_doc_words: int | None = 100_000
  min_mean_word_length: float | None = 3.0
  max_mean_word_length: float | None = 10.0
  max_symbol_word_ratio: float | None = 0.1
  max_bullet_lines: float | None = 0.9
  max_ellipsis_lines: float | None = 0.3
  min_alphabetic_words: float | None = 0.8
  min_stop_words: int | None = 2
  stop_words: tuple[str, ...] = ()

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import heuristics_steps

    return heuristics_steps.GopherQuality(context, self)

  def validate(self, path: str) -> None:
    super().validate(path)
    need_range(path, ("min_doc_words", self.min_doc_words), ("max_doc_words", self.max_doc_words))
    need_range(
      path,
      ("min_mean_word_length", self.min_mean_word_length),
      ("max_mean_word_length", self.max_mean_word_length),
    )
    need_share(
      path,
      max_bullet_lines=self.max_bullet_lines,
      max_ellipsis_lines=self.max_ellipsis_lines,
      min_alphabetic_words=self.min_alphabetic_words,
    )


@dataclasses.dataclass(kw_only=True)
class C4Config(OpConfig):
  """Lines and documents: Raffel et al. 2020 (arXiv:1910.10683), without its word list.

  Lines that fail are cut from the text; `extra.lines_removed` counts them.

  Attributes:
    terminal_punctuation: lines must end with a mark. FineWeb leaves this rule out.
    min_sentences: of the lines that are left; None: any.
    min_words_per_line, max_word_length: of a line; None: any.
    lorem_ipsum: drops the document. curly_bracket: so does a brace; drops all code.
    javascript, policy: lines that name it, or cookies and terms of use.
    citations: "[1]", "[edit]" are cut.
  """

  skip: tuple[str, ...] = ("code",)
  terminal_punctuation: bool = False
  min_sentences: int | None = 5
  min_words_per_line: int | None = 3
  max_word_length: int | None = 1000
  lorem_ipsum: bool = True
  curly_bracket: bool = False
  javascript: bool = True
  policy: bool = True
  citations: bool = True

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import heuristics_steps

    return heuristics_steps.C4(context, self)


@dataclasses.dataclass(kw_only=True)
class FineWebConfig(OpConfig):
  """Line statistics: Penedo et al. 2024 (arXiv:2406.17557), thresholds of their code.

  Attributes:
    min_line_punctuation: lines that end with a mark, of all.
    max_short_lines: lines of at most short_line_length characters, of all.
    max_duplicate_characters: in repeated lines. The paper says 0.1, the code 0.01.
    max_newlines_per_word: above it the text is a list.
  """

  skip: tuple[str, ...] = ("code",)
  min_line_punctuation: float = 0.12
  max_short_lines: float = 0.67
  short_line_length: int = 30
  max_duplicate_characters: float = 0.01
  max_newlines_per_word: float = 0.3

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import heuristics_steps

    return heuristics_steps.FineWeb(context, self)

  def validate(self, path: str) -> None:
    super().validate(path)
    need_share(
      path,
      min_line_punctuation=self.min_line_punctuation,
      max_short_lines=self.max_short_lines,
      max_duplicate_characters=self.max_duplicate_characters,
    )


@dataclasses.dataclass(kw_only=True)
class RefinedWebLinesConfig(OpConfig):
  """Line-wise corrections: Penedo et al. 2023 (arXiv:2306.01116), appendix G.2, as DCLM has them.

  Lines that are upper case, a number, a counter ("3 likes") or one word are cut, leftovers of
  navigation ("Read more…") are cut out of short lines; a document that loses too much is dropped.

  Attributes:
    max_uppercase: characters of a line. max_removed_words: of the document.
    max_navigation_words: of a line from which such leftovers are cut.
  """

  skip: tuple[str, ...] = ("code",)
  max_uppercase: float = 0.5
  max_removed_words: float = 0.05
  max_navigation_words: int = 10

  def build(self, context: OpContext) -> "CountedOp":
    from jaxlm.data.stages.ops import refinedweb_steps

    return refinedweb_steps.RefinedWebLines(context, self)

  def validate(self, path: str) -> None:
    super().validate(path)
    need_share(path, max_uppercase=self.max_uppercase, max_removed_words=self.max_removed_words)
    if self.max_navigation_words < 0:
      raise UserError(f"{path}.max_navigation_words={self.max_navigation_words}: must not be < 0")

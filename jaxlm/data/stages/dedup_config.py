"""Configs of the stages dedup and decontaminate."""

import dataclasses
import enum
import re

from jaxlm.errors import UserError


class KeepRule(enum.Enum):
  """Which of several duplicates stays. Ties: source_priority, then id, then place in the files.

  LONGEST: the longest text. BEST_SCORE: the highest metadata[score_field]; documents without come
  last. EARLIEST: the first by source_priority, then id.
  """

  LONGEST = "longest"
  BEST_SCORE = "best_score"
  EARLIEST = "earliest"


class LineUnit(enum.Enum):
  """What the op `lines` drops where it repeats across documents. PARAGRAPH: between blank lines."""

  NONE = "none"
  LINE = "line"
  PARAGRAPH = "paragraph"


@dataclasses.dataclass(kw_only=True)
class MinhashConfig:
  """Near duplicates by MinHash-LSH: buckets × hashes over word n-grams.

  Two documents of Jaccard similarity s meet with probability 1-(1-s^hashes)^buckets.

  min_jaccard: a document is removed only where its signature agrees with the kept one's in so large
    a share (the estimate of their Jaccard similarity): clusters hang together by chains, whose ends
    need not be alike. 0: the whole cluster counts as one, as in datatrove's own last stage.
  fold_numbers: every number counts as 0, datatrove's default and FineWeb's. Then texts that
    differ in numbers alone (tables, coordinates, results) are duplicates.
  word_tokenizer: "regex", or "spacy" (English; eight times slower).
  """

  enabled: bool = True
  n_grams: int = 5
  buckets: int = 14
  hashes: int = 8
  min_jaccard: float = 0.5
  fold_numbers: bool = False
  word_tokenizer: str = "regex"

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    for key in ("n_grams", "buckets", "hashes"):
      value = getattr(self, key)
      if value < 1:
        raise UserError(f"{path}.{key}={value}: must be at least 1")
    if not 0 <= self.min_jaccard <= 1:
      raise UserError(f"{path}.min_jaccard={self.min_jaccard}: must be between 0 and 1")
    if self.word_tokenizer not in ("regex", "spacy"):
      raise UserError(f"{path}.word_tokenizer={self.word_tokenizer!r}: must be 'regex' or 'spacy'")


@dataclasses.dataclass(kw_only=True)
class DedupConfig:
  """Removes duplicates; ops in this order: exact, url, lines, minhash,
  substring.

  exact: documents of equal text; exact_normalise: after folding case and runs of white space.
  url: documents of equal metadata["url"] (case of scheme and host, fragment and closing slash do
    not count) and, where collect has cut a long one, of the same part. Documents without a URL
    stay. Turn off where many documents share one.
  lines: drops lines or paragraphs of at least line_min_chars characters that stand in more than
    line_max_documents documents, from all of them; a document left empty is dropped.
  across_sources: False: only documents of one metadata["source"] are duplicates of each other.
  keep, score_field, source_priority: which duplicate stays (KeepRule; BEST_SCORE needs a document
    with a number in that field, else the stage stops). Sources that source_priority does not
    name come after those it names.
  substring: cuts passages of at least substring_words words that an earlier document holds too
    (stages/substrings.py); a document left empty is dropped. Costs 16 bytes of disk a word.
  """

  exact: bool = True
  exact_normalise: bool = True
  url: bool = True
  lines: LineUnit = LineUnit.NONE
  line_max_documents: int = 10
  line_min_chars: int = 20
  minhash: MinhashConfig = dataclasses.field(default_factory=MinhashConfig)
  across_sources: bool = True
  keep: KeepRule = KeepRule.LONGEST
  score_field: str = "score"
  source_priority: tuple[str, ...] = ()
  substring: bool = False
  substring_words: int = 50

  def validate(self, path: str = "config.dedup") -> None:
    """UserError with the dotted path for a value that can not work."""
    self.minhash.validate(f"{path}.minhash")
    if self.line_max_documents < 1:
      raise UserError(f"{path}.line_max_documents={self.line_max_documents}: must be at least 1")
    if self.line_min_chars < 1:
      raise UserError(f"{path}.line_min_chars={self.line_min_chars}: must be at least 1")
    if self.keep is KeepRule.BEST_SCORE and not self.score_field:
      raise UserError(f"{path}.score_field='': name the metadata field that holds the score")
    if len(set(self.source_priority)) != len(self.source_priority):
      raise UserError(f"{path}.source_priority={self.source_priority!r}: names a source twice")
    if self.substring_words < 2:
      raise UserError(f"{path}.substring_words={self.substring_words}: must be at least 2")


class Action(enum.Enum):
  """What is done with a document that overlaps an evaluation set."""

  DROP = "drop"
  REPORT = "report"


@dataclasses.dataclass(kw_only=True)
class EvalSetConfig:
  """An evaluation set that training text must not hold.

  name: of the task, in reports. paths: files, or folders of them: .jsonl, .json (a list of records,
  or a record of lists of them), .parquet, and anything else as text of one item a line; .gz too.
  fields: those of a record that hold text (dots lead into records, e.g. "doc.question"; a list of
  texts counts each), each taken by itself.
  """

  name: str
  paths: tuple[str, ...]
  fields: tuple[str, ...] = ("question",)

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    if not self.name:
      raise UserError(f"{path}.name='': name the task")
    if not self.paths or not all(self.paths):
      raise UserError(f"{path}.paths={self.paths!r}: name the files of {self.name}")
    if not self.fields or not all(self.fields):
      raise UserError(f"{path}.fields={self.fields!r}: name the fields that hold text")


CANARIES = (
  r"canary\s+GUID\W{0,4}[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
  r"BENCHMARK\s+DATA\s+SHOULD\s+NEVER\s+APPEAR\s+IN\s+TRAINING\s+CORPORA",
)


@dataclasses.dataclass(kw_only=True)
class DecontaminateConfig:
  """Removes documents that hold parts of evaluation sets.

  eval_sets: those that are looked for. n_grams: of so many words (lower case, without punctuation);
    items of fewer words are not looked for, but counted. min_hits: different n-grams of one
    document that must stand in evaluation sets.
  action: what is done with such documents.
  canaries: regular expressions (case does not count); documents that match one are always dropped.
  examples: n-grams of each task that the record shows.
  """

  eval_sets: list[EvalSetConfig] = dataclasses.field(default_factory=list)
  n_grams: int = 13
  min_hits: int = 1
  action: Action = Action.DROP
  canaries: tuple[str, ...] = CANARIES
  examples: int = 5

  def validate(self, path: str = "config.decontaminate") -> None:
    """UserError with the dotted path for a value that can not work."""
    for key, bound in (("n_grams", 1), ("min_hits", 1), ("examples", 0)):
      value = getattr(self, key)
      if value < bound:
        raise UserError(f"{path}.{key}={value}: must be at least {bound}")
    names = [one.name for one in self.eval_sets]
    for i, one in enumerate(self.eval_sets):
      one.validate(f"{path}.eval_sets[{i}]")
      if names.count(one.name) > 1:
        raise UserError(f"{path}.eval_sets[{i}].name={one.name!r}: stands twice; names must differ")
    for pattern in self.canaries:
      try:
        re.compile(pattern)
      except re.error as error:
        raise UserError(f"{path}.canaries: {pattern!r}: {error}") from None

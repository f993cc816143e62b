"""Word lists by one automaton a language, and a fastText classifier."""

import json
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datatrove.data import Document

from jaxlm.data.stages.ops.base import Action, OpContext
from jaxlm.data.stages.ops.harm import HarmConfig
from jaxlm.data.stages.ops.steps import Cached, Op, label_score, load_fasttext, one_line
from jaxlm.data.stages.stage_io import Count
from jaxlm.errors import UserError

BY = "by:"  # in Count.extra: by:language:en:documents, by:domain:a.org:flagged
MAX_DOMAINS = 100_000  # of a task; those met later are counted together
ROWS = 50  # of the table, by language and by domain
_LANGUAGE = re.compile(r"[a-z]{2,3}")
_UNSPACED = {"ja", "zh", "th", "km", "lo", "my"}  # written without spaces: no word ends to check


def read_words(file: str) -> list[str]:
  """The words and phrases of a list, lower case."""
  text = Path(file).expanduser().read_text(encoding="utf-8")
  try:
    found = json.loads(text) if file.endswith(".json") else text.splitlines()
  except ValueError as error:
    raise UserError(f"{file}: not JSON ({error}); write a list of words") from None
  if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
    raise UserError(f"{file}: must be a JSON list of words")
  words = {" ".join(one.lower().split()) for one in found if not one.startswith("#")}
  if not words - {""}:
    raise UserError(f"{file}: holds no words")
  return sorted(words - {""})


@Cached
def _automaton(files: tuple[str, ...]) -> Any:
  import ahocorasick

  automaton = ahocorasick.Automaton()
  for file in files:
    for word in read_words(file):
      automaton.add_word(word, len(word))
  automaton.make_automaton()
  return automaton


def count_words(text: str, automaton: Any, spaced: bool) -> int:
  """How often words of the automaton stand in the text, as words where they are spaced."""
  hits, size = 0, len(text)
  for last, length in automaton.iter(text):
    start, end = last - length + 1, last + 1
    inside = (start and text[start - 1].isalnum()) or (end < size and text[end].isalnum())
    hits += not (spaced and inside)
  return hits


class Harm(Op):
  """Tags, or drops, what lists or a classifier flag."""

  def __init__(self, context: OpContext, config: HarmConfig):
    super().__init__(context)
    self.config = config
    named = [(Path(file).name.split(".")[0].lower(), file) for file in config.word_lists]
    self.everywhere = tuple(file for name, file in named if not _LANGUAGE.fullmatch(name))
    self.by_language: dict[str, tuple[str, ...]] = {}
    for name, file in named:
      if _LANGUAGE.fullmatch(name):
        self.by_language[name] = (*self.by_language.get(name, ()), file)
    self.all_lists = tuple(config.word_lists)
    self._domains: set[str] = set()
    self._automata: dict[tuple[str, ...], Any] = {}
    self._model: Any = None

  def start(self) -> None:
    self._domains = set()
    if self.all_lists:
      self.automaton(self.all_lists)  # a list that can not be read stops the stage here
    if self.config.model:
      self._model = load_fasttext(self.config.model)
      label_score(self._model, "a", self.config.label)

  def end(self, rank: int) -> None:
    self._automata, self._model = {}, None

  def automaton(self, lists: tuple[str, ...]) -> Any:
    """Of some of the lists."""
    if lists not in self._automata:
      self._automata[lists] = _automaton(lists, files=lists)
    return self._automata[lists]

  def words(self, text: str, language: str) -> int:
    """Hits of the lists that are for the language; of all lists where it is not known."""
    if not language or language == "unknown":
      lists = self.all_lists
    else:
      lists = (*self.everywhere, *self.by_language.get(language, ()))
    if not lists:
      return 0
    lowered = " ".join(text.lower().split())
    return count_words(lowered, self.automaton(lists), language not in _UNSPACED)

  def judge(self, document: Document, count: Count) -> str | None:
    config, reason = self.config, None
    language = str(document.metadata.get("language") or "")
    if config.model:
      line = one_line(document.text, config.characters)
      score = label_score(self._model, line, config.label)
      document.metadata["harm_score"] = round(score, 4)
      if score >= config.min_score:
        reason = "harm_score"
    if self.all_lists:
      hits = self.words(document.text, language)
      document.metadata["harm_words"] = hits
      if hits >= config.min_words:
        reason = "harm_words"
    self._table(document, language, reason is not None, count)
    return reason if config.action is Action.DROP else None

  def _table(self, document: Document, language: str, flagged: bool, count: Count) -> None:
    count.extra["flagged"] += flagged
    keys = [f"language:{language or 'unknown'}"]
    domain = urllib.parse.urlsplit(str(document.metadata.get("url") or "")).hostname
    if domain:
      if domain not in self._domains and len(self._domains) < MAX_DOMAINS:
        self._domains.add(domain)
      keys.append(f"domain:{domain if domain in self._domains else 'others'}")
    for key in keys:
      count.extra[f"{BY}{key}:documents"] += 1
      count.extra[f"{BY}{key}:flagged"] += flagged


def over_removal(extra: Mapping[str, int]) -> list[dict[str, Any]]:
  """Who is flagged more than the average: rows by language and domain, the worst first.

  times_average: the share flagged among those documents over the share among all. With
  action=TAG it says what dropping would do.
  """
  groups: dict[tuple[str, str], list[int]] = {}
  for key, number in extra.items():
    if key.startswith(BY):
      kind, rest = key.removeprefix(BY).split(":", 1)
      value, what = rest.rsplit(":", 1)
      groups.setdefault((kind, value), [0, 0])[what == "flagged"] += number
  rows: list[dict[str, Any]] = []
  for by in ("language", "domain"):
    mine = {value: counts for (kind, value), counts in groups.items() if kind == by}
    documents = sum(n for n, _ in mine.values())
    average = sum(n for _, n in mine.values()) / max(documents, 1)
    found: list[dict[str, Any]] = [
      {
        "by": by,
        "value": value,
        "documents": n,
        "flagged": flagged,
        "share": round(flagged / n, 4),
        "times_average": round(flagged / n / average, 2) if average else 0.0,
      }
      for value, (n, flagged) in mine.items()
    ]
    found.sort(key=lambda row: (-row["flagged"], -row["documents"], row["value"]))
    rows += found[:ROWS]
  return rows

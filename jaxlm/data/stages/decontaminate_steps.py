"""Datatrove steps of the stage decontaminate, and its index of n-grams."""

import gzip
import hashlib
import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from jaxlm.data.stages.dedup_config import Action, DecontaminateConfig, EvalSetConfig
from jaxlm.data.stages.stage_io import AT, Count, CountedOp, whole_file
from jaxlm.data.stages.words import LETTERS
from jaxlm.errors import UserError

HASHES, TASKS = "hashes.npy", "tasks.npy"


def words_of(text: str) -> list[str]:
  """Lower case words without punctuation; equal for texts that differ in these and in spaces."""
  text = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
  return LETTERS.of(text).findall(text)


def hash_grams(words: list[str], n: int) -> np.ndarray:
  """xxh64 of each n-gram, in order."""
  digest = xxhash.xxh64_intdigest
  grams = map(" ".join, zip(*(words[i:] for i in range(n)), strict=False))
  return np.fromiter((digest(g.encode("utf-8", "surrogatepass")) for g in grams), dtype=np.uint64)


def items_of(config: EvalSetConfig, path: str) -> Iterator[str]:
  """The texts of an evaluation set. Raises UserError for what can not be read or has none."""
  for name in config.paths:
    root = Path(name)
    files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
    if not files:
      raise UserError(f"{path}.paths: {name}: holds no files")
    for file in files:
      found = 0
      try:
        for text in _file_items(file, config.fields):
          found += 1
          yield text
      except UserError:
        raise
      except Exception as error:
        if not isinstance(error, OSError | EOFError | ValueError | zlib.error):
          raise
        raise UserError(f"{path}.paths: {file}: {error}") from None
      if not found:
        raise UserError(
          f"{path}.fields={config.fields!r}: no record of {file} has text there; name its fields"
        )


def _file_items(file: Path, fields: tuple[str, ...]) -> Iterator[str]:
  name = file.name.lower().removesuffix(".gz")
  if name.endswith(".parquet"):
    import pyarrow.parquet

    columns = sorted({field.split(".")[0] for field in fields})
    table = pyarrow.parquet.ParquetFile(file)
    columns = [column for column in columns if column in table.schema_arrow.names]
    for batch in table.iter_batches(columns=columns) if columns else ():
      for record in batch.to_pylist():
        yield from _fields(record, fields)
    return
  opener: Any = gzip.open if file.name.lower().endswith(".gz") else open
  with opener(file, "rt", encoding="utf-8") as lines:
    if name.endswith((".jsonl", ".ndjson")):
      for line in lines:
        if line.strip():
          yield from _fields(json.loads(line), fields)
    elif name.endswith(".json"):
      value = json.load(lines)
      groups = [value] if isinstance(value, list) else [[value]]
      if isinstance(value, dict):
        groups += [one for one in value.values() if isinstance(one, list)]
      for record in (record for group in groups for record in group):
        yield from _fields(record, fields)
    else:
      yield from (line for line in lines if line.strip())


def _fields(record: Any, fields: tuple[str, ...]) -> Iterator[str]:
  for field in fields:
    value = record
    for key in field.split("."):
      value = value.get(key) if isinstance(value, dict) else None
    for text in value if isinstance(value, list) else [value]:
      if isinstance(text, str) and text.strip():
        yield text


def build_index(
  config: DecontaminateConfig, path: str
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
  """Sorted (hash, task) pairs as two arrays, and what each task gave."""
  hashes, owners, tasks = [], [], []
  for number, one in enumerate(config.eval_sets):
    items = short = 0
    parts = []
    for text in items_of(one, f"{path}.eval_sets[{number}]"):
      items += 1
      grams = hash_grams(words_of(text), config.n_grams)
      short += not len(grams)
      parts.append(grams)
    unique = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
    hashes.append(unique)
    owners.append(np.full(len(unique), number, dtype=np.uint16))
    tasks.append({"name": one.name, "items": items, "too_short": short, "n_grams": len(unique)})
  all_hashes = np.concatenate([np.zeros(0, np.uint64), *hashes])
  all_owners = np.concatenate([np.zeros(0, np.uint16), *owners])
  order = np.lexsort((all_owners, all_hashes))
  return all_hashes[order], all_owners[order], tasks


def index_sha256(hashes: np.ndarray, owners: np.ndarray) -> str:
  """Of the index, for the fingerprint."""
  return hashlib.sha256(hashes.tobytes() + b"|" + owners.tobytes()).hexdigest()


class Canary(CountedOp):
  """Drops documents that match a canary pattern."""

  def __init__(self, patterns: tuple[str, ...], counts: Any, removed: Any):
    super().__init__("canary", counts, removed)
    self.patterns = [re.compile(pattern, re.IGNORECASE) for pattern in patterns]

  def judge(self, document: Any, count: Count) -> str | None:
    for pattern in self.patterns:
      found = pattern.search(document.text)
      if found:
        document.metadata["canary"] = found.group()[:200]
        return "canary"
    return None


class Overlap(CountedOp):
  """Drops, or only reports, documents that share n-grams with evaluation sets."""

  def __init__(
    self,
    index: str | Path,
    hits: str | Path,
    config: DecontaminateConfig,
    counts: Any,
    removed: Any,
  ):
    super().__init__("ngrams", counts, removed)
    self.index = Path(index)
    self.hits = Path(hits)
    self.config = config
    self._hashes: Any = None
    self._owners: Any = None
    self._found: list[dict[str, Any]] = []

  def start(self) -> None:
    self._hashes = np.load(self.index / HASHES, mmap_mode="r")
    self._owners = np.load(self.index / TASKS, mmap_mode="r")
    self._found = []

  def end(self, rank: int) -> None:
    with whole_file(self.hits / f"{rank:05d}.json", "w") as file:
      json.dump(self._found, file)

  def judge(self, document: Any, count: Count) -> str | None:
    words = words_of(document.text)
    grams = hash_grams(words, self.config.n_grams)
    if not len(grams) or not len(self._hashes):
      return None
    left = np.searchsorted(self._hashes, grams)
    left[left == len(self._hashes)] = 0
    places = np.flatnonzero(self._hashes[left] == grams)
    unique, first = np.unique(grams[places], return_index=True)
    if len(unique) < self.config.min_hits:
      return None
    tasks: Counter[int] = Counter()
    example: dict[int, int] = {}
    for gram, place in zip(unique, places[first], strict=True):
      start, end = (int(np.searchsorted(self._hashes, gram, side)) for side in ("left", "right"))
      for task in self._owners[start:end].tolist():
        tasks[task] += 1
        example[task] = min(example.get(task, int(place)), int(place))
    names = [self.config.eval_sets[task].name for task in sorted(tasks)]
    for task, hits in sorted(tasks.items()):
      place = example[task]
      text = " ".join(words[place : place + self.config.n_grams])
      one = {"at": document.metadata[AT], "id": document.id, "task": task, "hits": hits}
      self._found.append({**one, "gram": text})
    document.metadata["contaminated_by"] = ",".join(names)
    document.metadata["contaminated_ngrams"] = len(unique)
    count.extra["contaminated"] += 1
    return "eval_overlap" if self.config.action is Action.DROP else None


def task_report(hits: Path, tasks: list[dict[str, Any]], examples: int) -> list[dict[str, Any]]:
  """Hits of each task: documents, n-grams, and some of these."""
  found = [one for file in sorted(hits.glob("*.json")) for one in json.loads(file.read_text())]
  found.sort(key=lambda one: (one["task"], one["at"]))
  report = []
  for number, task in enumerate(tasks):
    mine = [one for one in found if one["task"] == number]
    shown: dict[str, str] = {}
    for one in mine:
      if len(shown) < examples:
        shown.setdefault(one["gram"], one["id"])
    report.append(
      {
        **task,
        "documents_hit": len(mine),
        "n_gram_hits": sum(one["hits"] for one in mine),
        "examples": [{"n_gram": gram, "document": name} for gram, name in shown.items()],
      }
    )
  return report

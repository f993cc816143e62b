"""MinHash signatures on datatrove's steps: the word tokenizer, speed, and what must be verified."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

from jaxlm.data.stages import dedup_config, words
from jaxlm.data.stages.stage_io import whole_file
from jaxlm.errors import UserError

_RUNS = re.compile(r"\w+|[^\w\s]+")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_PRIME = np.uint64((1 << 61) - 1)
_BLOCK = 1024  # n-grams that are hashed at once: the arrays stay in the cache


class PlainTokenizer(WordTokenizer):
  """Runs of letters and of punctuation; datatrove takes an instance as its `language`."""

  def __hash__(self) -> int:  # equal instances share datatrove's cache of the last document
    return 1

  def __eq__(self, other: object) -> bool:
    return type(other) is type(self)

  def word_tokenize(self, text: str) -> list[str]:
    return _RUNS.findall(text)

  def sent_tokenize(self, text: str) -> list[str]:
    return [part for part in (one.strip() for one in _SENTENCES.split(text)) if part]

  def span_tokenize(self, text: str) -> list[tuple[int, int]]:
    spans, start = [], 0
    for sentence in self.sent_tokenize(text):
      start = text.index(sentence, start)
      spans.append((start, start + len(sentence)))
      start += len(sentence)
    return spans


class RegexTokenizer(PlainTokenizer):
  """The same with ideographs and kana as words of their own."""

  def word_tokenize(self, text: str) -> list[str]:
    return words.LETTERS_AND_MARKS.of(text).findall(text)


def lsh_config(config: dedup_config.MinhashConfig, seed: int) -> MinhashConfig:
  """The one datatrove config that all its stages must be given."""
  return MinhashConfig(
    n_grams=config.n_grams,
    num_buckets=config.buckets,
    hashes_per_bucket=config.hashes,
    seed=seed + 1,
    norm_config=TextNormConfig(norm_numbers=config.fold_numbers),
    hash_config=HashConfig(precision=64, hash_fc="xxhash"),
  )


def catch_probability(similarity: float, buckets: int = 14, hashes: int = 8) -> float:
  """Of two documents of that Jaccard similarity, to meet in a bucket."""
  return 1 - (1 - similarity**hashes) ** buckets


class Signatures(MinhashDedupSignature):
  """datatrove's signatures, of the same values, in bounded memory; and the files' sizes on record.

  by_source: signatures of documents of different sources never meet.
  """

  def __init__(
    self, folder: str | Path, config: MinhashConfig, *, word_tokenizer: str, by_source: bool
  ):
    language: Any = RegexTokenizer() if word_tokenizer == "regex" else "en"
    super().__init__(str(folder), config=config, language=language)
    self.by_source = by_source
    self.folder = Path(folder)
    self._salt = np.uint64(0)

  def get_shingles(self, text: str) -> np.ndarray:
    found = self.word_tokenizer.word_tokenize(simplify_text(text, self.config.norm_config))
    n = self.config.n_grams
    grams = map(" ".join, zip(*(found[i:] for i in range(n)), strict=False))
    digest = xxhash.xxh64_intdigest
    shingles = np.fromiter((digest(gram) for gram in grams), dtype=np.uint64)
    # Repeats do not change a minimum.
    return (np.unique(shingles) ^ self._salt).reshape(-1, 1)

  def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
    a, b = self.parameters
    low = None
    for start in range(0, len(shingles), _BLOCK):
      product = shingles[start : start + _BLOCK] * a
      product += b
      # product % (2^61 - 1), which is slow as a division.
      high = product >> np.uint64(61)
      product &= _PRIME
      product += high
      np.subtract(product, _PRIME, out=product, where=product >= _PRIME)
      block = product.min(axis=0)
      low = block if low is None else np.minimum(low, block)
    assert low is not None  # not called without shingles
    return [part.tolist() for part in np.split(low, self.config.num_buckets)]

  def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
    super().run(self._salted(data), rank, world_size)
    sizes = {name: (self.folder / name).stat().st_size for name in self._names(rank)}
    if len(set(sizes.values())) != 1:
      raise UserError(f"{self.folder}: signature files of task {rank} differ in size: {sizes}")
    with whole_file(self.folder / f"{rank:05d}.sizes.json", "w") as file:
      json.dump(sizes, file)

  def _salted(self, data: Any) -> Iterator[Any]:
    for document in data:
      if self.by_source:
        source = str(document.metadata.get("source", ""))
        self._salt = np.uint64(xxhash.xxh64_intdigest(source))
      yield document

  def _names(self, rank: int) -> list[str]:
    return [f"bucket_{i:03d}/{rank:05d}.minhash.sig" for i in range(self.config.num_buckets)]


def verify_signatures(folder: Path, config: MinhashConfig, tasks: int) -> None:
  """UserError naming a signature file that is missing or was cut after it was written."""
  record = struct.calcsize(f"<{config.hashes_per_bucket}QI")
  for rank in range(tasks):
    sizes = json.loads((folder / f"{rank:05d}.sizes.json").read_text(encoding="utf-8"))
    for name, size in sizes.items():
      file = folder / name
      found = file.stat().st_size if file.exists() else -1
      if found != size or size % record:
        raise UserError(
          f"{file}: holds {found} bytes, not the {size} that were written (a full disk?); delete "
          f"{folder.parent.parent} and run the stage again"
        )


def read_clusters(folder: Path) -> dict[int, list[tuple[int, int]]]:
  """Cluster number to (task, document) of each member, from datatrove's third stage."""
  clusters: dict[int, list[tuple[int, int]]] = {}
  for file in sorted(folder.glob("*.clusters")):
    rank = int(file.stem)
    for document, cluster in np.fromfile(file, dtype="<u4").reshape(-1, 2).tolist():
      clusters.setdefault(cluster, []).append((rank, document))
  return clusters


def read_signatures(
  folder: Path, config: MinhashConfig, wanted: dict[int, list[int]]
) -> dict[tuple[int, int], np.ndarray]:
  """The whole signatures of some documents (task to their numbers), from all buckets' files."""
  kind = np.dtype([("sig", "<u8", (config.hashes_per_bucket,)), ("doc", "<u4")])
  found: dict[tuple[int, int], np.ndarray] = {}
  for rank, documents in wanted.items():
    order = np.unique(np.array(documents, dtype=np.uint32))
    rows = np.zeros((len(order), config.num_buckets, config.hashes_per_bucket), dtype=np.uint64)
    for bucket in range(config.num_buckets):
      path = folder / f"bucket_{bucket:03d}/{rank:05d}.minhash.sig"
      records = np.memmap(path, dtype=kind, mode="r")
      place = np.searchsorted(order, records["doc"])
      place[place == len(order)] = 0
      mine = order[place] == records["doc"]
      rows[place[mine], bucket] = records["sig"][mine]
    found.update(((rank, int(d)), row.ravel()) for d, row in zip(order, rows, strict=True))
  return found

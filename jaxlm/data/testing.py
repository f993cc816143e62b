"""Datasets of random ids, written in milliseconds: for tests and benchmarks, not for training."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.manifest import Manifest, Split
from jaxlm.data.shards import ShardWriter

VOCAB_SIZE = 500
EOS = 3


def random_documents(seed: int, count: int, vocab_size: int = VOCAB_SIZE) -> list[np.ndarray]:
  """`count` documents of 1 to 89 random ids, all above EOS."""
  rng = np.random.default_rng(seed)
  return [rng.integers(EOS + 1, vocab_size, rng.integers(1, 90)) for _ in range(count)]


def write_dataset(
  directory: str | os.PathLike[str],
  documents: Iterable[Sequence[int] | np.ndarray],
  *,
  splits: Sequence[str] = ("train",),
  shard_tokens: int = 400,
  **overrides: Any,
) -> np.ndarray:
  """Writes the documents (without EOS) as each of the splits; overrides: fields of the manifest.

  Returns:
    The ids of a split, EOS included: int64, shape (tokens,). There is no tokenizer in the dataset;
    a document counts 3 bytes a token.
  """
  root = Path(directory)
  arrays = [np.asarray(ids, np.int64) for ids in documents]
  values: dict[str, Any] = {
    "name": root.name,
    "dtype": "<u2",
    "vocab_size": VOCAB_SIZE,
    "eos_id": EOS,
    "tokenizer_sha256": "f" * 64,
    "shuffle_seed": 0,
  } | overrides
  written = {}
  for split in splits:
    with ShardWriter(
      root, split, values["dtype"], values["eos_id"], shard_tokens, values["vocab_size"]
    ) as writer:
      for ids in arrays:
        writer.add(ids, 3 * len(ids))
    written[split] = Split.of(writer.close())
  Manifest(**values, splits=written).save(root)
  parts = [np.append(ids, values["eos_id"]) for ids in arrays]
  return np.concatenate([np.zeros(0, np.int64), *parts])

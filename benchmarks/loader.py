"""Tokens a second of the training loader on one core: python benchmarks/loader.py

Writes 50 M tokens of u16 shards to a temporary directory, pins itself to one core, and reads
batches of 64 rows of 1,024 tokens (shuffled, two sources mixed, all five arrays) for some seconds.
The page cache is warm: this is the cost of the loader, not of the disk.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.testing import EOS, write_dataset

SEQ_LEN = 1024
BATCH_SIZE = 64
VOCAB_SIZE = 32768
TOKENS = 25_000_000
SECONDS = 4.0


def write(directory: Path, seed: int) -> None:
  rng = np.random.default_rng(seed)
  lengths = rng.lognormal(6.2, 1.0, TOKENS // 800).astype(int) + 1
  documents = (rng.integers(EOS + 1, VOCAB_SIZE, n) for n in lengths)
  write_dataset(directory, documents, shard_tokens=1 << 23, vocab_size=VOCAB_SIZE)


def measure(config: DataConfig) -> float:
  with build_pipeline(config).iterator(BATCH_SIZE) as batches:
    for _ in range(5):
      next(batches)
    steps, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
      next(batches)
      steps += 1
    return steps * BATCH_SIZE * SEQ_LEN / (time.perf_counter() - begin)


def main() -> None:
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  with tempfile.TemporaryDirectory() as directory:
    sources = []
    for seed, name in enumerate(("a", "b")):
      write(Path(directory) / name, seed)
      sources.append(TokenShardsConfig(name=name, path=f"{directory}/{name}"))
    for threads in (0, 1, 4):
      rate = measure(DataConfig(seq_len=SEQ_LEN, sources=sources, num_threads=threads))
      print(f"num_threads={threads}: {rate / 1e6:.1f} M tokens/s on one core", flush=True)


if __name__ == "__main__":
  main()

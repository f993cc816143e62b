"""Encodes the documents of a split and writes its shards, checking that nothing is lost."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxlm.data.manifest import Shard, dtype_for
from jaxlm.data.prep.documents import Spool
from jaxlm.data.shards import ShardWriter
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer

BATCH_BYTES = 4 << 20  # of text encoded at once: its ids as Python ints take about 30 times that


def tokenise(
  spool: Spool,
  indices: Sequence[int],
  tokenizer: Tokenizer,
  directory: Path,
  split: str,
  shard_tokens: int,
  on_bytes: Callable[[int], None] = lambda _: None,
) -> list[Shard]:
  """Writes the texts `indices`, in that order, as DIR/<split>/shard-*.

  Every document is decoded again and compared with its text.

  Args:
    on_bytes: told the bytes of text done so far.

  Raises:
    UserError: the tokenizer does not give a document back.
  """
  done = 0
  dtype = dtype_for(tokenizer.vocab_size)
  with ShardWriter(
    directory, split, dtype, tokenizer.eos_id, shard_tokens, tokenizer.vocab_size
  ) as writer:
    for batch in _batches(spool, indices):
      texts = [spool.read(i).decode() for i in batch]
      for i, text, ids in zip(batch, texts, tokenizer.encode_batch(texts), strict=True):
        if tokenizer.decode(ids) != text:
          raise UserError(
            f"the {tokenizer.kind} tokenizer does not give back the text that begins with"
            f" {text[:40]!r}; choose another --config.tokenizer"
          )
        writer.add(np.array(ids, np.int64), spool.size(i), spool.label(i))
        done += spool.size(i)
      on_bytes(done)
  return writer.close()


def _batches(spool: Spool, indices: Sequence[int]) -> Iterator[list[int]]:
  batch: list[int] = []
  size = 0
  for i in indices:
    batch.append(i)
    size += spool.size(i)
    if size >= BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch

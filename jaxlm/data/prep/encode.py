"""First pass of the shuffle: encodes the documents of a unit into runs, checking each of them."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.runs import Done, Record, Run, Unit, stem
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer, load_tokenizer, normalized, set_threads
from jaxlm.tokenizers.config import Accelerator

BATCH_BYTES = 1 << 20  # of text encoded at once: its ids as Python ints take about 30 times that
COMPARE = 256  # one document of so many is encoded by the reference too


def encode_unit(
  unit: Unit,
  tokenizer: Tokenizer,
  folder: Path,
  *,
  dtype: str,
  seed: int,
  bucket_bytes: int,
  on_bytes: Callable[[int], None] = lambda _: None,
) -> Done:
  """Writes the unit's runs, or finds them written.

  Args:
    folder: of the runs. dtype: of the ids on disk.
    bucket_bytes: of text of one run, which bounds the memory.
    on_bytes: told the bytes of text of each batch.

  Raises:
    UserError: the tokenizer does not give a document back, or its accelerator makes other ids.
  """
  done = Done.read(folder, unit.number)
  if done is not None:
    on_bytes(unit.size)
    return done
  done = Done(unit.number)
  reference = getattr(tokenizer, "reference", None)
  sources: dict[str, int] = {}
  run = Run(unit.number, seed, dtype)
  for batch in _batches(unit.records(), done):
    texts = [record.text for record in batch]
    size = 0
    for record, ids in zip(batch, tokenizer.encode_batch(texts), strict=True):
      text = record.text
      if tokenizer.decode(ids) != text:
        form = normalized(tokenizer, text)
        if form == text or tokenizer.decode(ids) != form:
          raise UserError(
            f"the {tokenizer.kind} tokenizer does not give back the text that begins with"
            f" {text[:40]!r}; choose another --config.tokenizer"
          )
        text = form
        done.normalised += 1
      data = text.encode()
      source = sources.setdefault(record.source, len(sources))
      run.add(record, data, ids, source)
      done.count(record, len(data), len(ids))
      size += len(data)
      if reference is not None and record.number % COMPARE == 0:
        done.compared += 1
        if list(reference.encode(record.text)) != list(ids):
          raise UserError(
            f"{getattr(tokenizer, 'name', 'the accelerator')} makes other ids than the reference of"
            f" the text that begins with {text[:40]!r}; set tokenizer.accelerator=NONE"
          )
    on_bytes(size)
    if run.bytes >= bucket_bytes:
      run.write(stem(folder, unit.number, done.runs))
      done.runs += 1
      run = Run(unit.number, seed, dtype)
  if run.bytes:
    run.write(stem(folder, unit.number, done.runs))
    done.runs += 1
  done.sources = list(sources)
  done.write(folder)
  return done


def _batches(records: Iterable[Record], done: Done) -> Iterator[list[Record]]:
  batch: list[Record] = []
  size = 0
  for record in records:
    if not record.text:
      done.skipped["empty"] = done.skipped.get("empty", 0) + 1
      continue
    batch.append(record)
    size += len(record.text)
    if size >= BATCH_BYTES:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


# ---- in another process -----------------------------------------------------------------------

_tokenizer: Any = None


def start_worker(directory: str, accelerator: str | None) -> None:
  """Loads the tokenizer once in a worker; one thread, since there is a process for each core."""
  global _tokenizer
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  os.environ["RAYON_NUM_THREADS"] = "1"
  _tokenizer = load_tokenizer(directory)
  if accelerator is not None:
    from jaxlm.tokenizers.accelerate import AcceleratedTokenizer

    _tokenizer = AcceleratedTokenizer(_tokenizer, Accelerator(accelerator).value)
  set_threads(_tokenizer, 1)


def work(unit: Unit, folder: Path, dtype: str, seed: int, bucket_bytes: int) -> Done:
  """encode_unit with the worker's tokenizer."""
  return encode_unit(unit, _tokenizer, folder, dtype=dtype, seed=seed, bucket_bytes=bucket_bytes)

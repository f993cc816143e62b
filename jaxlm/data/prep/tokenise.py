"""Documents to shards in the order of a global shuffle, in bounded memory, on several processes.

Two passes: units of documents are encoded into runs (encode.py), then runs become shards bucket by
bucket (shuffle.py). Each task leaves a mark when it is whole, so that a killed run goes on; the
bytes depend on the seed and the documents, never on the number of workers.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jaxlm.data.manifest import Shard, dtype_for
from jaxlm.data.orphans import end_with_parent
from jaxlm.data.prep import encode, shuffle
from jaxlm.data.prep.runs import HELDOUT, TRAIN, Done, Unit
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer

OnBytes = Callable[[int], None]


def encode_all(
  units: Sequence[Unit],
  tokenizer: Tokenizer,
  work: Path,
  *,
  seed: int,
  bucket_bytes: int,
  workers: int = 1,
  on_bytes: OnBytes = lambda _: None,
) -> list[Done]:
  """First pass: every unit's runs, under WORK/runs.

  Args:
    workers: processes; with 1, this one, and the tokenizer's own threads.
    on_bytes: told the bytes of text done so far.
  """
  folder = work / "runs"
  folder.mkdir(parents=True, exist_ok=True)
  dtype = dtype_for(tokenizer.vocab_size)
  done_bytes = 0

  def tell(size: int) -> None:
    nonlocal done_bytes
    done_bytes += size
    on_bytes(done_bytes)

  if workers == 1:
    return [
      encode.encode_unit(
        unit, tokenizer, folder, dtype=dtype, seed=seed, bucket_bytes=bucket_bytes, on_bytes=tell
      )
      for unit in units
    ]
  copy = work / "tokenizer"
  tokenizer.save(copy)
  start = (str(copy), getattr(tokenizer, "name", None))
  found: dict[int, Done] = {}
  with _Pool(workers, work, start) as submit:
    jobs = (submit(encode.work, u, folder, dtype, seed, bucket_bytes) for u in units)
    for done in _results(jobs):
      found[done.unit] = done
      tell(done.bytes)
  return [found[unit.number] for unit in units]


def write_dataset(
  done: Sequence[Done],
  work: Path,
  root: Path,
  *,
  eos_id: int,
  vocab_size: int,
  bucket_bytes: int,
  shard_tokens: int,
  sources: frozenset[str] | None = None,
  heldout_fraction: float = 0.0,
  heldout_max_bytes: int = 1,
  workers: int = 1,
) -> dict[str, list[Shard]]:
  """Second pass: the shards of one dataset, by split, in ROOT.

  heldout_fraction, heldout_max_bytes: of the documents whose split is open.
  """
  folder = work / "runs"
  plan = shuffle.make_plan(
    folder,
    done,
    sources=sources,
    bucket_bytes=bucket_bytes,
    shard_tokens=shard_tokens,
    fraction=heldout_fraction,
    max_bytes=heldout_max_bytes,
  )
  parts = root / "parts.tmp"
  parts.mkdir(parents=True, exist_ok=True)
  settings: dict[str, Any] = dict(
    dtype=dtype_for(vocab_size), eos_id=eos_id, vocab_size=vocab_size, shard_tokens=shard_tokens
  )
  tasks = [(HELDOUT, (0, 1)), *((TRAIN, group) for group in plan.groups)]
  if workers == 1:
    found = {t: shuffle.assemble(folder, plan, *t, parts, **settings) for t in tasks}
  else:
    with _Pool(workers, work, None) as submit:
      jobs = {t: submit(shuffle.assemble, folder, plan, *t, parts, **settings) for t in tasks}
      found = {t: job.result() for t, job in jobs.items()}
  out = {
    shuffle.NAMES[split]: shuffle.place(
      parts, root, split, [shards for (one, _), shards in found.items() if one == split]
    )
    for split in (TRAIN, HELDOUT)
  }
  docs = sum(s.docs for shards in out.values() for s in shards)
  if docs != plan.docs:
    raise UserError(
      f"{root}: {plan.docs:,} documents were encoded but the shards hold {docs:,}: a file of {work}"
      " is damaged; delete it and run again"
    )
  shutil.rmtree(parts)
  return out


class _Pool:
  """Processes that are missed when they die."""

  def __init__(self, workers: int, where: Path, start: tuple[str, str | None] | None):
    self._where = where
    self._pool = ProcessPoolExecutor(
      workers, mp_context=get_context("forkserver"), initializer=_start, initargs=(start,)
    )

  def __enter__(self) -> Callable[..., Future]:
    return self._pool.submit

  def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
    self._pool.shutdown(wait=True, cancel_futures=True)
    if isinstance(error, BrokenProcessPool):
      raise UserError(
        f"{self._where}: a worker was killed (out of memory?); run again with fewer workers or a"
        " smaller bucket_bytes: it goes on at its tasks"
      ) from None


def _start(encoder: tuple[str, str | None] | None) -> None:
  end_with_parent()
  if encoder is not None:
    encode.start_worker(*encoder)


def _results(jobs: Iterable[Future]) -> Iterator[Any]:
  for job in as_completed(list(jobs)):
    yield job.result()

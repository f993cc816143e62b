"""The files of a source read by several processes, the documents in the same order as by one."""

import collections
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Corpus, Document
from jaxlm.data.stages.sources.base import Source
from jaxlm.errors import UserError


def documents(corpus: Corpus, work: Path, workers: int) -> Iterator[Document]:
  """corpus.documents(), its files read `workers` at a time where it is a Source.

  work: where each file's documents wait for their turn; as much as `workers` files hold.
  """
  if workers <= 1 or not isinstance(corpus, Source):
    yield from corpus.documents()
    return
  work.mkdir(parents=True, exist_ok=True)
  left = corpus.config.max_bytes
  for spool in _spools(corpus, work, workers):
    taken = 0
    try:
      with spool.open("rb") as file:
        while record := pickle.load(file):
          if left is not None:
            left -= len(record[1].encode("utf-8", "replace"))
          taken += 1
          yield Document(*record)
          if left is not None and left <= 0:
            # What else the file held was met in vain: it is neither a document nor lost.
            rest = 0
            while pickle.load(file):
              rest += 1
            corpus.counts.add(pickle.load(file))
            corpus.counts.meet(-rest)
            return
        corpus.counts.add(pickle.load(file))
    except GeneratorExit:  # enough was taken: of this file no more was met
      corpus.counts.meet(taken)
      raise
    finally:
      spool.unlink()


def _spools(corpus: Source[Any], work: Path, workers: int) -> Iterator[Path]:
  from concurrent.futures import Future, ProcessPoolExecutor
  from concurrent.futures.process import BrokenProcessPool
  from multiprocessing import get_context

  waiting: collections.deque[Future[str]] = collections.deque()
  with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
    try:
      for number, file in enumerate(corpus.files(corpus.counts)):
        waiting.append(pool.submit(_read, corpus, file, str(work / f"{number:06d}.pickle")))
        if len(waiting) > workers:
          yield Path(waiting.popleft().result())
      while waiting:
        yield Path(waiting.popleft().result())
    except BrokenProcessPool:
      raise UserError(
        f"{work}: a worker was killed (out of memory?); run the stage again, with fewer --workers"
      ) from None
    finally:
      pool.shutdown(cancel_futures=True)


def _read(corpus: Source[Any], file: Path, spool: str) -> str:
  """Writes (id, text, origin) of each document, None, and the counts."""
  corpus.counts = type(corpus.counts)()
  with Path(spool).open("wb") as out:
    for one in corpus.of_file(file):
      pickle.dump((one.id, one.text, dict(one.origin)), out, pickle.HIGHEST_PROTOCOL)
    pickle.dump(None, out)
    pickle.dump(corpus.counts, out)
  return spool

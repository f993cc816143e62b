"""The files of a source read by several processes, the documents in the same order as by one."""

import collections
import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.orphans import end_with_parent
from jaxlm.data.prep.documents import Corpus, Counts, Document
from jaxlm.data.stages.sources.base import Source
from jaxlm.errors import UserError


@dataclasses.dataclass
class Place:
  """Where the reading of a source is, so that it can go on there.

  file: files that are done. taken: documents of the next one (of all, where the corpus knows no
  files) that were yielded. left: what config.max_bytes leaves for that file and those after it.
  counts: of the files that are done.
  """

  file: int = 0
  taken: int = 0
  left: int | None = None
  counts: Counts = dataclasses.field(default_factory=Counts)

  @classmethod
  def first(cls, corpus: Corpus) -> "Place":
    """Where a source begins."""
    return cls(left=corpus.config.max_bytes if isinstance(corpus, Source) else None)


def documents(corpus: Corpus, work: Path, workers: int, place: Place) -> Iterator[Document]:
  """corpus.documents() from `place` on, which is kept up to date before each document.

  Files of a Source are read `workers` at a time, none of those done again. Another corpus is read
  from its beginning, and what was taken of it is left out.

  work: where each file's documents wait for their turn; as much as `workers` files hold.
  """
  if not isinstance(corpus, Source):
    place.counts = corpus.counts
    for number, document in enumerate(corpus.documents(), 1):
      if number > place.taken:
        place.taken = number
        yield document
    return
  walked, left = Counts(), place.left
  try:
    for reading in _readings(corpus, work, workers, place.file, walked):
      number, skip = 0, place.taken
      try:
        for document in reading.documents():
          number += 1
          if left is not None:
            left -= len(document.text.encode("utf-8", "replace"))
          if number > skip:
            place.taken = number
            yield document
          if left is not None and left <= 0:
            place.counts.add(reading.counts_of(number))
            return
      except GeneratorExit:  # enough was taken
        place.counts.add(reading.counts_of(number))
        raise
      finally:
        reading.close()
      place.counts.add(reading.counts)
      place.file, place.taken, place.left = place.file + 1, 0, left
  finally:
    place.counts.add(walked)


class _Reading:
  """One file, read in this process."""

  def __init__(self, corpus: Source[Any], file: Path):
    self._corpus, self._file = corpus, file
    self.counts = Counts()

  def documents(self) -> Iterator[Document]:
    self._corpus.counts = self.counts = Counts()
    yield from self._corpus.of_file(self._file)

  def counts_of(self, taken: int) -> Counts:
    """What was met up to that document; of the rest of the file nothing is said."""
    return self.counts

  def close(self) -> None:
    """Called at the end, whatever it is."""


class _Spooled(_Reading):
  """One file that another process has read."""

  def __init__(self, corpus: Source[Any], file: Path, spool: Path):
    super().__init__(corpus, file)
    self._spool = spool

  def documents(self) -> Iterator[Document]:
    with self._spool.open("rb") as file:
      while record := pickle.load(file):
        yield Document(*record)
      self.counts = pickle.load(file)

  def counts_of(self, taken: int) -> Counts:
    # The process read on to the end of the file; what it met up to here is found by reading again.
    collections.deque(itertools.islice(super().documents(), taken), maxlen=0)
    return self.counts

  def close(self) -> None:
    self._spool.unlink(missing_ok=True)


def _readings(
  corpus: Source[Any], work: Path, workers: int, first: int, walked: Counts
) -> Iterator[_Reading]:
  files = itertools.islice(corpus.files(walked), first, None)
  if workers <= 1:
    yield from (_Reading(corpus, file) for file in files)
    return
  from concurrent.futures import Future, ProcessPoolExecutor
  from concurrent.futures.process import BrokenProcessPool
  from multiprocessing import get_context

  work.mkdir(parents=True, exist_ok=True)
  waiting: collections.deque[tuple[Path, Future[str]]] = collections.deque()
  context = get_context("forkserver")
  with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
    try:
      for number, file in enumerate(files, first):
        spool = str(work / f"{number:06d}.pickle")
        waiting.append((file, pool.submit(_read, corpus, file, spool)))
        if len(waiting) > workers:
          file, job = waiting.popleft()
          yield _Spooled(corpus, file, Path(job.result()))
      while waiting:
        file, job = waiting.popleft()
        yield _Spooled(corpus, file, Path(job.result()))
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

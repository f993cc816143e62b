"""How far `collect` is, kept beside its documents so that a run that was killed goes on there.

    WORK/journal.pickle   of each source begun: where its reading is, its books; written whole
    WORK/ids.u64          hashes of the ids that the last of them gave, as many as the journal says

It is written when a file of documents is full and no document is half in it, and at the end of each
source. What was written after it is made again, with the same bytes.
"""

import array
import contextlib
import dataclasses
import os
import pickle
import time
from pathlib import Path

import numpy as np

from jaxlm.data.prep.documents import Corpus, Counts
from jaxlm.data.stages.sources.books import Books
from jaxlm.data.stages.sources.parallel import Place
from jaxlm.data.stages.stage_io import whole_file

JOURNAL, IDS = "journal.pickle", "ids.u64"


@dataclasses.dataclass
class Progress:
  """Of one source.

  first: files of documents that were there before it. left_out: what `collect` itself did not take.
  ids: their number.
  """

  place: Place
  first: int
  books: Books = dataclasses.field(default_factory=Books)
  left_out: Counts = dataclasses.field(default_factory=Counts)
  ids: int = 0
  done: bool = False

  def counts(self) -> Counts:
    """Of the source and of what was left out."""
    total = Counts()
    total.add(self.place.counts)
    total.add(self.left_out)
    return total


@dataclasses.dataclass
class State:
  """What is on disk. files: of documents, written whole. seconds: spent so far."""

  sources: dict[str, Progress] = dataclasses.field(default_factory=dict)
  files: int = 0
  seconds: float = 0.0


def read(work: Path) -> State | None:
  """The state that a run left, None where there is none that can be read."""
  try:
    found = pickle.loads((work / JOURNAL).read_bytes())
  except Exception:  # what a pickle of another version raises is anything
    return None
  return found if isinstance(found, State) else None


class Journal:
  """The state of this run, which begins with that of one that was killed, if it is whole."""

  def __init__(self, work: Path, documents: Path):
    self._work = work
    self._started = time.perf_counter()
    self._fresh: array.array[int] = array.array("Q")
    self._ids = np.empty(0, np.uint64)
    self.state = read(work) or State()
    begun = [one for one in self.state.sources.values() if not one.done]
    if begun and begun[-1].ids:
      with contextlib.suppress(OSError):
        self._ids = np.fromfile(work / IDS, np.uint64, begun[-1].ids)
    there = sorted(documents.glob("*.jsonl.gz"))
    if (begun and len(self._ids) != begun[-1].ids) or len(there) < self.state.files:
      self.state, self._ids = State(), np.empty(0, np.uint64)
    self._before = self.state.seconds
    for file in there[self.state.files :]:
      file.unlink()

  def source(self, name: str, corpus: Corpus) -> Progress:
    """Where a source is; at its beginning if it is new."""
    if name not in self.state.sources:
      self.state.sources[name] = Progress(Place.first(corpus), self.state.files)
      self._ids = np.empty(0, np.uint64)
      del self._fresh[:]
    return self.state.sources[name]

  def ids(self) -> "tuple[np.ndarray, array.array[int]]":
    """Of the source that goes on: the hashes so far, and where those of new ids are added."""
    return self._ids, self._fresh

  @property
  def seconds(self) -> float:
    return self._before + time.perf_counter() - self._started

  def save(self, progress: Progress, files: int) -> None:
    """files: of documents that are written. OSError where there is no room."""
    self._work.mkdir(parents=True, exist_ok=True)
    with (self._work / IDS).open("r+b" if (self._work / IDS).exists() else "wb") as file:
      file.truncate(8 * progress.ids)
      file.seek(0, 2)
      self._fresh.tofile(file)
      file.flush()
      os.fsync(file.fileno())
    progress.ids += len(self._fresh)
    del self._fresh[:]
    self.state.files = files
    self._write()

  def forget(self, name: str) -> None:
    """The last source begins anew in the next run: its books are wrong."""
    self.state.files = self.state.sources.pop(name).first
    self._write()

  def _write(self) -> None:
    self.state.seconds = self.seconds
    with whole_file(self._work / JOURNAL) as out:
      pickle.dump(self.state, out)

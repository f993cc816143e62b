"""Worker processes that end with the one that started them, however that one ends.

A worker of a pool waits at a pipe of which it holds both ends: when its parent is killed it waits
forever, and keeps its memory.
"""

import multiprocessing
import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
  """The initializer of a worker: from then on it is watched whether its parent is alive."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    threading.Thread(target=_wait, args=(parent.sentinel,), daemon=True).start()


def _wait(sentinel: int) -> None:
  multiprocessing.connection.wait([sentinel])
  os._exit(1)  # files appear under their names when they are whole: nothing is to be tidied up

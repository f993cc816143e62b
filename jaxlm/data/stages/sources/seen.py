"""Ids met before, in 8 bytes each."""

import array
import hashlib

import numpy as np

_RECENT = 1 << 20


class SeenIds:
  """A set of ids by 64-bit hashes. Of n ids two different ones meet with probability n²/2⁶⁵.

  hashes: of ids met before. fresh: where hashes of new ones are added, for who keeps them on disk.
  """

  def __init__(
    self, hashes: np.ndarray | None = None, fresh: "array.array[int] | None" = None
  ) -> None:
    self._recent: set[int] = set()
    self._old = np.empty(0, np.uint64) if hashes is None else np.sort(hashes)
    self._fresh = fresh

  def add(self, identity: str) -> bool:
    """Whether the id is new."""
    data = identity.encode("utf-8", "surrogatepass")
    found = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())
    if found in self._recent:
      return False
    if len(self._old):
      at = int(np.searchsorted(self._old, np.uint64(found)))
      if at < len(self._old) and int(self._old[at]) == found:
        return False
    self._recent.add(found)
    if self._fresh is not None:
      self._fresh.append(found)
    if len(self._recent) >= _RECENT:
      recent = np.fromiter(self._recent, np.uint64, len(self._recent))
      self._old = np.sort(np.concatenate([self._old, recent]))
      self._recent.clear()
    return True

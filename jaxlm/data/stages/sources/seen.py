"""Ids met before, in 8 bytes each."""

import hashlib

import numpy as np

_RECENT = 1 << 20


class SeenIds:
  """A set of ids by 64-bit hashes. Of n ids two different ones meet with probability n²/2⁶⁵."""

  def __init__(self) -> None:
    self._recent: set[int] = set()
    self._old = np.empty(0, np.uint64)

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
    if len(self._recent) >= _RECENT:
      recent = np.fromiter(self._recent, np.uint64, len(self._recent))
      self._old = np.sort(np.concatenate([self._old, recent]))
      self._recent.clear()
    return True

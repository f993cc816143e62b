"""Random numbers that are a function of a seed, a purpose and a row's number: nothing is stored."""

import hashlib

import numpy as np


def random_bits(seed: int, purpose: str, numbers: np.ndarray, width: int) -> np.ndarray:
  """Random uint64, shape (len(numbers), width).

  Args:
    seed, purpose: hashed together; another purpose has other numbers.
    numbers: of the rows, integers from 0 on.
    width: how many for each row.

  SplitMix64 (Steele et al. 2014) of a counter, twice: once for the row, once along it. Written out,
  rather than taken from numpy, because other numbers would make another run of a resumed one.
  """
  digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
  key = np.uint64(int.from_bytes(digest, "little"))
  with np.errstate(over="ignore"):
    rows = _mix(key + (numbers.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return _mix(rows[:, None] + np.arange(1, width + 1, dtype=np.uint64)[None] * _GAMMA)


def uniform(seed: int, purpose: str, numbers: np.ndarray, width: int) -> np.ndarray:
  """The same as float64 in [0, 1)."""
  return (random_bits(seed, purpose, numbers, width) >> np.uint64(11)) * 2.0**-53


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))

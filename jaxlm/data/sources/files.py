"""Files of a source whose rows are records: found by a path or a glob, checked as rows."""

import glob
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlm.errors import UserError


def local_files(name: str, pattern: str) -> list[Path]:
  """The sorted files that match. A URL is refused: some readers open one and report 0 records."""
  if re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", pattern):
    raise UserError(f"source {name!r}: {pattern}: only local files are read; copy or mount them")
  files = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())  # noqa: PTH207 (an absolute pattern)
  if not files:
    raise UserError(f"source {name!r}: {pattern}: no such file; correct the path or the glob")
  return files


def checked_row(ids: np.ndarray, where: str, row: int, seq_len: int, vocab_size: int) -> np.ndarray:
  """ids as int32 if there are seq_len + 1 of them, all in [0, vocab_size); else UserError."""
  if ids.size != seq_len + 1:
    raise UserError(
      f"{where}: row {row} has {ids.size} ids, but data.seq_len={seq_len} takes {seq_len + 1};"
      f" set data.seq_len={max(ids.size - 1, 0)}, or write rows of {seq_len + 1} ids"
    )
  low, high = int(ids.min()), int(ids.max())
  if low < 0 or high >= vocab_size:
    raise UserError(
      f"{where}: row {row} holds id {low if low < 0 else high}, which is not in [0, {vocab_size});"
      " check the source's vocab_size and the tokenizer of the file"
    )
  return ids.astype(np.int32)


def content_fingerprint(settings: str, files: Sequence[Path], counts: Sequence[int]) -> str:
  """sha256 of the settings and of each file's size, number of rows, and first and last MiB.

  Not of all bytes: that would read terabytes at every start. Names and places do not count, so
  files can be moved; their order does.
  """
  digest = hashlib.sha256(settings.encode())
  edge = 1 << 20
  for file, count in zip(files, counts, strict=True):
    size = file.stat().st_size
    digest.update(f"\n{size}:{count}\n".encode())
    with file.open("rb") as f:
      digest.update(f.read(edge))
      f.seek(max(edge, size - edge))
      digest.update(f.read(edge))
  return digest.hexdigest()

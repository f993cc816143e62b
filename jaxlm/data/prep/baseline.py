"""What general compressors make of the held-out documents: the bar for a model's bits per byte."""

import gzip
import lzma
from collections.abc import Iterable


def compressed_sizes(documents: Iterable[bytes]) -> dict[str, int]:
  """Bytes of each document compressed on its own, summed, by compressor.

  Each on its own, as a model sees them: no document helps another. Headers are counted.
  """
  totals = {"gzip -9": 0, "xz -9": 0}
  for data in documents:
    totals["gzip -9"] += len(gzip.compress(data, compresslevel=9, mtime=0))
    totals["xz -9"] += len(_xz(data))
  return totals


def _xz(data: bytes) -> bytes:
  """lzma.compress(data, preset=9), with a dictionary no larger than the data needs.

  The preset's own 64 MiB would be allocated anew for each document, about 40 ms of each; it can
  not refer further back than the document's start, so that the size is the same.
  """
  size = min(1 << 26, max(4096, 1 << max(len(data) - 1, 0).bit_length()))
  filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": size}]
  return lzma.compress(data, filters=filters)

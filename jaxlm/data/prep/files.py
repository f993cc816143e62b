"""Which files of a folder are read, and how their bytes become pieces of text."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import typing
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from jaxlm.data.prep.documents import Counts
from jaxlm.errors import UserError

_EXTENSIONS = (
  "txt text md markdown mdx rst adoc asciidoc org tex bib texi man pod"
  " py pyi pyx c h cc cpp cxx hh hpp hxx cu cuh m mm java kt kts scala groovy clj cljs erl ex exs"
  " hs lhs ml mli fs fsx elm go rs zig d nim swift js mjs cjs jsx ts tsx vue svelte css scss less"
  " rb pl pm php lua tcl r jl f f90 f95 f03 for ada adb ads pas lisp el scm rkt v sv vhd vhdl asm s"
  " sh bash zsh fish ps1 bat cmd awk sed vim sql proto thrift graphql cmake mk bzl gradle nix tf"
  " toml yaml yml ini cfg conf properties cs vb dart sol"
)
TEXT_EXTENSIONS = frozenset(_EXTENSIONS.split())
_NAMES = (
  "readme license licence copying authors contributing changelog changes news notice todo install"
  " history makefile dockerfile rakefile gemfile"
)
TEXT_NAMES = frozenset(_NAMES.split())
COMPRESSED = frozenset(("gz", "zst", "xz", "bz2"))
CACHE_DIRS = frozenset(("__pycache__", "node_modules", "site-packages"))

_BLOCK = 1 << 20
BROKEN_STREAM = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def kind_of(name: str, extra: frozenset[str] = frozenset()) -> str | None:
  """What a file of that name holds: "text", "jsonl", "parquet", or None for a name not known.

  A compressed file (.gz .zst .xz .bz2) is judged by the name without that ending.
  """
  stem, _, extension = name.lower().rpartition(".")
  if stem and extension in COMPRESSED:
    name = stem
    stem, _, extension = name.rpartition(".")
    if extension == "parquet":
      return None
  if not stem:  # no dot at all
    return "text" if extension in TEXT_NAMES or extension in extra else None
  if extension in ("jsonl", "ndjson"):
    return "jsonl"
  if extension == "parquet":
    return "parquet"
  return "text" if extension in TEXT_EXTENSIONS or extension in extra else None


def walk(root: Path, exclude: Path, counts: Counts) -> Iterator[Path]:
  """The regular files below root in sorted order; hidden, cache and link directories are skipped.

  exclude: a directory that is not entered (the dataset being made may lie in the folder read).
  """

  def unreadable(error: OSError) -> None:
    counts.skip("unreadable", str(error.filename))

  for directory, dirs, files in os.walk(root, onerror=unreadable):
    here = Path(directory)
    kept = []
    for name in sorted(dirs):
      path = here / name
      if path.resolve() == exclude or name.startswith(f".{exclude.name}.tmp-"):
        continue
      if name.startswith("."):
        counts.skip("hidden", str(path))
      elif name in CACHE_DIRS or (path / "CACHEDIR.TAG").exists():
        counts.skip("cache", str(path))
      elif path.is_symlink():  # could lead in a circle
        counts.skip("linked directory", str(path))
      else:
        kept.append(name)
    dirs[:] = kept
    for name in sorted(files):
      path = here / name
      if name.startswith("."):
        counts.skip("hidden", str(path))
        continue
      try:
        regular = stat.S_ISREG(path.stat().st_mode)
      except OSError:
        counts.skip("unreadable", str(path))  # a broken link
        continue
      if regular:
        yield path
      else:
        counts.skip("not a regular file", str(path))  # a pipe would block for ever


@contextlib.contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
  """The decompressed bytes of a file, as a stream."""
  extension = path.suffix.lower()
  with path.open("rb") as raw:
    if extension == ".gz":
      yield typing.cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    elif extension == ".bz2":
      yield typing.cast(BinaryIO, bz2.BZ2File(raw))
    elif extension == ".xz":
      with lzma.LZMAFile(raw) as stream:
        yield typing.cast(BinaryIO, stream)
    elif extension == ".zst":
      yield typing.cast(BinaryIO, io.BufferedReader(_Zstd(raw)))
    else:
      yield raw


class _Zstd(io.RawIOBase):
  """A .zst of one or several frames. EOFError where it was cut short.

  zstandard's own stream_reader ends a truncated file like a complete one: text would be lost
  without a word.
  """

  def __init__(self, raw: BinaryIO):
    self._raw = raw
    self._frame = zstandard.ZstdDecompressor().decompressobj()
    self._started = False  # the frame at hand has seen input
    self._input = b""
    self._output = b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: typing.Any) -> int:
    while not self._output:
      if not self._input:
        self._input = self._raw.read(1 << 14)
        if not self._input:
          if self._started:
            raise EOFError("the compressed file ends in the middle of a frame")
          return 0
      self._started = True
      self._output = self._frame.decompress(self._input)
      self._input = b""
      if self._frame.eof:
        self._input = self._frame.unused_data
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._started = False
    size = min(len(buffer), len(self._output))
    buffer[:size] = self._output[:size]
    self._output = self._output[size:]
    return size


def pieces(stream: BinaryIO, separator: bytes | None, max_bytes: int) -> Iterator[bytes]:
  """The documents of a plain text stream; concatenated (with separators) they are the stream.

  Args:
    separator: ends a document and is removed; None: the stream is one document.
    max_bytes: longer documents are cut after the last line end that fits, or after the last
      whole UTF-8 character where a line is longer than that.
  """
  buffer = bytearray()
  searched = 0
  ended = False
  while not ended or buffer:
    if separator is not None:
      at = buffer.find(separator, max(0, searched - len(separator)), max_bytes + len(separator))
      if at >= 0:
        yield bytes(buffer[:at])
        del buffer[: at + len(separator)]
        searched = 0
        continue
      searched = min(len(buffer), max_bytes)
    # One byte more than the limit tells whether the document is longer than it.
    if ended or len(buffer) > max_bytes + len(separator or b""):
      if len(buffer) <= max_bytes:
        yield bytes(buffer)
        return
      end = buffer.rfind(b"\n", 0, max_bytes) + 1 or _character_end(buffer, max_bytes)
      yield bytes(buffer[:end])
      del buffer[:end]
      searched = 0
      continue
    block = stream.read(_BLOCK)
    ended = not block
    buffer += block


def _character_end(data: bytearray, limit: int) -> int:
  """The last position <= limit that does not cut a UTF-8 character in two."""
  end = limit
  while end > limit - 4 and end > 0 and data[end] & 0xC0 == 0x80:
    end -= 1
  return end or limit


def lines(stream: BinaryIO, file: Path, max_bytes: int = 1 << 28) -> Iterator[bytes]:
  """Lines of a stream. UserError for a line of more than max_bytes (not JSON lines, surely)."""
  number = 0
  while line := stream.readline(max_bytes + 1):
    number += 1
    if len(line) > max_bytes:
      raise UserError(
        f"{file}:{number}: a line of more than {max_bytes} bytes; one JSON object a line is read"
      )
    yield line

"""Common Crawl's archives: the pages of WARC files, the texts of WET files."""

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxlm.data.prep import files
from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source, damaged
from jaxlm.data.stages.sources.config import SourceConfig, WarcSourceConfig
from jaxlm.data.stages.sources.languages import iso_639_1
from jaxlm.errors import UserError

_HTML = b"<!doctype html", b"<html", b"<head", b"<body"
# What may stand before the first tag.
_COMMENTS = re.compile(rb"^(?:\xef\xbb\xbf|\s+|<!--.*?-->)*", re.DOTALL)
_END = b"\r\n\r\n"
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_C = TypeVar("_C", bound=SourceConfig)


class ArchiveSource(Source[_C]):
  """WARC and WET files, every record accounted for.

  A response is kept as a page by its Content-Type or, where that says nothing, by how it begins:
  XHTML that begins as XML and records whose payload type nobody identified are not lost. Records
  of the type `conversion` (WET) are texts. Requests, metadata and the archive's own headers are
  counted apart: they are no documents.
  """

  extensions = (".warc", ".warc.gz", ".wet", ".wet.gz")

  def read(self, file: Path) -> Iterator[Document]:
    from fastwarc.warc import ArchiveIterator

    number = 0
    with file.open("rb") as raw:
      packed = raw.read(2) == b"\x1f\x8b"
      raw.seek(0)
      # fastwarc takes an archive that is cut short for one that ends; gzip does not.
      stream: Any = _Tail(gzip.GzipFile(fileobj=raw) if packed else raw)
      try:
        for record in ArchiveIterator(stream, parse_http=False, stream_detect=False):
          number += 1
          where = f"{file}#{number}"
          said = record.headers.get("Content-Length")
          record.freeze()
          if said is not None and record.content_length != int(said):
            raise damaged(file, f"record {number} is cut short")
          yield from self._record(record, where)
        if number and not stream.tail.endswith(_END):
          raise damaged(file, f"cut short after record {number}")
      except UserError:
        raise
      except (*files.BROKEN_STREAM, ValueError) as error:
        raise damaged(file, error) from None
    if not number:
      self.counts.meet()
      self.counts.skip("empty file", str(file))

  def _record(self, record: Any, where: str) -> Iterator[Document]:
    headers = record.headers
    kind = _kind(record)
    url = headers.get("WARC-Target-URI") or where
    origin = {"url": url, "date": headers.get("WARC-Date")}
    identity = headers.get("WARC-Record-ID") or where
    if kind == "conversion":
      self.counts.meet()
      claimed = (headers.get("WARC-Identified-Content-Language") or "").split(",")[0]
      origin["language"] = iso_639_1(claimed)
      try:
        text = record.reader.read().decode()
      except UnicodeDecodeError as error:
        self.undecodable(where, f"not UTF-8 at byte {error.start}")
      else:
        yield from self._kept(identity, text, origin)
    elif kind in ("response", "resource"):
      self.counts.meet()
      yield from self._page(record, where, identity, origin)
    elif kind == "revisit":
      self.counts.meet()
      self.counts.skip("revisit", where)
    else:
      self.counts.other[f"{kind} record"] += 1

  def _page(self, record: Any, where: str, identity: str, origin: dict) -> Iterator[Document]:
    kind = record.headers.get("Content-Type") or ""
    charset = None
    encodings: tuple[str, ...] = ()
    if record.is_http and _kind(record) == "response":
      record.parse_http(auto_decode="none")
      status = record.http_headers.status_code
      if status is not None and not 200 <= status < 300:
        self.counts.skip("not status 200", where)
        return
      kind, charset = record.http_headers.get("Content-Type") or "", record.http_charset
      said = (record.http_headers.get(f"{name}-Encoding") for name in ("Transfer", "Content"))
      encodings = tuple(one.strip().lower() for one in ",".join(s or "" for s in said).split(","))
    elif _kind(record) == "response":  # of another protocol: what it says is not known
      kind = ""
    data = decode_body(record.reader.read(), encodings)
    if data is None:
      self.counts.skip("unknown content encoding", where)
    elif not data.strip():
      self.counts.skip("empty", where)
    elif is_page(kind, data):
      yield from self._kept(identity, decode_page(data, charset), {**origin, "format": "html"})
    else:
      self.counts.skip("not HTML", where)

  def _kept(self, identity: str, text: str, origin: dict) -> Iterator[Document]:
    yield Document(identity, text, {**origin, "id": identity})


class WarcSource(ArchiveSource[WarcSourceConfig]):
  """Archives on disk."""


class _Tail:
  """A stream that remembers the last bytes read. No io class: fastwarc would try to seek in it."""

  def __init__(self, stream: Any):
    self._stream = stream
    self._read = 0
    self.tail = b""

  def tell(self) -> int:
    return self._read

  def read(self, size: int = -1) -> bytes:
    data: bytes = self._stream.read(size)
    if data:
      self._read += len(data)
      self.tail = (self.tail + data[-len(_END) :])[-len(_END) :]
    return data


def _kind(record: Any) -> str:
  return (record.headers.get("WARC-Type") or "unknown").lower()


def is_page(kind: str, data: bytes) -> bool:
  """Whether content of a declared type is an HTML or XHTML page."""
  kind = kind.split(";")[0].strip().lower()
  if "html" in kind:
    return True
  begin = _COMMENTS.sub(b"", data[:4096]).lower()
  if kind in ("text/xml", "application/xml"):
    return b"<html" in begin
  silent = kind in ("", "application/octet-stream", "text/plain", "unk", "unknown/unknown")
  if silent and begin.startswith(b"<?xml"):
    return b"<html" in begin
  return silent and begin.startswith(_HTML)


def decode_body(data: bytes, encodings: Sequence[str]) -> bytes | None:
  """An HTTP body without the encodings that its headers name, in their order from the outside.

  Archives often keep the headers of bodies that they have decoded: what does not fit is left as it
  is. None: an encoding that is not known here.
  """
  for encoding in encodings:
    if encoding in ("", "identity"):
      continue
    if encoding == "chunked":
      data = _without_chunks(data)
    elif encoding in ("gzip", "x-gzip", "deflate"):
      data = _inflated(data)
    elif encoding == "br":
      if is_page("", data):
        continue
      try:
        import brotli

        data = brotli.decompress(data)
      except ImportError:
        return None
      except brotli.error:
        continue
    elif not is_page("", data):
      return None
  return data


def _without_chunks(data: bytes) -> bytes:
  parts: list[bytes] = []
  at = 0
  while found := _CHUNK.match(data, at):
    size = int(found.group(1), 16)
    if not size:
      return b"".join(parts)
    parts.append(data[found.end() : found.end() + size])
    at = found.end() + size + 2
  # Without a first chunk it was decoded before; with one, the rest was cut off by the crawler.
  return b"".join(parts) if parts else data


def _inflated(data: bytes) -> bytes:
  for window in (47, -15):  # gzip or zlib by what it holds; bare deflate
    inflater = zlib.decompressobj(window)
    try:
      return inflater.decompress(data)
    except zlib.error:
      continue
  return data


def decode_page(data: bytes, charset: str | None = None) -> str:
  """The text of a page: by the declared character set where it fits, else by what it holds."""
  from resiliparse.parse.encoding import bytes_to_str, detect_encoding

  if charset:
    try:
      return data.decode(charset)
    except (LookupError, UnicodeDecodeError):
      pass
  text: str = bytes_to_str(data, detect_encoding(data) or "utf-8")
  return text

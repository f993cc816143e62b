"""HTML pages of WARC archives, every record accounted for."""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Counts, Document
from jaxlm.errors import UserError

HTML = b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body"


# What may stand before the first tag.
_COMMENTS = re.compile(rb"^(?:\xef\xbb\xbf|\s+|<!--.*?-->)*", re.DOTALL)


class WarcCorpus:
  """The HTML responses of WARC files, as pages.

  What is no HTML is skipped and counted by reason. A record counts as HTML by its Content-Type or,
  without one, by how it begins: XHTML that begins as XML, and records whose payload type nobody
  identified, are not lost.
  """

  def __init__(self, paths: tuple[str, ...]):
    self.counts = Counts()
    self._files = sorted(file for path in paths for file in _files(Path(path)))

  def fingerprint(self) -> str:
    """Of the files' names, sizes and times."""
    states = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in self._files]
    return hashlib.sha256(repr(states).encode()).hexdigest()

  def documents(self) -> Iterator[Document]:
    """The pages, in the order of the files."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    for file in self._files:
      number = 0
      try:
        # warcio takes a file that is cut short for one that ends.
        if file.suffix == ".gz":
          with gzip.open(file) as whole:
            while whole.read(1 << 20):
              pass
        with file.open("rb") as stream:
          for record in ArchiveIterator(stream):
            number += 1
            yield from self._page(record, f"{file}#{number}")
      except (ArchiveLoadFailed, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}: damaged ({error}); fetch it again") from None
      if not number:
        self.counts.skip("empty file", str(file))
      self.counts.files_read += 1

  def _page(self, record: Any, where: str) -> Iterator[Document]:
    if record.rec_type != "response":
      if record.rec_type == "revisit":
        self.counts.skip("revisit", where)
      return  # requests, metadata and headers of the archive are no documents
    status = record.http_headers.get_statuscode() if record.http_headers else "200"
    if status and not status.startswith("2"):
      self.counts.skip("not status 200", where)
      return
    data = record.content_stream().read()
    kind = (record.http_headers.get_header("Content-Type") or "") if record.http_headers else ""
    if not data.strip():
      self.counts.skip("empty", where)
    elif not ("html" in kind.lower() or (_says_nothing(kind) and _looks_like_html(data))):
      self.counts.skip("not HTML", where)
    else:
      from resiliparse.parse.encoding import bytes_to_str, detect_encoding

      text = bytes_to_str(data, detect_encoding(data) or "utf-8")
      headers = record.rec_headers
      origin = {
        "url": headers.get_header("WARC-Target-URI") or where,
        "date": headers.get_header("WARC-Date") or "",
        "format": "html",
      }
      yield Document(headers.get_header("WARC-Record-ID") or where, text, origin)


def _looks_like_html(data: bytes) -> bool:
  return _COMMENTS.sub(b"", data[:4096]).lower().startswith(HTML)


def _says_nothing(kind: str) -> bool:
  return kind.split(";")[0].strip().lower() in ("", "application/octet-stream", "text/plain")


def _files(path: Path) -> list[Path]:
  if path.is_dir():
    found = [f for f in path.rglob("*") if f.name.endswith((".warc", ".warc.gz"))]
  else:
    found = [path] if path.exists() else []
  if not found:
    raise UserError(f"{path}: no WARC file there (.warc, .warc.gz)")
  return found

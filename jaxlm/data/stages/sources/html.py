"""HTML files of folders, kept as pages."""

import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source, open_bytes
from jaxlm.data.stages.sources.config import HtmlSourceConfig
from jaxlm.data.stages.sources.warc import decode_page

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_TAG = re.compile(r"<(link|meta|html)\b([^>]*)>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([\w:-]+)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""")
_DATES = ("article:published_time", "date", "dc.date", "dcterms.date", "citation_publication_date")


class HtmlSource(Source[HtmlSourceConfig]):
  """A page for each file."""

  extensions = tuple(f".{kind}{end}" for kind in ("html", "htm", "xhtml") for end in _PACKED)

  def read(self, file: Path) -> Iterator[Document]:
    self.counts.meet()
    with open_bytes(file) as stream:
      data = stream.read()
    if not data.strip():
      self.counts.skip("empty", str(file))
      return
    if b"\0" in data[:1024] and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
      self.counts.skip("binary", str(file))
      return
    text = decode_page(data)
    origin = {"format": "html", **_about(text[:20_000])}
    if self.config.base_url:
      origin["url"] = self._url(file)
    yield Document(str(file), text, origin)

  def _url(self, file: Path) -> str:
    roots = (Path(name).expanduser() for name in self.config.paths)
    below = next((file.relative_to(r) for r in roots if r in file.parents), Path(file.name))
    return urllib.parse.urljoin(self.config.base_url, urllib.parse.quote(below.as_posix()))


def _about(head: str) -> dict[str, str]:
  """What a page says of itself: its canonical url, its date, its language."""
  found: dict[str, str] = {}
  for tag, inside in _TAG.findall(head):
    values = {k.lower(): v.strip("\"'") for k, v in _ATTRIBUTE.findall(inside)}
    kind = tag.lower()
    if kind == "html" and (values.get("lang") or values.get("xml:lang")):
      found.setdefault("language", (values.get("lang") or values["xml:lang"]).split("-")[0].lower())
    elif kind == "link" and values.get("rel", "").lower() == "canonical":
      found.setdefault("url", values.get("href", ""))
    elif kind == "link" and values.get("rel", "").lower() == "license":
      found.setdefault("licence", values.get("href", ""))
    elif kind == "meta" and (values.get("property") or values.get("name", "")).lower() in _DATES:
      found.setdefault("date", values.get("content", ""))
  return found

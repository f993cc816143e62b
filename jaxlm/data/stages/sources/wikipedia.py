"""Articles of Wikipedia's XML dumps."""

import collections
import re
import urllib.parse
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source, damaged, open_bytes
from jaxlm.data.stages.sources.config import WikipediaConfig
from jaxlm.data.stages.sources.wikitext import to_text
from jaxlm.errors import UserError

# Large wikis come in parts: …-pages-articles1.xml-p1p41242.bz2
_NAME = re.compile(r"\.xml(-p\d+p\d+)?(\.(bz2|gz|xz|zst))?$")
# Namespaces of every wiki, beside those that its dump names in its own language.
_NAMESPACES = ("file", "image", "media", "category", "special", "template", "mediawiki", "module")
_LANGUAGE_LINK = re.compile(r"\[\[[a-z]{2,3}(?:-[a-z]{2,8})?:[^\[\]|]+\]\]\n?")


class WikipediaSource(Source[WikipediaConfig]):
  """The pages of namespace 0 in their last revision; redirects and other pages are counted."""

  def takes(self, file: Path) -> bool:
    return bool(_NAME.search(file.name.lower()))

  def read(self, file: Path) -> Iterator[Document]:
    import mwparserfromhell  # noqa: F401  an absent package is no page that can not be parsed
    import mwxml
    from mwxml.errors import MalformedXML

    with open_bytes(file) as stream:
      if not stream.read(1):
        self.counts.meet()
        self.counts.skip("empty file", str(file))
        return
    number = 0
    with open_bytes(file) as stream:
      try:
        dump = mwxml.Dump.from_file(stream)
        site = _Site(dump.site_info)
        for page in dump:
          number += 1
          yield from self._page(page, site, file)
      except UserError:
        raise
      except (xml.etree.ElementTree.ParseError, MalformedXML, AssertionError, ValueError) as error:
        raise damaged(file, f"after page {number}: {error}") from None
    if not number:
      self.counts.meet()
      self.counts.skip("no pages", str(file))

  def _page(self, page: Any, site: "_Site", file: Path) -> Iterator[Document]:
    self.counts.meet()
    where = f"{file}#{page.title}"
    # A dump of histories holds several revisions, the newest last.
    last = next(iter(collections.deque(page, maxlen=1)), None)
    if page.namespace != 0:
      self.counts.skip("not an article", where)
    elif page.redirect is not None:
      self.counts.skip("redirect", where)
    elif last is None or not (last.text or "").strip():
      self.counts.skip("empty", where)
    elif last.model not in (None, "wikitext"):
      self.counts.skip("not wikitext", where)
    else:
      try:
        text = to_text(_LANGUAGE_LINK.sub("", last.text), site.namespaces)
      except Exception as error:  # of the parser, on one page among millions
        self.counts.skip(f"unparseable ({type(error).__name__})", where)
        return
      if not text:
        self.counts.skip("no text", where)
        return
      identity = f"{site.name}/{page.id}"
      origin = {
        "id": identity,
        "url": site.url(page.title),
        "title": page.title,
        "date": str(last.timestamp) if last.timestamp else "",
        "revision": last.id,
        "language": site.language,
      }
      yield Document(identity, f"{page.title}\n\n{text}", origin)


class _Site:
  """What a dump says of its wiki."""

  def __init__(self, info: Any):
    base = info.base or ""
    self.name = info.dbname or urllib.parse.urlsplit(base).hostname or "wiki"
    self._prefix = base.rpartition("/")[0]
    host = urllib.parse.urlsplit(base).hostname or ""
    code = host.split(".")[0] if host.count(".") >= 2 else ""
    self.language = {"simple": "en", "www": "", "commons": ""}.get(code, code)
    named = [n.name for n in info.namespaces or [] if n.id != 0]
    self.namespaces = frozenset(n.lower() for n in [*named, *_NAMESPACES] if n)

  def url(self, title: str) -> str:
    """The address of a page, as the wiki writes it."""
    if not self._prefix:
      return ""
    return f"{self._prefix}/{urllib.parse.quote(title.replace(' ', '_'), safe=',;:/()!*@$~')}"

"""Books in EPUB: the chapters in the order in which they are read."""

import posixpath
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source
from jaxlm.data.stages.sources.config import EpubSourceConfig
from jaxlm.data.stages.sources.languages import iso_639_1
from jaxlm.data.stages.sources.warc import decode_page

_FONT = ("font", "obfuscation")
_MAX_CHAPTER = 1 << 26


class EpubSource(Source[EpubSourceConfig]):
  """A document for each book. Damaged books and those with copy protection are counted."""

  extensions = (".epub",)

  def read(self, file: Path) -> Iterator[Document]:
    from lxml import etree

    self.counts.meet()
    try:
      with zipfile.ZipFile(file) as book:
        if _is_protected(book):
          self.counts.skip("encrypted", str(file))
          return
        package = _package(book)
        about = _about(package[1], str(file))
        chapters = self._chapters(book, *package)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, OSError, etree.XMLSyntaxError) as e:
      self.counts.skip("damaged EPUB", f"{file} ({' '.join(str(e).split())[:100]})")
      return
    except (NotImplementedError, RuntimeError) as error:  # a method or password of the archive
      self.counts.skip("encrypted", f"{file} ({error})")
      return
    text = "\n\n".join(chapters)
    if not text:
      self.counts.skip("no text", str(file))
      return
    yield Document(str(file), text, about)

  def _chapters(self, book: zipfile.ZipFile, folder: str, package: Any) -> list[str]:
    from resiliparse.extract.html2text import extract_plain_text

    manifest = {
      item.get("id"): item
      for item in package.iterfind("{*}manifest/{*}item")
      if "html" in (item.get("media-type") or "") and "nav" not in (item.get("properties") or "")
    }
    found = []
    for place in package.iterfind("{*}spine/{*}itemref"):
      item = manifest.get(place.get("idref"))
      if item is None:
        continue
      name = posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(item.get("href"))))
      if book.getinfo(name).file_size > _MAX_CHAPTER:
        self.counts.other["chapter too large"] += 1
        continue
      page = decode_page(book.read(name))
      text = extract_plain_text(page, main_content=False, alt_texts=False, links=False).strip()
      if text:
        found.append(text)
      else:
        self.counts.other["chapter without text"] += 1
    return found


def _is_protected(book: zipfile.ZipFile) -> bool:
  """Whether more than its fonts are encrypted."""
  if "META-INF/encryption.xml" not in book.namelist():
    return False
  root = _xml(book.read("META-INF/encryption.xml"))
  methods = [e.get("Algorithm", "").lower() for e in root.iter("{*}EncryptionMethod")]
  return any(not any(word in method for word in _FONT) for method in methods)


def _package(book: zipfile.ZipFile) -> tuple[str, Any]:
  """(the folder of the package document, its root)."""
  container = _xml(book.read("META-INF/container.xml"))
  rootfile = next(container.iter("{*}rootfile"), None)
  if rootfile is None or not rootfile.get("full-path"):
    raise KeyError("no package document")
  path = rootfile.get("full-path")
  return posixpath.dirname(path), _xml(book.read(path))


def _about(package: Any, where: str) -> dict[str, str]:
  def one(name: str) -> str:
    found = package.find(f"{{*}}metadata/{{http://purl.org/dc/elements/1.1/}}{name}")
    return " ".join((found.text or "").split()) if found is not None else ""

  return {
    "id": one("identifier") or where,
    "title": one("title"),
    "date": one("date"),
    "licence": one("rights")[:200],
    "language": iso_639_1(one("language")),
  }


def _xml(data: bytes) -> Any:
  from lxml import etree

  parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
  return etree.fromstring(data, parser)

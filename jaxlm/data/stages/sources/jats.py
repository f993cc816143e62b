"""Articles in JATS XML, the format of PubMed Central and many publishers."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources import archives
from jaxlm.data.stages.sources.base import Source
from jaxlm.data.stages.sources.config import JatsSourceConfig
from jaxlm.data.stages.sources.languages import iso_639_1

_HREF = "{http://www.w3.org/1999/xlink}href"
_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_OUT = (
  "table table-wrap table-wrap-foot graphic media supplementary-material ref-list fn-group"
  " object-id inline-graphic inline-supplementary-material fig-group"
)
_LEFT_OUT = frozenset(_OUT.split())
_IN = (
  "sec body abstract trans-abstract list list-item disp-quote boxed-text statement app fig"
  " caption def-list def-item def verse-group speech disp-formula-group"
)
_BLOCKS = frozenset(_IN.split())
_TEX_BODY = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)
_CC = re.compile(
  r"creativecommons\.org/(?:licenses/([a-z-]+)/([0-9.]+)|publicdomain/zero/([0-9.]+))"
)
_CC_NAME = re.compile(
  r"creative commons (attribution(?:[ -](?:non-?commercial|share-?alike|no-?deriv\w*))*)"
  r"(?:[^.]{0,60}?\b([1-4]\.0))?",
  re.IGNORECASE,
)


class JatsSource(Source[JatsSourceConfig]):
  """Title, abstract and body of each article; references, tables and figures' pictures left out."""

  extensions = (".xml", ".nxml", ".xml.gz", ".nxml.gz", *archives.TAR, ".zip")

  def read(self, file: Path) -> Iterator[Document]:
    if archives.is_archive(file):
      number = 0
      for entry in archives.entries(file, self.counts):
        if entry.name.lower().endswith((".xml", ".nxml")):
          number += 1
          yield from self._article(entry.read(), f"{file}#{entry.name}")
        else:
          self.counts.other["other file of an archive"] += 1
      if not number:
        self.counts.meet()
        self.counts.skip("no articles", str(file))
      return
    from jaxlm.data.stages.sources.base import open_bytes

    with open_bytes(file) as stream:
      data = stream.read()
    yield from self._article(data, str(file))

  def _article(self, data: bytes, where: str) -> Iterator[Document]:
    from lxml import etree

    self.counts.meet()
    if not data.strip():
      self.counts.skip("empty", where)
      return
    # Entities of the DTD stay as they are written: nothing is fetched or expanded.
    parser = etree.XMLParser(
      resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True, remove_comments=True
    )
    try:
      root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
      self.counts.skip("broken XML", f"{where} ({' '.join(str(error).split())[:100]})")
      return
    article = root if _tag(root) == "article" else next(root.iter("{*}article"), None)
    if article is None:
      self.counts.skip("not an article", where)
      return
    front = article.find("{*}front/{*}article-meta")
    title = _first(front, "{*}title-group/{*}article-title")
    parts = [title]
    for abstract in front.findall("{*}abstract") if front is not None else ():
      parts += _blocks(abstract)
    body = article.find("{*}body")
    if body is not None:
      parts += _blocks(body)
    elif len(parts) > 1:
      self.counts.other["article without a body"] += 1
    text = "\n\n".join(part for part in parts if part)
    if not text or text == title:
      self.counts.skip("no text", where)
      return
    yield Document(where, text, _about(article, front, title, where))


def _about(article: Any, front: Any, title: str, where: str) -> dict[str, Any]:
  ids = {}
  if front is not None:
    ids = {e.get("pub-id-type"): _text(e) for e in front.findall("{*}article-id")}
  pmc = ids.get("pmc") or ids.get("pmcid") or ""
  pmc = pmc if not pmc or pmc.startswith("PMC") else f"PMC{pmc}"
  doi = ids.get("doi", "")
  url = f"https://doi.org/{doi}" if doi else ""
  if pmc and not url:
    url = f"https://www.ncbi.nlm.nih.gov/pmc/articles/{pmc}/"
  return {
    "id": pmc or (f"doi:{doi}" if doi else where),
    "url": url,
    "title": title,
    "date": _date(front),
    "licence": _licence(front),
    "language": iso_639_1(article.get(_LANG) or ""),
  }


def _date(front: Any) -> str:
  """The earliest publication date, as far as it is given."""
  found = []
  for date in front.findall("{*}pub-date") if front is not None else ():
    parts = [_first(date, f"{{*}}{name}") for name in ("year", "month", "day")]
    if parts[0].isdigit():
      kept = parts[: 1 + parts[1].isdigit() + (parts[1].isdigit() and parts[2].isdigit())]
      found.append("-".join(p.zfill(2) for p in kept))
  return min(found, default="")


def _licence(front: Any) -> str:
  """SPDX of a Creative Commons licence; else the address or the type that stands there."""
  if front is None:
    return ""
  said = ""
  for licence in front.iterfind("{*}permissions/{*}license"):
    hrefs = [licence.get(_HREF) or ""]
    hrefs += [e.get(_HREF) or "" for e in licence.iter("{*}ext-link")]
    hrefs += [_text(e) for e in licence.iter("{*}license_ref")]
    text = _text(licence)
    for place in (*hrefs, text):
      found = _CC.search(place)
      if found:
        kind, version, zero = found.groups()
        return f"CC0-{zero}" if zero else f"CC-{kind.upper()}-{version}"
    named = _CC_NAME.search(text)
    if named:
      return _creative_commons(*named.groups())
    said = said or next((h for h in hrefs if h), "") or licence.get("license-type") or ""
  return said


def _creative_commons(name: str, version: str | None) -> str:
  name = name.lower().replace("-", "")
  parts = ["CC", "BY"]
  parts += ["NC"] * ("noncommercial" in name.replace(" ", ""))
  parts += ["ND"] * ("noderiv" in name.replace(" ", ""))
  parts += ["SA"] * ("sharealike" in name.replace(" ", ""))
  return "-".join([*parts, *([version] if version else [])])


def _blocks(element: Any) -> list[str]:
  """Headings and paragraphs in their order."""
  found = []
  for child in element:
    tag = _tag(child)
    if tag in _BLOCKS:
      inner = _blocks(child)
      if tag == "list-item" and inner:
        inner[0] = f"- {inner[0]}"
      found += ["\n".join(inner)] if tag == "list" else inner
    elif tag in ("title", "p", "label", "term", "disp-formula", "verse-line", "code", "preformat"):
      text = "" if tag == "label" else _text(child)
      if text:
        found.append(text)
  return found


def _text(element: Any) -> str:
  pieces: list[str] = []
  _collect(element, pieces)
  return " ".join("".join(pieces).split())


def _collect(element: Any, pieces: list[str]) -> None:
  pieces.append(element.text or "")
  for child in element:
    tag = _tag(child)
    if tag == "":  # an entity or an instruction
      text = child.text or ""
      pieces.append(html.unescape(text) if text.startswith("&") else "")
    elif tag == "tex-math":
      body = _TEX_BODY.search(child.text or "")
      pieces.append(body.group(1).strip() if body else (child.text or ""))
    elif tag == "alternatives" and child.find("{*}tex-math") is not None:
      _collect_one(child.find("{*}tex-math"), pieces)
    elif not (tag == "xref" and child.get("ref-type") in ("bibr", "fn")) and tag not in _LEFT_OUT:
      _collect(child, pieces)
    pieces.append(child.tail or "")


def _collect_one(math: Any, pieces: list[str]) -> None:
  body = _TEX_BODY.search(math.text or "")
  pieces.append(body.group(1).strip() if body else (math.text or ""))


def _first(element: Any, path: str) -> str:
  found = element.find(path) if element is not None else None
  return _text(found) if found is not None else ""


def _tag(element: Any) -> str:
  return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""

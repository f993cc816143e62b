"""The text layer of PDF files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source
from jaxlm.data.stages.sources.config import PdfSourceConfig

_HYPHEN = re.compile(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])")  # a word divided at a line's end
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl"}
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class PdfSource(Source[PdfSourceConfig]):
  """A document for each file; those without text, damaged and encrypted ones are counted."""

  extensions = (".pdf",)

  def read(self, file: Path) -> Iterator[Document]:
    import logging

    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    self.counts.meet()
    where = str(file)
    if not file.stat().st_size:
      self.counts.skip("empty file", where)
      return
    try:
      with file.open("rb") as stream:
        reader = PdfReader(stream)
        if reader.is_encrypted and not reader.decrypt(""):
          self.counts.skip("encrypted", where)
          return
        pages = [self._page(page) for page in reader.pages]
        about = _about(reader)
    except (PyPdfError, OSError) as error:
      # AES without the package cryptography also ends here, as a DependencyError below.
      self.counts.skip("damaged PDF", f"{where} ({error})")
      return
    except Exception as error:  # pypdf lets KeyError, RecursionError and others through
      encrypted = type(error).__name__ == "DependencyError"
      self.counts.skip("encrypted" if encrypted else "damaged PDF", f"{where} ({error})")
      return
    blank = sum(not text for text in pages)
    self.counts.other["page without text"] += blank
    self.counts.other["page"] += len(pages)
    text = "\n\n".join(text for text in pages if text)
    if not text:
      self.counts.skip("no text layer", where)
      return
    about |= {"pages": len(pages), "pages_without_text": blank}
    yield Document(where, text, about)

  def _page(self, page: Any) -> str:
    text: str = page.extract_text() or ""
    text = _SURROGATE.sub("\ufffd", text).translate(_LIGATURES)
    return _HYPHEN.sub("", text).strip()


def _about(reader: Any) -> dict[str, Any]:
  found: dict[str, Any] = {}
  try:
    information = reader.metadata
    if information is not None:
      found["title"] = str(information.title or "").strip()
      date = information.creation_date
      found["date"] = date.isoformat() if date else ""
  except Exception:  # dates are written in many ways, none of which is worth a document
    pass
  return found

"""Papers as LaTeX sources: .tex files, and archives as arXiv hands them out."""

import gzip
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxlm.data.prep import files
from jaxlm.data.prep.documents import Counts, Document
from jaxlm.data.stages.sources import archives, latex_text
from jaxlm.data.stages.sources.base import Source, damaged, open_bytes
from jaxlm.data.stages.sources.config import LatexSourceConfig

_TEX = (".tex", ".ltx", ".latex")
_ARXIV = re.compile(r"^(\d{4}\.\d{4,5}|[a-z-]+\d{7})(v\d+)?$")
_MAX_FILE = 20_000_000


class LatexSource(Source[LatexSourceConfig]):
  """A document for each archive, and for each .tex file that is a whole one."""

  extensions = (*_TEX, *archives.TAR, ".zip", ".gz")

  def read(self, file: Path) -> Iterator[Document]:
    import pylatexenc.latexwalker  # noqa: F401  an absent package is no paper that can't be parsed

    name = file.name.lower()
    if name.endswith(_TEX):
      yield from self._single(file)
    elif archives.is_archive(file):
      yield from self._archive(file)
    elif name.endswith(".gz"):
      yield from self._gz(file)
    else:
      self.counts.meet()
      self.counts.skip("extension", str(file))

  def _single(self, file: Path) -> Iterator[Document]:
    """A file of a folder; what it includes is looked for below its own folder."""
    self.counts.meet()
    source = self._decode(file.read_bytes())
    if not source.strip():
      self.counts.skip("empty", str(file))
    elif not latex_text.is_whole(latex_text.without_comments(source)):
      self.counts.skip("no document of its own", str(file))  # most are included by another
    else:
      yield from self._paper(file, file.name, _Folder(file, source, self))

  def _archive(self, file: Path) -> Iterator[Document]:
    self.counts.meet()
    sources = {}
    for entry in archives.entries(file, Counts()):
      if entry.name.lower().endswith(_TEX) and entry.size <= _MAX_FILE:
        sources[entry.name] = self._decode(entry.read())
    hint = file.name.split(".")[0]
    main = latex_text.main_file(sources, hint)
    if main is None:
      self.counts.skip("no LaTeX document", str(file))
    else:
      yield from self._paper(file, main, sources)

  def _gz(self, file: Path) -> Iterator[Document]:
    """arXiv's .gz holds a tar archive, or a lone .tex, without saying so in its name."""
    with open_bytes(file) as stream:
      data = stream.read(_MAX_FILE + 1)
    if data[257:262] == b"ustar":
      sources = {}
      self.counts.meet()
      try:
        with gzip.open(file) as packed, tarfile.open(fileobj=io.BytesIO(packed.read())) as tar:
          for member in tar:
            inside = tar.extractfile(member) if member.isreg() else None
            if inside is not None and member.name.lower().endswith(_TEX):
              sources[member.name.removeprefix("./")] = self._decode(inside.read(_MAX_FILE))
      except (*files.BROKEN_STREAM, tarfile.TarError) as error:
        raise damaged(file, error) from None
      main = latex_text.main_file(sources, file.stem)
      if main is None:
        self.counts.skip("no LaTeX document", str(file))
      else:
        yield from self._paper(file, main, sources)
      return
    self.counts.meet()
    if len(data) > _MAX_FILE or b"\0" in data[:8192] or data[:5] == b"%PDF-":
      self.counts.skip("no LaTeX document", str(file))
      return
    source = self._decode(data)
    if not latex_text.is_whole(latex_text.without_comments(source)):
      self.counts.skip("no LaTeX document", str(file))
      return
    yield from self._paper(file, "main.tex", {"main.tex": source})

  def _paper(self, file: Path, main: str, sources: Mapping[str, str]) -> Iterator[Document]:
    try:
      expanded, missing = latex_text.expand(main, sources)
      title, text = latex_text.to_text(expanded)
    except Exception as error:  # of the parser, on one paper among many
      self.counts.skip(f"unparseable ({type(error).__name__})", str(file))
      return
    if not text:
      self.counts.skip("no text", str(file))
      return
    origin = {"title": title, "main_file": main, "id": str(file)}
    if missing:
      origin["missing_inputs"] = str(missing)
      self.counts.other["missing input"] += missing
    named = _ARXIV.match(file.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz"))
    if named:
      origin["id"] = f"arxiv:{named.group(0)}"
      origin["url"] = f"https://arxiv.org/abs/{named.group(0)}"
    yield Document(str(file), f"{title}\n\n{text}" if title else text, origin)

  def _decode(self, data: bytes) -> str:
    try:
      return data.decode("utf-8-sig")
    except UnicodeDecodeError:  # sources before about 2010; every byte is a character in Latin-1
      self.counts.other["file read as Latin-1"] += 1
      return data.decode("latin-1")


class _Folder(dict[str, str]):
  """The files beside and below a .tex file, by their path from its folder, read when asked for."""

  def __init__(self, file: Path, source: str, reader: LatexSource):
    super().__init__({file.name: source})
    self._root = file.parent
    self._reader = reader

  def __contains__(self, name: object) -> bool:
    if super().__contains__(name):
      return True
    path = self._root / str(name)
    inside = not str(name).startswith(("..", "/")) and path.resolve().is_relative_to(
      self._root.resolve()
    )
    return inside and path.is_file() and path.stat().st_size <= _MAX_FILE

  def __missing__(self, name: str) -> str:
    self[name] = self._reader._decode((self._root / name).read_bytes())
    return self[name]

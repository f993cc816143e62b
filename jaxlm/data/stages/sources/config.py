"""Configs of the sources of `collect`. Each builds the reader of one kind of material."""

import dataclasses
import enum
import typing

from jaxlm.data.prep.config import CorpusConfig
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.prep.documents import Corpus


class Long(enum.Enum):
  """What becomes of a document over max_doc_bytes. Pages in HTML can not be cut: always dropped."""

  CUT = "cut"
  DROP = "drop"


@dataclasses.dataclass(kw_only=True)
class SourceConfig(CorpusConfig):
  """What all sources below share.

  paths: files, or folders read with all folders below them.
  licence, language: of documents whose record names none (SPDX identifier, ISO 639-1 code).
  max_doc_bytes: longer documents are cut, at line ends where there are any, or dropped.
  """

  paths: tuple[str, ...] = ()
  licence: str = ""
  language: str = ""
  max_doc_bytes: int = 2**23
  long: Long = Long.CUT

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.paths or not all(self.paths):
      raise UserError(f"{path}.paths={self.paths!r}: name files or folders")
    self._validate_common(path)

  def _validate_common(self, path: str) -> None:
    if self.max_doc_bytes < 64:
      raise UserError(f"{path}.max_doc_bytes={self.max_doc_bytes}: must be at least 64")


@dataclasses.dataclass(kw_only=True)
class WarcSourceConfig(SourceConfig):
  """Pages of WARC files and texts of WET files (plain or .gz)."""

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.warc import WarcSource

    return WarcSource(self, strict=strict, exclude=exclude)


class CrawlKind(enum.Enum):
  """WARC: pages, which `clean` extracts. WET: text as Common Crawl extracted it, menus and all."""

  WARC = "warc"
  WET = "wet"


@dataclasses.dataclass(kw_only=True)
class CommonCrawlConfig(SourceConfig):
  """A crawl of Common Crawl by its id, fetched over the network, one connection at a time.

  crawl: its id, e.g. "CC-MAIN-2024-10". first, count: which files of its path list.
  paths_file: a path list on disk, read instead of CRAWL/warc.paths.gz of base_url.
  cache: where fetched files stay; a half-fetched one goes on where it stopped.
  pause: seconds between two requests. retries: of one request, the pauses between them doubling
    from `backoff` seconds. timeout: seconds without a byte.
  """

  crawl: str = ""
  kind: CrawlKind = CrawlKind.WARC
  first: int = 0
  count: int | None = 1
  paths_file: str | None = None
  base_url: str = "https://data.commoncrawl.org/"
  cache: str = "data/cache/commoncrawl"
  pause: float = 1.0
  retries: int = 8
  backoff: float = 2.0
  timeout: float = 60.0

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.crawl import CommonCrawlSource

    return CommonCrawlSource(self, strict=strict, exclude=exclude)

  def validate(self, path: str) -> None:
    CorpusConfig.validate(self, path)
    self._validate_common(path)
    if self.paths:
      raise UserError(f"{path}.paths={self.paths!r}: files on disk are read by WarcSourceConfig")
    if not self.crawl and self.paths_file is None:
      raise UserError(f"{path}.crawl='': name a crawl, e.g. CC-MAIN-2024-10")
    if not self.base_url.startswith(("http://", "https://")):
      raise UserError(f"{path}.base_url={self.base_url!r}: must begin with http:// or https://")
    if self.first < 0 or (self.count is not None and self.count < 1):
      raise UserError(f"{path}: first={self.first} must be at least 0, count={self.count} 1")
    for name in ("pause", "backoff", "retries"):
      if getattr(self, name) < 0:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be at least 0")
    if self.timeout <= 0:
      raise UserError(f"{path}.timeout={self.timeout}: must be above 0")


@dataclasses.dataclass(kw_only=True)
class WikipediaConfig(SourceConfig):
  """XML dumps of Wikipedia and its sisters (pages-articles, also .bz2 .gz .xz .zst)."""

  licence: str = "CC-BY-SA-4.0"

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.wikipedia import WikipediaSource

    return WikipediaSource(self, strict=strict, exclude=exclude)


class Secrets(enum.Enum):
  """What becomes of a file with keys in it. TAG: metadata `secrets` holds their number."""

  DROP = "drop"
  TAG = "tag"
  REPLACE = "replace"


PERMISSIVE = (
  *("0BSD", "Apache-2.0", "Artistic-2.0", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause"),
  *("BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
)


@dataclasses.dataclass(kw_only=True)
class CodeSourceConfig(SourceConfig):
  """Code: folders, archives (.tar .tar.gz .tgz .tar.bz2 .tar.xz .zip) and git repositories.

  paths: each is one tree. revision: the commit read of git repositories, without a checkout; with
    None a repository's working files are read, and HEAD of a bare one.
  licences: SPDX identifiers that are kept; () keeps all. A file's own statement comes first, then
    the licence file, or package metadata, of the nearest folder above it.
  keep_unlicensed: also files for which neither says anything.
  languages: names as in sources/code_files.py; () keeps all.
  max_file_bytes, max_line_length (characters), max_mean_line: above them a file counts as too
    large or minified.
  secrets: see Secrets. secret_keywords: also assignments to names like `password` (many are
    placeholders).
  """

  revision: str | None = None
  licences: tuple[str, ...] = PERMISSIVE
  keep_unlicensed: bool = False
  languages: tuple[str, ...] = ()
  max_file_bytes: int = 2**20
  max_line_length: int = 1000
  max_mean_line: float = 100.0
  secrets: Secrets = Secrets.DROP
  secret_keywords: bool = False

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.code import CodeSource

    return CodeSource(self, strict=strict, exclude=exclude)

  def validate(self, path: str) -> None:
    super().validate(path)
    for name in ("max_file_bytes", "max_line_length", "max_mean_line"):
      if getattr(self, name) < 1:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be at least 1")
    if self.revision is not None and (not self.revision or self.revision.startswith("-")):
      raise UserError(f"{path}.revision={self.revision!r}: name a commit, branch or tag")


@dataclasses.dataclass(kw_only=True)
class LatexSourceConfig(SourceConfig):
  """LaTeX sources: folders of .tex files, and arXiv's archives (.tar .tar.gz .tgz, .tex.gz, .gz).

  Each .tex of a folder that holds a whole document is one; an archive is one paper.
  """

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.latex import LatexSource

    return LatexSource(self, strict=strict, exclude=exclude)


@dataclasses.dataclass(kw_only=True)
class JatsSourceConfig(SourceConfig):
  """Articles in JATS XML (.xml .nxml), single or in archives (.tar.gz .zip)."""

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.jats import JatsSource

    return JatsSource(self, strict=strict, exclude=exclude)


@dataclasses.dataclass(kw_only=True)
class PdfSourceConfig(SourceConfig):
  """PDF files with a text layer. Pages that are images are counted; nothing reads them."""

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.pdf import PdfSource

    return PdfSource(self, strict=strict, exclude=exclude)


@dataclasses.dataclass(kw_only=True)
class TableSourceConfig(SourceConfig):
  """CSV and TSV files with a line of column names (also compressed): a row is a document.

  text_columns: joined by an empty line. columns: metadata key → column, e.g. {"url": "link"}.
  delimiter: "" for a tab in .tsv files and a comma in others.
  """

  text_columns: tuple[str, ...] = ("text",)
  columns: dict[str, str] = dataclasses.field(default_factory=dict)
  delimiter: str = ""

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.table import TableSource

    return TableSource(self, strict=strict, exclude=exclude)

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.text_columns:
      raise UserError(f"{path}.text_columns=(): name the columns that hold the text")
    if len(self.delimiter) > 1:
      raise UserError(f"{path}.delimiter={self.delimiter!r}: must be one character, or ''")


@dataclasses.dataclass(kw_only=True)
class EpubSourceConfig(SourceConfig):
  """Books in EPUB 2 or 3, a document each."""

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.epub import EpubSource

    return EpubSource(self, strict=strict, exclude=exclude)


@dataclasses.dataclass(kw_only=True)
class HtmlSourceConfig(SourceConfig):
  """HTML files (.html .htm .xhtml, also compressed), each kept as a page for `clean` to extract.

  base_url: joined with a page's path below the folder to make its url; "" takes what the page
    names as its canonical url.
  """

  base_url: str = ""

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.html import HtmlSource

    return HtmlSource(self, strict=strict, exclude=exclude)


@dataclasses.dataclass(kw_only=True)
class MailSourceConfig(SourceConfig):
  """Mails: mbox files, .eml files, Maildir and other folders of one mail a file.

  A mail is its subject and text; one that has HTML only is kept as a page. Attachments are counted.
  """

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.sources.mail import MailSource

    return MailSource(self, strict=strict, exclude=exclude)

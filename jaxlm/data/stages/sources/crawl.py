"""Common Crawl by crawl id: the files of a path list, fetched when their turn comes."""

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

from jaxlm.data.prep import files
from jaxlm.data.prep.documents import Counts, Document
from jaxlm.data.stages.sources.base import damaged
from jaxlm.data.stages.sources.config import CommonCrawlConfig
from jaxlm.data.stages.sources.fetch import Fetcher
from jaxlm.data.stages.sources.warc import ArchiveSource
from jaxlm.errors import UserError


class CommonCrawlSource(ArchiveSource[CommonCrawlConfig]):
  """Archives named by CRAWL/warc.paths.gz or wet.paths.gz below base_url, or by a list on disk."""

  def __init__(self, config: CommonCrawlConfig, *, strict: bool, exclude: str):
    super().__init__(config, strict=strict, exclude=exclude)
    self._fetcher = Fetcher(
      base_url=config.base_url,
      cache=Path(config.cache).expanduser(),
      pause=config.pause,
      retries=config.retries,
      backoff=config.backoff,
      timeout=config.timeout,
    )

  def names(self) -> list[str]:
    """The chosen paths of the list, below base_url."""
    if self.config.paths_file is not None:
      file = Path(self.config.paths_file).expanduser()
    else:
      file = self._fetcher.get(self._list())
    return self._chosen(file)

  def _list(self) -> str:
    return f"crawl-data/{self.config.crawl}/{self.config.kind.value}.paths.gz"

  def _chosen(self, file: Path) -> list[str]:
    try:
      data = file.read_bytes()
      text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except FileNotFoundError:
      raise UserError(f"{file}: no such file; correct the source's paths_file") from None
    except (*files.BROKEN_STREAM, UnicodeDecodeError) as error:
      raise damaged(file, error) from None
    every = text.split()
    first, count = self.config.first, self.config.count
    chosen = every[first:] if count is None else every[first : first + count]
    if not chosen:
      raise UserError(f"{file}: lists {len(every)} files; first={first} is beyond them")
    return chosen

  def files(self, counts: Counts | None = None) -> Iterator[Path]:
    """Where the files will lie; `read` fetches them."""
    for name in self.names():
      yield self._fetcher.cache / name

  def read(self, file: Path) -> Iterator[Document]:
    yield from super().read(self._fetcher.get(str(file.relative_to(self._fetcher.cache))))

  def fingerprint(self) -> str:
    """Of the files' names: what a crawl holds under a name does not change."""
    return self._hash(self.names())

  def peek(self) -> str | None:
    """`fingerprint` without network and without a byte written; None before the list is there."""
    if self.config.paths_file is not None:
      return self.fingerprint()
    file = self._fetcher.cache / self._list()
    whole = file.is_file() and file.with_name(file.name + ".json").is_file()
    return self._hash(self._chosen(file)) if whole else None

  def _hash(self, names: list[str]) -> str:
    text = "\n".join([self.config.base_url, *names])
    return hashlib.sha256(text.encode()).hexdigest()

"""datatrove's URL filter without its network access, and with lists by path."""

from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.url_filter import URLFilter

from jaxlm.data.stages.ops.base import OpContext
from jaxlm.data.stages.ops.origin import UrlFilterConfig
from jaxlm.data.stages.ops.steps import Cached, Op
from jaxlm.data.stages.stage_io import Count
from jaxlm.errors import UserError


def read_list(files: tuple[str, ...]) -> list[str]:
  """The lines of lists, without comments and empty ones."""
  lines: list[str] = []
  for file in files:
    try:
      lines += Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
      raise UserError(f"{file}: not UTF-8 at byte {error.start}; convert the list") from None
  found = (line.strip() for line in lines)
  return [line for line in found if line and not line.startswith("#")]


def lower_host(url: str) -> str:
  """A URL with its scheme and host in lower case: they are the same in any."""
  scheme, mark, rest = url.partition("://")
  host, slash, path = rest.partition("/") if mark else url.partition("/")
  return (
    f"{scheme.lower()}{mark}{host.lower()}{slash}{path}" if mark else host.lower() + slash + path
  )


@Cached
def _filter(key: tuple[Any, ...]) -> URLFilter:
  """One a process: with datatrove's lists it holds 760 MB."""
  from tldextract import TLDExtract

  integrated, threshold, *lists = key
  domains, urls, words, subwords, soft = (read_list(one) for one in lists)
  domains, urls = [one.lower() for one in domains], [lower_host(one) for one in urls]
  found = URLFilter(
    soft_word_threshold=threshold,
    extra_domains=domains,
    extra_urls=urls,
    banned_words=words,
    banned_subwords=subwords,
    soft_banned_words=soft,
    use_integrated_lists=integrated,
  )
  # As it comes it asks publicsuffix.org for its list.
  found.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
  found.download_data()  # unpacks what datatrove's wheel brings
  return found


class UrlOp(Op):
  """Drops listed addresses."""

  def __init__(self, context: OpContext, config: UrlFilterConfig):
    super().__init__(context)
    self.key = (
      config.integrated,
      config.soft_word_threshold,
      config.domains,
      config.urls,
      config.banned_words,
      config.banned_subwords,
      config.soft_banned_words,
    )
    self.files = config.files()
    self.filter: URLFilter | None = None

  def start(self) -> None:
    self.filter = _filter(self.key, files=self.files)

  def end(self, rank: int) -> None:
    self.filter = None

  def judge(self, document: Document, count: Count) -> str | None:
    if not document.metadata.get("url"):
      count.extra["without_url"] += 1
      return None
    assert self.filter is not None
    url = document.metadata["url"]
    document.metadata["url"] = lower_host(str(url))
    try:
      result = self.filter.filter(document)
    finally:
      document.metadata["url"] = url
    return str(result[1]) if isinstance(result, tuple) and not result[0] else None

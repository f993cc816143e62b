"""The config of `python -m jaxlm.data`: sources, what is cleaned away, duplicates, tests."""

import dataclasses
import typing

from jaxlm.data.prep.config import CorpusConfig
from jaxlm.data.stages.clean_config import (
  CleanConfig,
  code,
  dclm_rw,
  fineweb,
  gopher,
  minimal,
)
from jaxlm.data.stages.dedup_config import DecontaminateConfig, DedupConfig
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.ops import Words
from jaxlm.errors import UserError

__all__ = [
  "CleanConfig",
  "CurationConfig",
  "WarcSourceConfig",
  "Words",
  "code",
  "dclm_rw",
  "fineweb",
  "gopher",
  "minimal",
]

if typing.TYPE_CHECKING:
  from jaxlm.data.prep.documents import Corpus


@dataclasses.dataclass(kw_only=True)
class WarcSourceConfig(CorpusConfig):
  """HTML responses of WARC files (plain or .gz), each kept as a page for `clean` to extract.

  paths: files, or folders read with all folders below them.
  """

  paths: tuple[str, ...] = ()

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.stages.warc import WarcCorpus

    del strict, exclude
    return WarcCorpus(self.paths)

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.paths:
      raise UserError(f"{path}.paths=(): name a WARC file or a folder of them")


@dataclasses.dataclass(kw_only=True)
class CurationConfig:
  """Raw documents to clean ones.

  Attributes:
    name: of the result. output: the directory of the stages' directories.
    sources: where documents come from; metadata["source"] is the key.
    max_drop_ratio: a stage that removes a larger share stops.
    seed: of hashes.
    executor: how tasks are run on Slurm and Ray; of no influence on what comes out.
  """

  name: str
  output: str
  sources: dict[str, CorpusConfig] = dataclasses.field(default_factory=dict)
  clean: CleanConfig = dataclasses.field(default_factory=CleanConfig)
  dedup: DedupConfig = dataclasses.field(default_factory=DedupConfig)
  decontaminate: DecontaminateConfig = dataclasses.field(default_factory=DecontaminateConfig)
  max_drop_ratio: float = 0.95
  seed: int = 0
  executor: ExecutorConfig = dataclasses.field(default_factory=ExecutorConfig)

  def validate(self, path: str = "config") -> None:
    """Raises UserError for values that can not work."""
    if not self.sources:
      raise UserError(f"{path}.sources: name at least one source")
    for name, source in self.sources.items():
      source.validate(f"{path}.sources[{name!r}]")
    if not 0 < self.max_drop_ratio <= 1:
      raise UserError(f"{path}.max_drop_ratio={self.max_drop_ratio}: must be above 0, at most 1")
    for part in ("clean", "dedup", "decontaminate", "executor"):
      getattr(self, part).validate(f"{path}.{part}")

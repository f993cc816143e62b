"""The config of `python -m jaxlm.data`: sources, what is cleaned away, duplicates, tests."""

import dataclasses

from jaxlm.data.prep.config import CorpusConfig, TokenizeConfig, TokenizerTrainConfig
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
from jaxlm.data.stages.sources.config import WarcSourceConfig
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


@dataclasses.dataclass(kw_only=True)
class CurationConfig:
  """Raw documents to clean ones.

  Attributes:
    name: of the result. output: the directory of the stages' directories.
    sources: where documents come from; metadata["source"] is the key.
    max_drop_ratio: a stage that removes a larger share stops.
    seed: of hashes.
    tokenizer, tokenize: the tokenizer of the clean documents, and their shards.
    executor: how tasks are run on Slurm and Ray; of no influence on what comes out.
  """

  name: str
  output: str
  sources: dict[str, CorpusConfig] = dataclasses.field(default_factory=dict)
  clean: CleanConfig = dataclasses.field(default_factory=CleanConfig)
  dedup: DedupConfig = dataclasses.field(default_factory=DedupConfig)
  decontaminate: DecontaminateConfig = dataclasses.field(default_factory=DecontaminateConfig)
  tokenizer: TokenizerTrainConfig = dataclasses.field(default_factory=TokenizerTrainConfig)
  tokenize: TokenizeConfig = dataclasses.field(default_factory=TokenizeConfig)
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
    # datatrove's hashes are seeded with seed + 1, in 32 bits.
    if not 0 <= self.seed < 2**32 - 1:
      raise UserError(f"{path}.seed={self.seed}: must be between 0 and {2**32 - 2}")
    for part in ("clean", "dedup", "decontaminate", "tokenizer", "tokenize", "executor"):
      getattr(self, part).validate(f"{path}.{part}")

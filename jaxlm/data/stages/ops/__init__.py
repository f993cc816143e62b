"""The ops of the stage clean: a config here, its datatrove step in the module *_steps beside it.

Configs import in milliseconds; the steps, and with them datatrove, when the stage runs.
"""

from jaxlm.data.stages.ops.base import Action, OpConfig, OpContext, Words
from jaxlm.data.stages.ops.code import CodeConfig
from jaxlm.data.stages.ops.harm import HarmConfig
from jaxlm.data.stages.ops.heuristics import (
  C4Config,
  FineWebConfig,
  GopherQualityConfig,
  GopherRepetitionConfig,
  RefinedWebLinesConfig,
)
from jaxlm.data.stages.ops.models import PerplexityConfig, QualityConfig
from jaxlm.data.stages.ops.origin import LanguageConfig, UrlFilterConfig
from jaxlm.data.stages.ops.pages import ExtractConfig, Extractor, FixTextConfig, Normalization
from jaxlm.data.stages.ops.private_data import Handling, PrivateDataConfig

__all__ = [
  "Action",
  "C4Config",
  "CodeConfig",
  "ExtractConfig",
  "Extractor",
  "FineWebConfig",
  "FixTextConfig",
  "GopherQualityConfig",
  "GopherRepetitionConfig",
  "Handling",
  "HarmConfig",
  "LanguageConfig",
  "Normalization",
  "OpConfig",
  "OpContext",
  "PerplexityConfig",
  "PrivateDataConfig",
  "QualityConfig",
  "RefinedWebLinesConfig",
  "UrlFilterConfig",
  "Words",
]

"""Crawled pages, encyclopaedia, documentation, mails and code: 250 MB of raw documents to shards.

  python benchmarks/fetch_assets.py --out=DIR
  python -m jaxlm.data run --config=configs/data/demo_web.py:DIR --workers=2 --tasks=4

DIR is $JAXLM_ASSETS where none is given. Sources and models that are not there are left out.
`make demo-web` runs both and trains on the result. 233 MB in, 35 MB of text and 8.6 M tokens out in
3 minutes on 2 CPU cores, 820 MB of memory (2026-11-24).
"""

import os
from pathlib import Path

from jaxlm.data.prep.config import (
  CorpusConfig,
  TextSourceConfig,
  TokenizeConfig,
  TokenizerTrainConfig,
)
from jaxlm.data.stages import ops
from jaxlm.data.stages.config import CleanConfig, CurationConfig
from jaxlm.data.stages.sources.config import (
  CodeSourceConfig,
  HtmlSourceConfig,
  MailSourceConfig,
  WarcSourceConfig,
)

# Of English, French, Spanish: Gopher's eight English ones would drop the other two.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP_WORDS += ("de", "la", "les", "des", "et", "que", "el", "los", "una")


def get_config(assets: str = "") -> CurationConfig:
  root = Path(assets or os.environ.get("JAXLM_ASSETS", "assets")).expanduser()

  def at(name: str) -> tuple[str, ...]:
    return (str(root / name),)

  sources: dict[str, CorpusConfig] = {
    "warc": WarcSourceConfig(paths=at("warc")),
    "wikipedia": TextSourceConfig(paths=at("wikipedia")),
    "kernel": HtmlSourceConfig(
      paths=at("kernel"),
      base_url="https://docs.kernel.org/",
      licence="GPL-2.0-only",
    ),
    "python": HtmlSourceConfig(
      paths=at("python"),
      base_url="https://docs.python.org/3.11/",
      licence="PSF-2.0",
    ),
    "mail": MailSourceConfig(paths=at("mail")),
    "speeches": TextSourceConfig(paths=at("speeches")),
    "code": CodeSourceConfig(paths=at("code"), licence="PSF-2.0", licences=()),
  }
  there = {name: one for name, one in sources.items() if (root / name).exists()}
  words = root / "harm/en.txt"
  model = root / "lid.176.ftz"
  return CurationConfig(
    name="demo_web",
    output="data/demo_web",
    # With none of them the first error names the folder.
    sources=there or sources,
    clean=CleanConfig(
      ops={
        "extract": ops.ExtractConfig(),
        "fix_text": ops.FixTextConfig(),
        "language": ops.LanguageConfig(
          model=str(model), languages=("en", "fr", "es"), enabled=model.exists()
        ),
        "gopher_repetition": ops.GopherRepetitionConfig(),
        "gopher_quality": ops.GopherQualityConfig(stop_words=STOP_WORDS),
        "c4": ops.C4Config(min_sentences=3),
        "fineweb": ops.FineWebConfig(),
        "code": ops.CodeConfig(),
        "harm": ops.HarmConfig(
          word_lists=(str(words),), min_words=2, enabled=words.exists(), skip=("code",)
        ),
        "private_data": ops.PrivateDataConfig(),
      }
    ),
    tokenizer=TokenizerTrainConfig(sweep=(4096, 8192, 16384), min_gain=0.05),
    tokenize=TokenizeConfig(heldout_fraction=0.01),
  )

"""Text files and pages of WARC archives, cleaned by the published rules, without duplicates.

  python -m jaxlm.data run --config=configs/data/clean_text.py \\
    "--config.sources['text'].paths=my_texts" --config.output=data/clean
"""

from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.stages.config import CurationConfig


def get_config() -> CurationConfig:
  return CurationConfig(
    name="clean", output="data/clean", sources={"text": TextSourceConfig(paths=("my_texts",))}
  )

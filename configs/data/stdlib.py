"""Text that every Python installation holds: about 16 MB, no download.

The language reference, the standard library, and a sample of the installed packages.

  python -m jaxlm.prepare --config=configs/data/stdlib.py

Makes data/stdlib in about 8 s on 2 CPU cores and 400 MB of memory: about 4.4 M tokens with a
vocabulary of 8,192 (3.6 bytes a token). The figures vary with the Python version and what is
installed.
"""

from jaxlm.data.prep.config import PrepareConfig, StdlibSourceConfig, TokenizerTrainConfig


def get_config() -> PrepareConfig:
  return PrepareConfig(
    name="stdlib",
    output="data/stdlib",
    source=StdlibSourceConfig(max_bytes=16_000_000),
    tokenizer=TokenizerTrainConfig(vocab_size=8192),
  )

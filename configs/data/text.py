"""Your own text: a folder (or files) of .txt, .md, code, .jsonl, .parquet, compressed or not.

  python -m jaxlm.prepare --config=configs/data/text.py --config.source.paths=my_texts

Makes data/text; name another place with --config.output. All steps together do about 3 MB/s on
2 CPU cores, in less than 600 MB of memory. For files that hold many documents, name what stands
between them, for example --config.source.document_separator='<|endoftext|>'.
"""

from jaxlm.data.prep.config import PrepareConfig, TextSourceConfig, TokenizerTrainConfig


def get_config() -> PrepareConfig:
  return PrepareConfig(
    name="text",
    output="data/text",
    source=TextSourceConfig(paths=()),
    tokenizer=TokenizerTrainConfig(vocab_size=8192),
  )

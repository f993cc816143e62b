"""1.36 B parameters (Llama's shape), 2.1 B tokens of your text; one 80 GB GPU or more.

    python -m jaxlm.prepare --config=configs/data/text.py --config.source.paths=DIR \\
      --config.output=data/text --config.tokenizer.vocab_size=32000
    python -m jaxlm.train --config=configs/1b.py --workdir=runs/1b

On one H100 80GB: 61k tokens/s, documents kept apart (2026-11-24, benchmarks/README.md): 9.5 hours.

`--config=configs/1b.py:synthetic` trains on random ids instead: a test of the machine.
"""

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SourceConfig, SyntheticConfig, TokenShardsConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.training.config import CheckpointConfig


def get_config(source: str = "text") -> RunConfig:
  sources: dict[str, SourceConfig] = {
    "text": TokenShardsConfig(name="text", path="data/text"),
    "synthetic": SyntheticConfig(name="synthetic", vocab_size=32_000),
  }
  return RunConfig(
    model=DecoderConfig(
      vocab_size=0,  # the data's
      num_layers=24,
      embed_dim=2048,
      mlp_dim=5632,
      num_heads=16,
      max_seq_len=2048,
      scan_layers=False,  # unrolled: slower to compile, faster to run
    ),
    data=DataConfig(seq_len=2048, sources=[sources[source]]),
    optim=AdamWConfig(peak_lr=3e-4, b2=0.95, schedule=ScheduleConfig(warmup_steps=2000)),
    global_batch_size=8,
    num_steps=128_000,
    checkpoint=CheckpointConfig(every_steps=2000, keep_every=20_000),
  )

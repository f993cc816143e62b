"""A 7 M-parameter decoder on the text that every Python installation holds.

  python -m jaxlm.prepare --config=configs/data/stdlib.py
  python -m jaxlm.train --config=configs/tiny.py --workdir=runs/tiny

On two CPU cores: 2.1k tokens/s, four minutes, 1.9 to 2.1 bits per byte of held-out text (gzip -9:
2.2), depending on the packages installed, which are part of the text (2026-11-24).
"""

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.muon import MuonConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.training.config import CheckpointConfig, EvalConfig


def get_config() -> RunConfig:
  return RunConfig(
    model=DecoderConfig(
      vocab_size=0,  # the data's
      num_layers=4,
      embed_dim=256,
      mlp_dim=704,
      num_heads=4,
      max_seq_len=1024,
      qk_norm=True,
    ),
    data=DataConfig(seq_len=256, sources=[TokenShardsConfig(name="stdlib", path="data/stdlib")]),
    optim=MuonConfig(
      peak_lr=5e-3,
      schedule=ScheduleConfig(kind=ScheduleKind.LINEAR, warmup_steps=20, final_fraction=0.0),
    ),
    global_batch_size=8,
    num_steps=240,
    checkpoint=CheckpointConfig(every_steps=120),
    eval=EvalConfig(batch_size=32),
  )

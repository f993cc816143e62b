"""6.7 B parameters (Llama 2's shape) on 8 GPUs of 80 GB or more; 4.2 M tokens a step.

  python -m jaxlm.train --config=configs/7b.py --workdir=runs/7b

Not yet run at full size: the tests check its shapes and its number of parameters.
"""

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.layers.config import Remat
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.training.config import CheckpointConfig


def get_config() -> RunConfig:
  return RunConfig(
    model=DecoderConfig(
      vocab_size=0,  # the data's
      num_layers=32,
      embed_dim=4096,
      mlp_dim=11_008,
      num_heads=32,
      max_seq_len=4096,
      norm_eps=1e-5,
      remat=Remat.FULL,
    ),
    data=DataConfig(seq_len=4096, sources=[TokenShardsConfig(name="text", path="data/text")]),
    optim=AdamWConfig(peak_lr=3e-4, b2=0.95, schedule=ScheduleConfig(warmup_steps=2000)),
    global_batch_size=1024,
    num_microbatches=64,
    num_steps=500_000,
    mesh=MeshConfig(fsdp=-1),
    checkpoint=CheckpointConfig(every_steps=1000, keep_every=10_000),
  )

"""How large a run a text, a machine and a number of minutes are good for (imports no jax).

All of it is arithmetic on the text's tokens T, the seconds, and the machine's FLOP/s in large
matrix products, R. A step of B rows of S tokens of a model D wide takes about

  B S flops_per_token / (EFFICIENCY R D / (D + half_width)) + STEP_SECONDS

as narrow matrices spend more of their time on reading and on elementwise work, and the run sees
min(MAX_EPOCHS T, what fits into the seconds) tokens.
"""

import dataclasses
import time
from typing import Any

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.prep.config import (
  CorpusConfig,
  PrepareConfig,
  StdlibSourceConfig,
  TokenizerKind,
  TokenizerTrainConfig,
)
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.muon import MuonConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.training.config import CheckpointConfig, EvalConfig

MIN_TEXT_BYTES = 1_000
MAX_TEXT_BYTES = 128_000_000  # prepared at about 3 MB/s on two cores: less than a minute

# Repeated text is worth about as much as new text for up to four passes (Muennighoff et al. 2023,
# arXiv:2305.16264).
MAX_EPOCHS = 4
MIN_STEPS = 40
GOOD_STEPS = 240  # where there is enough text for larger batches, they are made of it
MAX_STEP_TOKENS = 1 << 16
MAX_SEQ_LEN = 256

# A training step of a wide model against a large matrix product, the width at which half of that is
# reached, and what any step costs beside its FLOPs. Set by hand after a few steps on two cores.
EFFICIENCY = 0.6
CPU_HALF_WIDTH, ACCELERATOR_HALF_WIDTH = 128, 2048
STEP_SECONDS = 0.005

# Parameters of the blocks, at most, for each token of text and for each token seen. Set by hand
# around the demo, which has 3.2 M for about 4.4 M tokens of text, of which 0.5 M are seen: a larger
# model learns its text by heart, or costs more time than it gains.
PARAMS_PER_TEXT_TOKEN = 2.0
PARAMS_PER_SEEN_TOKEN = 8.0

# (embed_dim, num_layers), each about twice the FLOPs of the one before.
LADDER = ((64, 2), (96, 3), (128, 4), (192, 4), (256, 4), (320, 5), (384, 6), (512, 8), (640, 10))


def tokenizer(text_bytes: int) -> TokenizerTrainConfig:
  """The tokenizer for so much text.

  The number of different words grows about as the square root of a text's length (Heaps' law), and
  the vocabulary with it: the power of two nearest to twice the root, in [512, 8192]; 16 MB give
  8192 (measured there: 1.93 bits per byte against 1.98 with 4096, docs/LOG.md).
  Below 32 kB most pieces would be seen a few times only: bytes it is.
  """
  if text_bytes < 32_000:
    return TokenizerTrainConfig(kind=TokenizerKind.BYTE)
  half_bits = (text_bytes.bit_length() - 1) / 2
  size = 2 << round(half_bits)
  return TokenizerTrainConfig(vocab_size=min(max(size, 512), 8192))


def prepare_config(
  source: CorpusConfig, text_bytes: int, *, name: str, output: str
) -> PrepareConfig:
  """The dataset: 2 % of the text is held out, up to 10 % of small ones, for at least about 20 kB.

  It depends on the text alone, not on the machine or the minutes: made again, it is the same.
  """
  fraction = min(max(20_000 / max(text_bytes, 1), 0.02), 0.1)
  return PrepareConfig(
    name=name,
    output=output,
    source=source,
    tokenizer=tokenizer(text_bytes),
    heldout_fraction=round(fraction, 4),
    heldout_max_bytes=1_000_000,  # scoring it takes a quarter of the time of training on it
  )


def model(embed_dim: int, num_layers: int, vocab_size: int) -> DecoderConfig:
  """A rung of the ladder: Llama's shape with an MLP of 2.75 D, as in configs/tiny.py."""
  return DecoderConfig(
    vocab_size=vocab_size,
    num_layers=num_layers,
    embed_dim=embed_dim,
    mlp_dim=embed_dim * 11 // 4,
    num_heads=max(2, embed_dim // 64),
    max_seq_len=1024,
    qk_norm=True,
  )


def block_params(config: DecoderConfig) -> int:
  """Parameters without the tables: what a text has to fill."""
  tables = config.padded_vocab_size * config.embed_dim * (1 if config.tie_embeddings else 2)
  return config.num_params() - tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
  """flops: FLOP/s in matrix products, all devices. half_width: width at half the efficiency."""

  flops: float
  half_width: int = CPU_HALF_WIDTH
  num_devices: int = 1

  def step_seconds(self, config: DecoderConfig, step_tokens: int, seq_len: int) -> float:
    """How long a step should take; see the module docstring."""
    efficiency = EFFICIENCY * config.embed_dim / (config.embed_dim + self.half_width)
    flops = config.flops_per_token(seq_len) * step_tokens
    return flops / (efficiency * self.flops) + STEP_SECONDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
  """tokens: of the training text. seconds: for training. machine: what it runs on."""

  tokens: int
  seconds: float
  machine: Machine

  def batch(self, seen: float, seq_len: int) -> int:
    """Rows of a step: a power of two for GOOD_STEPS steps, times the number of devices."""
    rows = min(seen / GOOD_STEPS, MAX_STEP_TOKENS) / (seq_len * self.machine.num_devices)
    return max(1 << max(int(rows).bit_length() - 1, 0), 1) * self.machine.num_devices

  def steps(self, config: DecoderConfig, batch: int, seq_len: int) -> int:
    """As many as the seconds allow, at least MIN_STEPS; never more than MAX_EPOCHS passes."""
    step_tokens = batch * seq_len
    affordable = int(self.seconds / self.machine.step_seconds(config, step_tokens, seq_len))
    return max(1, min(max(affordable, MIN_STEPS), MAX_EPOCHS * self.tokens // step_tokens))

  def shape(self, config: DecoderConfig) -> tuple[int, int, int]:
    """(seq_len, batch, steps) of a model."""
    seq_len = row_length(self.tokens)
    # Time counted at full batches first; small ones are slower, which `steps` takes into account.
    per_token = self.machine.step_seconds(config, 8 * seq_len, seq_len) / (8 * seq_len)
    seen = min(MAX_EPOCHS * self.tokens, self.seconds / per_token)
    batch = self.batch(seen, seq_len)
    return seq_len, batch, self.steps(config, batch, seq_len)


def row_length(tokens: int) -> int:
  """Tokens of a row: the text has at least 64 rows, each 64 to MAX_SEQ_LEN tokens long.

  A power of two; attention beyond 256 tokens is little used by models of this size.
  """
  return min(max(1 << max((tokens // 64).bit_length() - 1, 0), 64), MAX_SEQ_LEN)


def run_config(budget: Budget, *, path: str, vocab_size: int, seed: int = 0) -> RunConfig:
  """The run: the largest model that the text can fill and that sees enough of it in the time.

  The optimizer is the demo's: Muon's updates have the same RMS for every shape of matrix, so that
  its learning rate goes with all of the ladder.
  """
  chosen = model(*LADDER[0], vocab_size)
  seq_len, batch, steps = budget.shape(chosen)
  for rung in LADDER[1:]:
    larger = model(*rung, vocab_size)
    params = block_params(larger)
    s, b, n = budget.shape(larger)
    in_time = n * budget.machine.step_seconds(larger, b * s, s) <= budget.seconds
    if (
      params > PARAMS_PER_TEXT_TOKEN * budget.tokens
      or params > PARAMS_PER_SEEN_TOKEN * n * b * s
      or not in_time
    ):
      break
    chosen, seq_len, batch, steps = larger, s, b, n
  return _config(chosen, path, seq_len, batch, steps, seed)


def demo_config(path: str, *, seed: int = 0) -> RunConfig:
  """The demo's run, that of configs/tiny.py on another path (a test holds them together)."""
  return _config(model(256, 4, 0), path, 256, 8, 240, seed)


def demo_source() -> StdlibSourceConfig:
  """The demo's text: 16 MB that every Python installation holds."""
  return StdlibSourceConfig(max_bytes=16_000_000)


def _config(
  chosen: DecoderConfig, path: str, seq_len: int, batch: int, steps: int, seed: int
) -> RunConfig:
  return RunConfig(
    model=chosen,
    data=DataConfig(seq_len=seq_len, sources=[TokenShardsConfig(path=path)], seed=seed),
    optim=MuonConfig(
      peak_lr=5e-3,
      schedule=ScheduleConfig(
        kind=ScheduleKind.LINEAR, warmup_steps=min(20, steps // 10), final_fraction=0.0
      ),
    ),
    global_batch_size=batch,
    num_steps=steps,
    seed=seed,
    checkpoint=CheckpointConfig(every_steps=max(steps // 4, 50)),
    eval=EvalConfig(batch_size=32),
  )


def explain(config: RunConfig, budget: Budget, vocab_size: int) -> list[str]:
  """What was chosen and why, in three lines."""
  chosen = config.model
  assert isinstance(chosen, DecoderConfig)
  known = dataclasses.replace(chosen, vocab_size=vocab_size)
  seq_len, batch, steps = config.data.seq_len, config.global_batch_size, config.num_steps
  seen = steps * batch * seq_len
  seconds = steps * budget.machine.step_seconds(known, batch * seq_len, seq_len)
  epochs = seen / budget.tokens
  return [
    f"text: {budget.tokens:,} tokens to train on, vocabulary {vocab_size:,}; the machine does"
    f" {budget.machine.flops / 1e9:,.0f} GFLOP/s in matrix products",
    f"model: {known.num_params() / 1e6:.2f} M parameters ({chosen.num_layers} layers,"
    f" {chosen.embed_dim} wide): {block_params(known) / budget.tokens:.1f} a token of text without"
    f" the tables, {known.flops_per_token(seq_len) / 1e6:.1f} MFLOP a token seen",
    f"run: {steps} steps of {batch} × {seq_len} tokens, {epochs:.2g} passes over the text, about"
    f" {_time(seconds)} (on an idle machine)",
  ]


def _time(seconds: float) -> str:
  return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{max(seconds, 1):.0f} s"


def measure(seconds: float = 0.5) -> Machine:
  """This machine: the best of repeated matrix products within the time, on one of its devices.

  1024 × 1024 in float32 on CPUs, 8192 × 8192 in bfloat16 on accelerators, as models compute there.
  """
  import jax
  import jax.numpy as jnp

  on_cpu = jax.default_backend() == "cpu"
  n = 1024 if on_cpu else 8192
  x = jnp.full((n, n), 1 / n, jnp.float32 if on_cpu else jnp.bfloat16)
  product: Any = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  best, end = 0.0, time.perf_counter() + seconds
  while not best or time.perf_counter() < end:
    start = time.perf_counter()
    product(x, x).block_until_ready()
    best = max(best, 2 * n**3 / (time.perf_counter() - start))
  devices = jax.device_count()
  return Machine(
    # Devices of a CPU are slices of the same cores.
    flops=best if on_cpu else best * devices,
    half_width=CPU_HALF_WIDTH if on_cpu else ACCELERATOR_HALF_WIDTH,
    num_devices=devices,
  )

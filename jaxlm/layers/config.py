"""The choices that layers offer (plain data: imports no jax until a dtype is resolved)."""

import dataclasses
import enum
from typing import Any


class Norm(enum.Enum):
  """RMS: Zhang & Sennrich 2019 (arXiv:1910.07467). LAYER: Ba et al. 2016 (arXiv:1607.06450)."""

  RMS = "rms"
  LAYER = "layer"


class NormPlacement(enum.Enum):
  """PRE: x + f(norm(x)). POST: x + norm(f(x)), as in OLMo 2. BOTH: as in Gemma 2."""

  PRE = "pre"
  POST = "post"
  BOTH = "both"


class Positions(enum.Enum):
  """How a token knows its place.

  ROPE: Su et al. 2021 (arXiv:2104.09864), halves rotated as in Llama. LEARNED: a table, as in
  GPT-2. ALIBI: Press et al. 2021 (arXiv:2108.12409). NONE: the causal mask alone.
  """

  ROPE = "rope"
  LEARNED = "learned"
  ALIBI = "alibi"
  NONE = "none"


class RopeKind(enum.Enum):
  """How RoPE's frequencies are changed for longer sequences. f: a frequency.

  LINEAR: f / factor (arXiv:2306.15595). DYNAMIC: a larger base once the longest position of a call
  passes original_max_seq_len (NTK-aware). YARN: by wavelength, and attention sharpened
  (arXiv:2309.00071). LLAMA3: by wavelength, smoothed (Llama 3.1). LONGROPE: a divisor for each
  frequency, short_factors up to original_max_seq_len and long_factors beyond (arXiv:2402.13753).
  """

  LINEAR = "linear"
  DYNAMIC = "dynamic"
  YARN = "yarn"
  LLAMA3 = "llama3"
  LONGROPE = "longrope"


@dataclasses.dataclass(kw_only=True)
class RopeScaling:
  """A RopeKind and its numbers; the names are those of Hugging Face's rope_parameters.

  Attributes:
    original_max_seq_len: the longest sequence before scaling.
    low_freq_factor, high_freq_factor: LLAMA3's. beta_fast, beta_slow, truncate: YARN's.
    attention_factor: multiplies queries' and keys' rotations (YARN, LONGROPE); None: as published,
      for YARN from factor (and mscale, mscale_all_dim where both are given).
    short_factors, long_factors: LONGROPE's, a number for each frequency.
  """

  kind: RopeKind
  factor: float = 1.0
  original_max_seq_len: int
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float | None = None
  mscale: float | None = None
  mscale_all_dim: float | None = None
  short_factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()


@dataclasses.dataclass(kw_only=True)
class Latent:
  """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).

  Attributes:
    kv_rank, query_rank: dims of the latents that keys and values, and queries, are made of; None:
      queries are made of the residual stream.
    nope_dim, rope_dim, value_dim: of each head: of queries and keys without and with RoPE, and of
      values (no more than the two together).
    interleaved: RoPE's pairs are neighbours, not halves, in the dims as they are made.
  """

  kv_rank: int
  query_rank: int | None = None
  nope_dim: int
  rope_dim: int
  value_dim: int
  interleaved: bool = True


class Activation(enum.Enum):
  """The MLP's nonlinearity. SWIGLU, GEGLU: gated (Shazeer 2020, arXiv:2002.05202).

  GELU: tanh form, as in GPT-2. RELU2: squared ReLU (So et al. 2021, arXiv:2109.08668).
  GELU_EXACT, GEGLU_EXACT: with the error function, as in BERT.
  """

  SWIGLU = "swiglu"
  GEGLU = "geglu"
  GELU = "gelu"
  RELU2 = "relu2"
  GELU_EXACT = "gelu_exact"
  GEGLU_EXACT = "geglu_exact"


GATED = (Activation.SWIGLU, Activation.GEGLU, Activation.GEGLU_EXACT)


class Router(enum.Enum):
  """A token's score of each expert: SOFTMAX over all, or each one's SIGMOID (DeepSeek-V3)."""

  SOFTMAX = "softmax"
  SIGMOID = "sigmoid"


class DType(enum.Enum):
  """AUTO: bfloat16 on GPUs and TPUs, float32 on CPUs (where bfloat16 is emulated and slow)."""

  AUTO = "auto"
  FLOAT32 = "float32"
  BFLOAT16 = "bfloat16"


class Matmul(enum.Enum):
  """The factors of the blocks' weight products. COMPUTE: the compute dtype.

  FP8: 8-bit floats, scaled per tensor just before use (arXiv:2209.05433); Hopper, Ada and Blackwell
  GPUs. Parameters, sums, attention, embeddings and the output layer stay as they are.
  """

  COMPUTE = "compute"
  FP8 = "fp8"


class Remat(enum.Enum):
  """What the forward pass keeps of each block for the backward pass, from most to least memory.

  NONE: everything. MINIMAL: the results of all weight matmuls and of attention; only norms,
  rotations and nonlinearities are computed again. QKV: queries, keys, values and the attention's
  result. FULL: the block's input alone; the whole block is computed again. AUTO: the first of these
  whose compiled training step fits into the device's memory; NONE where nothing is trained.
  OFFLOAD: keeps what MINIMAL does, in the host's memory; for a fast link to it.
  """

  AUTO = "auto"
  NONE = "none"
  MINIMAL = "minimal"
  QKV = "qkv"
  FULL = "full"
  OFFLOAD = "offload"


class AttentionImpl(enum.Enum):
  """AUTO: the fastest that applies.

  CUDNN: cuDNN's flash attention, GPUs, one document a row. MOSAIC: tokamax's flash attention,
  Hopper and Blackwell GPUs, documents kept apart. SPLASH: JAX's splash attention, TPUs, both. XLA:
  anywhere, with (T, T) scores in memory.
  """

  AUTO = "auto"
  XLA = "xla"
  CUDNN = "cudnn"
  MOSAIC = "mosaic"
  SPLASH = "splash"


def resolve_dtype(dtype: DType) -> Any:
  """The numpy dtype that a DType stands for on the machine at hand."""
  import jax
  import jax.numpy as jnp

  if dtype is DType.AUTO:
    dtype = DType.FLOAT32 if jax.default_backend() == "cpu" else DType.BFLOAT16
  return {DType.FLOAT32: jnp.float32, DType.BFLOAT16: jnp.bfloat16}[dtype]

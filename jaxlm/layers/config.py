"""The choices that layers offer (plain data: imports no jax until a dtype is resolved)."""

import enum
from typing import Any


class Norm(enum.Enum):
  """RMS: Zhang & Sennrich 2019 (arXiv:1910.07467). LAYER: Ba et al. 2016 (arXiv:1607.06450)."""

  RMS = "rms"
  LAYER = "layer"


class Positions(enum.Enum):
  """How a token knows its place.

  ROPE: Su et al. 2021 (arXiv:2104.09864), halves rotated as in Llama. LEARNED: a table, as in
  GPT-2. ALIBI: Press et al. 2021 (arXiv:2108.12409). NONE: the causal mask alone.
  """

  ROPE = "rope"
  LEARNED = "learned"
  ALIBI = "alibi"
  NONE = "none"


class Activation(enum.Enum):
  """The MLP's nonlinearity. SWIGLU, GEGLU: gated (Shazeer 2020, arXiv:2002.05202).

  GELU: tanh form, as in GPT-2. RELU2: squared ReLU (So et al. 2021, arXiv:2109.08668).
  """

  SWIGLU = "swiglu"
  GEGLU = "geglu"
  GELU = "gelu"
  RELU2 = "relu2"


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

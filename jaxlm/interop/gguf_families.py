"""How GGUF spells what Hugging Face's config.json and tensor names say, for some architectures.

Names and metadata keys are those of the gguf package (gguf/constants.py, gguf/tensor_mapping.py).
One table serves both directions. A family is one Spec.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlm.errors import UserError

# GGUF name → Hugging Face name; {} is the layer's number. One line may end in .weight and .bias.
_LLAMA = {
  "token_embd": "model.embed_tokens",
  "output_norm": "model.norm",
  "output": "lm_head",
  "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
  "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
  "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
  "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
  "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
  "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
  "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
  "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
  "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_QK_NORM = {
  "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
  "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_GEMMA2 = {
  **_LLAMA,
  "blk.{}.post_attention_norm": "model.layers.{}.post_attention_layernorm",
  "blk.{}.ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
  "blk.{}.post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2 = {
  "token_embd": "transformer.wte",
  "position_embd": "transformer.wpe",
  "output_norm": "transformer.ln_f",
  "output": "lm_head",
  "blk.{}.attn_norm": "transformer.h.{}.ln_1",
  "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
  "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
  "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
  "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
  "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
_NORM_ACTS = {"vocab_size": "vocab_size", "context_length": "max_position_embeddings"}
_LLAMA_KEYS = {
  **_NORM_ACTS,
  "block_count": "num_hidden_layers",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.key_length": "head_dim",
  "rope.freq_base": "rope_theta",
}
_GPT2_KEYS = {
  "vocab_size": "vocab_size",
  "context_length": "n_positions",
  "block_count": "n_layer",
  "embedding_length": "n_embd",
  "feed_forward_length": "n_inner",
  "attention.head_count": "n_head",
  "attention.layer_norm_epsilon": "layer_norm_epsilon",
}

# (array, GGUF name without blk.N., config) → array
Change = Callable[[np.ndarray, str, Mapping[str, Any]], np.ndarray]


def _same(x: np.ndarray, part: str, config: Mapping[str, Any]) -> np.ndarray:
  return x


def _heads(part: str, config: Mapping[str, Any]) -> int | None:
  if part.startswith("attn_q."):
    return int(config["num_attention_heads"])
  if part.startswith("attn_k."):
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])
  return None


def _interleave(x: np.ndarray, part: str, config: Mapping[str, Any]) -> np.ndarray:
  """To GGUF: arch llama rotates neighbouring rows, Hugging Face the two halves of a head."""
  heads = _heads(part, config)
  if heads is None:
    return x
  split = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:])
  return split.swapaxes(1, 2).reshape(x.shape)


def _halves(x: np.ndarray, part: str, config: Mapping[str, Any]) -> np.ndarray:
  heads = _heads(part, config)
  if heads is None:
    return x
  split = x.reshape(heads, x.shape[0] // heads // 2, 2, *x.shape[1:])
  return split.swapaxes(1, 2).reshape(x.shape)


def _minus_one(x: np.ndarray, part: str, config: Mapping[str, Any]) -> np.ndarray:
  """GGUF stores Gemma's norms as 1 + w."""
  return x - np.ones((), x.dtype) if part.endswith("norm.weight") else x


def _plus_one(x: np.ndarray, part: str, config: Mapping[str, Any]) -> np.ndarray:
  return x + np.ones((), x.dtype) if part.endswith("norm.weight") else x


def _transpose(x: np.ndarray, part: str, config: Mapping[str, Any]) -> np.ndarray:
  return np.ascontiguousarray(x.T) if part in _GPT2_MATRICES else x


# GPT-2's own matrices are (in, out).
_GPT2_MATRICES = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


@dataclasses.dataclass(frozen=True)
class Spec:
  """A GGUF architecture.

  model_type, architectures: what config.json calls it. names: GGUF → Hugging Face. keys: metadata
  → config.json. constants: further keys of config.json. to_hf, to_gguf: of each array.
  """

  arch: str
  model_type: str
  architecture: str
  names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _LLAMA)
  keys: Mapping[str, str] = dataclasses.field(default_factory=lambda: _LLAMA_KEYS)
  constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  to_hf: Change = _same
  to_gguf: Change = _same
  transposed: tuple[str, ...] = ()


_SILU = {"hidden_act": "silu"}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}
_GEMMA2_KEYS = {
  **_LLAMA_KEYS,
  "attention.sliding_window": "sliding_window",
  "attn_logit_softcapping": "attn_logit_softcapping",
  "final_logit_softcapping": "final_logit_softcapping",
}
SPECS = (
  Spec(
    "llama",
    "llama",
    "LlamaForCausalLM",
    constants={**_SILU, "attention_bias": False, "mlp_bias": False},
    to_hf=_halves,
    to_gguf=_interleave,
  ),
  Spec(
    "llama",  # llama.cpp has one architecture for both
    "mistral",
    "MistralForCausalLM",
    constants=_SILU,
    to_hf=_halves,
    to_gguf=_interleave,
  ),
  Spec("qwen2", "qwen2", "Qwen2ForCausalLM", constants=_SILU),
  Spec("qwen3", "qwen3", "Qwen3ForCausalLM", {**_LLAMA, **_QK_NORM}, constants=_SILU),
  Spec(
    "gemma",
    "gemma",
    "GemmaForCausalLM",
    constants=_GEMMA,
    to_hf=_minus_one,
    to_gguf=_plus_one,
  ),
  Spec(
    "gemma2",
    "gemma2",
    "Gemma2ForCausalLM",
    _GEMMA2,
    _GEMMA2_KEYS,
    _GEMMA,
    to_hf=_minus_one,
    to_gguf=_plus_one,
  ),
  Spec(
    "gpt2",
    "gpt2",
    "GPT2LMHeadModel",
    _GPT2,
    _GPT2_KEYS,
    {"activation_function": "gelu_new"},
    to_hf=_transpose,
    to_gguf=_transpose,
    transposed=_GPT2_MATRICES,
  ),
)


def spec_of_arch(arch: str, where: str) -> Spec:
  """The Spec of general.architecture. Raises UserError for one that is not known."""
  for spec in SPECS:
    if spec.arch == arch:
      return spec
  known = ", ".join(dict.fromkeys(spec.arch for spec in SPECS))
  raise UserError(f"{where}: GGUF architecture {arch!r} is not among {known}: take safetensors")


def spec_of_model(model_type: str) -> Spec:
  """The Spec of config.json's model_type. Raises UserError for one that is not known."""
  for spec in SPECS:
    if spec.model_type == model_type:
      return spec
  known = ", ".join(spec.model_type for spec in SPECS)
  raise UserError(f"--to=gguf: model_type {model_type!r} is not among {known}: export to hf")


def rename(table: Mapping[str, str], name: str) -> str | None:
  """The name on the right of the table for one on its left; None where it is on no line."""
  stem, _, ending = name.rpartition(".")
  parts = stem.split(".")
  layer = next((i for i, part in enumerate(parts) if part.isdigit()), None)
  if layer is not None:
    number, parts[layer] = parts[layer], "{}"
    stem = ".".join(parts)
  target = table.get(stem)
  if target is None:
    return None
  return (target if layer is None else target.format(number)) + "." + ending


def part_of(gguf_name: str) -> str:
  """A GGUF tensor's name without blk.N."""
  return gguf_name.split(".", 2)[2] if gguf_name.startswith("blk.") else gguf_name


def llama3_factors(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
  """rope_freqs.weight of Llama 3.1: by what each frequency is divided, float32 (head_dim / 2,).

  As llama.cpp's convert_hf_to_gguf.py and transformers' rope_type "llama3" define it.
  """
  low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
  old, factor = float(scaling["original_max_position_embeddings"]), float(scaling["factor"])
  waves = 2 * np.pi * theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
  smooth = (old / waves - low) / (high - low)
  middle = 1 / ((1 - smooth) / factor + smooth)
  out = np.where(waves < old / high, 1.0, np.where(waves > old / low, factor, middle))
  return out.astype(np.float32)

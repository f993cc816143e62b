"""DeepSeek-V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437): multi-head latent attention, and
mixtures of experts with groups and shared experts after some layers without; in V3 sigmoid scores,
and a bias that balances them."""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.families.base import Family, Weight, need, refuse
from jaxlm.interop.families.llama import LAYER, fields, hf_fields, linear, mlp, norms, outer, same
from jaxlm.interop.families.mixtral import experts
from jaxlm.interop.families.qwen_moe import NAMES
from jaxlm.layers.config import Latent, Router
from jaxlm.layers.rotary import sharpening
from jaxlm.models.config import DecoderConfig

_V2 = {"first_k_dense_replace": 0, "n_shared_experts": 2, "routed_scaling_factor": 1.0}
_V3 = {
  "n_group": 8,
  "topk_group": 4,
  "n_shared_experts": 1,
  "num_experts_per_tok": 8,
  "first_k_dense_replace": 3,
  "norm_topk_prob": True,
  "routed_scaling_factor": 2.5,
}


def read_experts(hf: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a mixture of experts of DeepSeek-V3's kind."""
  dense = min(hf.get("first_k_dense_replace") or 0, need(hf, "num_hidden_layers") - 1)
  return {
    "mlp_dim": need(hf, "moe_intermediate_size"),
    "num_dense_layers": dense,
    "dense_mlp_dim": need(hf, "intermediate_size") if dense else None,
    "num_experts": need(hf, "n_routed_experts"),
    "num_experts_per_token": need(hf, "num_experts_per_tok"),
    "num_shared_experts": hf.get("n_shared_experts") or 0,
    "router": Router.SIGMOID,
    "router_bias": True,
    "router_scale": float(hf.get("routed_scaling_factor") or 1.0),
    "normalize_gates": bool(hf.get("norm_topk_prob", False)),
    "expert_groups": hf.get("n_group") or 1,
    "expert_groups_per_token": hf.get("topk_group") or 1,
  }


def hf_experts(config: DecoderConfig) -> dict[str, Any]:
  """The reverse of `read_experts`."""
  return {
    "intermediate_size": config.dense_mlp_dim or config.mlp_dim,
    "moe_intermediate_size": config.mlp_dim,
    "n_routed_experts": config.num_experts,
    "num_experts_per_tok": config.num_experts_per_token,
    "n_shared_experts": config.num_shared_experts,
    "routed_scaling_factor": config.router_scale,
    "norm_topk_prob": config.normalize_gates,
    "n_group": config.expert_groups,
    "topk_group": config.expert_groups_per_token,
    "first_k_dense_replace": config.num_dense_layers,
  }


def expert_weights(config: DecoderConfig) -> list[Weight]:
  """The experts of blocks that have them, routed and shared, and the MLPs of the others."""
  out = [
    linear(f"{LAYER}mlp.gate", "moe/router"),
    *experts(config, f"{LAYER}mlp.experts.{{expert}}", NAMES),
  ]
  if config.router_bias:
    out.append(same(f"{LAYER}mlp.gate.e_score_correction_bias", "moe/router_bias"))
  if config.num_shared_experts:
    shared = f"{LAYER}mlp.shared_experts"
    out += [linear(f"{shared}.{name}", f"shared/{path}") for path, name in NAMES.items()]
  return [*out, *mlp(config)] if config.num_dense_layers else out


def _v3(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = _V3 | dict(hf)
  refuse(hf, topk_method="noaux_tc", scoring_func="sigmoid")
  return DecoderConfig(**(_fields(hf) | read_experts(hf)))


def _v2(hf: Mapping[str, Any]) -> DecoderConfig:
  hf = _V2 | dict(hf)
  refuse(hf, topk_method=("greedy", "group_limited_greedy"), mlp_bias=False)
  refuse(hf, scoring_func="softmax", norm_topk_prob=False)
  values = _fields(hf) | read_experts(hf)
  values |= {"router": Router.SOFTMAX, "router_bias": False, "normalize_gates": False}
  if hf.get("topk_method") != "group_limited_greedy":
    values |= {"expert_groups": 1, "expert_groups_per_token": 1}
  return DecoderConfig(**values)


def _fields(hf: Mapping[str, Any]) -> dict[str, Any]:
  """All but the experts."""
  # The latents' norms have this eps whatever the config says.
  refuse(hf, attention_bias=False, rms_norm_eps=1e-6)
  latent = Latent(
    kv_rank=need(hf, "kv_lora_rank"),
    query_rank=hf.get("q_lora_rank"),
    nope_dim=need(hf, "qk_nope_head_dim"),
    rope_dim=need(hf, "qk_rope_head_dim"),
    value_dim=need(hf, "v_head_dim"),
    interleaved=bool(hf.get("rope_interleave", True)),
  )
  values = fields(hf)
  head_dim = latent.nope_dim + latent.rope_dim
  scale, scaling = head_dim**-0.5, values["rope_scaling"]
  if scaling is not None and scaling.mscale_all_dim:
    # YARN's sharpening of whole scores, beside what it does to the rotated dims.
    scale *= sharpening(scaling.factor, scaling.mscale_all_dim) ** 2
  values |= {"num_kv_heads": values["num_heads"], "head_dim": head_dim, "rotary_fraction": 1.0}
  return values | {"latent": latent, "attention_scale": scale}


def _v2_hf(config: DecoderConfig) -> dict[str, Any]:
  grouped = config.expert_groups > 1
  out = _v3_hf(config) | {"topk_method": "group_limited_greedy" if grouped else "greedy"}
  return {key: value for key, value in out.items() if key != "rope_interleave"}


def _v3_hf(config: DecoderConfig) -> dict[str, Any]:
  latent = config.latent
  if latent is None:
    raise UserError("model_type='deepseek_v2' or 'deepseek_v3': needs config.model.latent")
  return {
    **hf_fields(config),
    **hf_experts(config),
    "head_dim": latent.rope_dim,
    "kv_lora_rank": latent.kv_rank,
    "q_lora_rank": latent.query_rank,
    "qk_nope_head_dim": latent.nope_dim,
    "qk_rope_head_dim": latent.rope_dim,
    "v_head_dim": latent.value_dim,
    "rope_interleave": latent.interleaved,
    "num_nextn_predict_layers": 0,
  }


def _attention(config: DecoderConfig) -> list[Weight]:
  name = f"{LAYER}self_attn"
  assert config.latent is not None
  if config.latent.query_rank is None:
    queries = [linear(f"{name}.q_proj", "attention/q")]
  else:
    queries = [
      linear(f"{name}.q_a_proj", "attention/q_down"),
      same(f"{name}.q_a_layernorm.weight", "attention/q_norm/scale"),
      linear(f"{name}.q_b_proj", "attention/q_up"),
    ]
  return [
    *queries,
    linear(f"{name}.kv_a_proj_with_mqa", "attention/kv_down"),
    same(f"{name}.kv_a_layernorm.weight", "attention/kv_norm/scale"),
    linear(f"{name}.kv_b_proj", "attention/kv_up"),
    linear(f"{name}.o_proj", "attention/out", inputs=2),
  ]


def _weights(config: DecoderConfig) -> list[Weight]:
  return [*outer(config), *norms(config), *_attention(config), *expert_weights(config)]


FAMILIES = (
  Family("deepseek_v2", "DeepseekV2ForCausalLM", _v2, _v2_hf, _weights),
  Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    _v3,
    _v3_hf,
    _weights,
    # Layer 61 of the published model predicts a second token: transformers leaves it out too.
    ignored=r".*\.rotary_emb\.inv_freq|model\.layers\.61\..*",
  ),
)

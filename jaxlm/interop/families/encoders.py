"""BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and ModernBERT (Warner et al. 2024), each
with its masked-language-model head.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/bert (roberta,
modernbert). Heads of other tasks (pooler, next sentence) are left out.
"""

from collections.abc import Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop.families.base import Family, How, Weight, choose, need, refuse
from jaxlm.layers.config import Activation, Positions
from jaxlm.models.encoder_config import EncoderConfig

_PLAIN = {
  "gelu": Activation.GELU_EXACT,
  "gelu_new": Activation.GELU,
  "gelu_pytorch_tanh": Activation.GELU,
}
_GATED = {"gelu": Activation.GEGLU_EXACT, "gelu_pytorch_tanh": Activation.GEGLU}
_NAMES = {
  Activation.GELU_EXACT: "gelu",
  Activation.GELU: "gelu_new",
  Activation.GEGLU_EXACT: "gelu",
  Activation.GEGLU: "gelu_pytorch_tanh",
}


def _shape(hf: Mapping[str, Any]) -> dict[str, Any]:
  refuse(hf, tie_word_embeddings=True, is_decoder=False, add_cross_attention=False)
  return {
    "vocab_size": need(hf, "vocab_size"),
    "num_layers": need(hf, "num_hidden_layers"),
    "embed_dim": need(hf, "hidden_size"),
    "mlp_dim": need(hf, "intermediate_size"),
    "num_heads": need(hf, "num_attention_heads"),
  }


def _hf_shape(config: EncoderConfig) -> dict[str, Any]:
  return {
    "vocab_size": config.vocab_size,
    "num_hidden_layers": config.num_layers,
    "hidden_size": config.embed_dim,
    "intermediate_size": config.mlp_dim,
    "num_attention_heads": config.num_heads,
    "tie_word_embeddings": True,
    "initializer_range": config.init_std,
  }


def _linear(name: str, path: str, *, inputs: int = 1, bias: bool = True) -> list[Weight]:
  weights = [Weight(f"{name}.weight", (path,), How.LINEAR, inputs=inputs)]
  if bias:
    weights.append(Weight(f"{name}.bias", (f"{path}_bias",), inputs=0))
  return weights


def _norm(name: str, path: str, *, bias: bool = True, absent: tuple[int, ...] = ()) -> list[Weight]:
  weights = [Weight(f"{name}.weight", (f"{path}/scale",), inputs=0, absent=absent)]
  if bias:
    weights.append(Weight(f"{name}.bias", (f"{path}/bias",), inputs=0, absent=absent))
  return weights


# ---- BERT and RoBERTa -------------------------------------------------------------------------


def _bert_fields(hf: Mapping[str, Any], offset: int) -> dict[str, Any]:
  refuse(hf, position_embedding_type="absolute", embedding_size=need(hf, "hidden_size"))
  length = (hf.get("max_position_embeddings") or 512) - offset
  if length < 1:
    raise UserError(f"config.json: max_position_embeddings must be above {offset}")
  return _shape(hf) | {
    "max_seq_len": length,
    "position_offset": offset,
    "token_types": hf.get("type_vocab_size", 2),
    "positions": Positions.LEARNED,
    "activation": choose(hf, "hidden_act", _PLAIN, "gelu"),
    "norm_eps": float(hf.get("layer_norm_eps") or 1e-12),
    "pre_norm": False,
    "norm_bias": True,
    "use_bias": True,
    "local_rope_theta": None,
  }


def _bert_config(hf: Mapping[str, Any]) -> EncoderConfig:
  return EncoderConfig(**_bert_fields(hf, 0))


def _roberta_config(hf: Mapping[str, Any]) -> EncoderConfig:
  refuse(hf, hidden_act="gelu")  # the head's is that one whatever is said
  pad = hf.get("pad_token_id")
  # Positions are counted from the padding's id + 1 on.
  return EncoderConfig(**_bert_fields(hf, 2 if pad is None else pad + 1))


def _bert_hf(config: EncoderConfig) -> dict[str, Any]:
  out = _hf_shape(config) | {
    "max_position_embeddings": config.max_seq_len + config.position_offset,
    "type_vocab_size": config.token_types,
    "hidden_act": _NAMES.get(config.activation, "gelu"),
    "layer_norm_eps": config.norm_eps,
    "hidden_dropout_prob": config.dropout,
    "attention_probs_dropout_prob": 0.0,
    "position_embedding_type": "absolute",
  }
  return out if config.position_offset == 0 else out | {"pad_token_id": config.position_offset - 1}


def _bert_body(config: EncoderConfig, root: str) -> list[Weight]:
  embeddings, layer = f"{root}.embeddings", f"{root}.encoder.layer.{{layer}}"
  positions = ("position_embed/table",)
  weights = [
    Weight(f"{embeddings}.word_embeddings.weight", ("embed/table",), How.TABLE),
    Weight(f"{embeddings}.position_embeddings.weight", positions, inputs=1),
    *_norm(f"{embeddings}.LayerNorm", "embed_norm"),
  ]
  if config.token_types:
    name = f"{embeddings}.token_type_embeddings.weight"
    weights.append(Weight(name, ("type_embed/table",), inputs=1))
  for one, path in (("query", "q"), ("key", "k"), ("value", "v")):
    weights += _linear(f"{layer}.attention.self.{one}", f"attention/{path}")
  return [
    *weights,
    *_linear(f"{layer}.attention.output.dense", "attention/out", inputs=2),
    *_norm(f"{layer}.attention.output.LayerNorm", "attention_norm"),
    *_linear(f"{layer}.intermediate.dense", "mlp/up"),
    *_linear(f"{layer}.output.dense", "mlp/down"),
    *_norm(f"{layer}.output.LayerNorm", "mlp_norm"),
  ]


def _bert_weights(config: EncoderConfig) -> list[Weight]:
  return [
    *_bert_body(config, "bert"),
    *_linear("cls.predictions.transform.dense", "head/dense"),
    *_norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Weight("cls.predictions.bias", ("output_bias",), How.TABLE),
  ]


def _roberta_weights(config: EncoderConfig) -> list[Weight]:
  return [
    *_bert_body(config, "roberta"),
    *_linear("lm_head.dense", "head/dense"),
    *_norm("lm_head.layer_norm", "head/norm"),
    Weight("lm_head.bias", ("output_bias",), How.TABLE),
  ]


# ---- ModernBERT -------------------------------------------------------------------------------


def _modernbert_config(hf: Mapping[str, Any]) -> EncoderConfig:
  refuse(hf, decoder_bias=True, attention_bias=False, mlp_bias=False, classifier_bias=False)
  activation = choose(hf, "hidden_activation", _GATED, "gelu")
  refuse(hf, classifier_activation=hf.get("hidden_activation") or "gelu")
  layers, every = need(hf, "num_hidden_layers"), hf.get("global_attn_every_n_layers") or 3
  types = hf.get("layer_types")
  if types is not None:
    full = [i for i, one in enumerate(types) if one == "full_attention"]
    every = full[1] if len(full) > 1 else layers if full else 0
    if every < 1 or full != list(range(0, layers, every)):
      raise UserError(
        "config.json: layer_types must have full_attention in layers 0, n, 2n, … and "
        "sliding_attention in the others"
      )
  rope = hf.get("rope_parameters") or {}
  thetas = []
  for kind, key, default in (
    ("full_attention", "global_rope_theta", 160_000.0),
    ("sliding_attention", "local_rope_theta", 10_000.0),
  ):
    one = rope.get(kind) or {}
    refuse(one, rope_type="default")
    theta = one.get("rope_theta")
    theta = hf.get(key) if theta is None else theta
    thetas.append(float(default if theta is None else theta))
  return EncoderConfig(
    **_shape(hf),
    max_seq_len=hf.get("max_position_embeddings") or 8192,
    activation=activation,
    norm_eps=float(hf.get("norm_eps") or 1e-5),
    norm_bias=bool(hf.get("norm_bias", False)),
    rope_theta=thetas[0],
    local_rope_theta=thetas[1],
    local_reach=(hf.get("local_attention") or 128) // 2,
    global_every=every,
  )


def _modernbert_hf(config: EncoderConfig) -> dict[str, Any]:
  reach = config.max_seq_len if config.local_reach is None else config.local_reach
  local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
  return _hf_shape(config) | {
    "max_position_embeddings": config.max_seq_len,
    "hidden_activation": _NAMES.get(config.activation, "gelu"),
    "classifier_activation": _NAMES.get(config.activation, "gelu"),
    "norm_eps": config.norm_eps,
    "norm_bias": config.norm_bias,
    "local_attention": 2 * reach,
    "global_attn_every_n_layers": config.global_every,
    "layer_types": [
      "sliding_attention" if i % config.global_every else "full_attention"
      for i in range(config.num_layers)
    ],
    "global_rope_theta": config.rope_theta,
    "local_rope_theta": local,
    "rope_parameters": {
      "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
      "sliding_attention": {"rope_type": "default", "rope_theta": local},
    },
    "attention_bias": False,
    "mlp_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    # transformers' own are ids of its published vocabulary.
    **dict.fromkeys(("pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id")),
    "eos_token_id": None,
  }


def _modernbert_weights(config: EncoderConfig) -> list[Weight]:
  layer, bias = "model.layers.{layer}", config.norm_bias
  qkv = ("attention/q", "attention/k", "attention/v")
  return [
    Weight("model.embeddings.tok_embeddings.weight", ("embed/table",), How.TABLE),
    *_norm("model.embeddings.norm", "embed_norm", bias=bias),
    *_norm(f"{layer}.attn_norm", "attention_norm", bias=bias, absent=(0,)),
    Weight(f"{layer}.attn.Wqkv.weight", qkv, How.LINEAR),
    *_linear(f"{layer}.attn.Wo", "attention/out", inputs=2, bias=False),
    *_norm(f"{layer}.mlp_norm", "mlp_norm", bias=bias),
    Weight(f"{layer}.mlp.Wi.weight", ("mlp/gate", "mlp/up"), How.LINEAR),
    *_linear(f"{layer}.mlp.Wo", "mlp/down", bias=False),
    *_norm("model.final_norm", "final_norm", bias=bias),
    *_linear("head.dense", "head/dense", bias=False),
    *_norm("head.norm", "head/norm", bias=bias),
    Weight("decoder.bias", ("output_bias",), How.TABLE),
  ]


FAMILIES = (
  Family(
    "bert",
    "BertForMaskedLM",
    _bert_config,
    _bert_hf,
    _bert_weights,
    prefix="",
    ignored=r"bert\.embeddings\.position_ids|bert\.pooler\..*|cls\.seq_relationship\..*"
    r"|cls\.predictions\.decoder\..*",
  ),
  Family(
    "roberta",
    "RobertaForMaskedLM",
    _roberta_config,
    _bert_hf,
    _roberta_weights,
    prefix="",
    ignored=r"roberta\.embeddings\.position_ids|roberta\.pooler\..*|lm_head\.decoder\..*",
  ),
  Family(
    "modernbert",
    "ModernBertForMaskedLM",
    _modernbert_config,
    _modernbert_hf,
    _modernbert_weights,
    prefix="",
    ignored=r"decoder\.weight",
  ),
)

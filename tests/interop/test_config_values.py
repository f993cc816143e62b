"""config.json both ways: values of wrong kinds are one line, and what no family has is not lost."""

import pytest

from jaxlm.errors import UserError
from jaxlm.interop.families import FAMILIES, find_family, hf_config
from jaxlm.layers.config import (
  Activation,
  Latent,
  Norm,
  NormPlacement,
  Positions,
  RopeKind,
  RopeScaling,
  Router,
)
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig

BASE = dict(
  vocab_size=97, num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, head_dim=8, max_seq_len=64
)
GEMMA = dict(
  norm_offset=1.0,
  embed_scale=32**0.5,
  activation=Activation.GEGLU,
  norm_placement=NormPlacement.BOTH,
  tie_embeddings=True,
)
GEMMA3 = GEMMA | dict(
  qk_norm=True, sliding_window=16, window_pattern=(True, False), local_rope_theta=100.0
)
SIGMOID = dict(
  num_experts=8, num_shared_experts=1, num_dense_layers=1, dense_mlp_dim=40, router=Router.SIGMOID
)
SIGMOID |= dict(router_bias=True, router_scale=2.5)
DEEPSEEK = SIGMOID | dict(
  head_dim=12, latent=Latent(kv_rank=8, nope_dim=8, rope_dim=4, value_dim=8)
)
LAYER = dict(norm=Norm.LAYER, use_bias=True, head_dim=None)
YARN = RopeScaling(kind=RopeKind.YARN, factor=4.0, original_max_seq_len=16)
MODELS = {
  "llama": {},
  "mistral": dict(sliding_window=16),
  "qwen2": dict(qkv_bias=True),
  "qwen3": dict(qk_norm=True),
  "olmo2": dict(qk_norm=True, qk_norm_whole=True, norm_placement=NormPlacement.POST),
  "mixtral": dict(num_experts=4),
  "qwen3_moe": dict(num_experts=4, qk_norm=True),
  "gemma": GEMMA | dict(norm_placement=NormPlacement.PRE),
  "gemma2": GEMMA | dict(attention_softcap=50.0, sliding_window=16, window_pattern=(True, False)),
  "gemma3_text": GEMMA3,
  "dots1": SIGMOID | dict(qk_norm=True),
  "deepseek_v3": DEEPSEEK,
  "phi3": dict(rotary_fraction=0.5, head_dim=None),
  "gpt_neox": LAYER | dict(rotary_fraction=0.5, activation=Activation.GELU_EXACT),
  "gpt2": LAYER | dict(positions=Positions.LEARNED, activation=Activation.GELU),
  "bloom": LAYER
  | dict(positions=Positions.ALIBI, activation=Activation.GELU, embed_norm=True, mlp_dim=128),
}
PARTIAL = {
  name: changes
  for name, changes in MODELS.items()
  if name not in ("gpt_neox", "gpt2", "bloom", "deepseek_v3", "phi3", "llama")
}


def config(changes):
  return DecoderConfig(**(BASE | changes))


def check(values):
  """A config from these values, or None for one that is refused in a line."""
  try:
    found = find_family(values).to_config(values)
    found.validate("config.model")
  except UserError as error:
    assert "\n" not in str(error)
    return None
  return found


@pytest.mark.parametrize("name", MODELS)
def test_wrong_kinds_are_one_line(name):
  """Every key with values that it can't have: a UserError, or a config that validates."""
  values = hf_config(config(MODELS[name]), model_type=name)
  assert check(values) is not None
  for key in values:
    for bad in (None, 0, -1, "x", [], [1], {}, {"x": 1}, 1.5, True, 10**30, float("nan")):
      check(values | {key: bad})


@pytest.mark.parametrize("values", ["x", {"rope_type": []}, {"rope_type": "yarn", "factor": "x"}])
def test_rope_parameters_of_wrong_kinds(values):
  good = hf_config(config({}))
  for key in ("rope_scaling", "rope_parameters"):
    assert check(good | {"rope_parameters": None, key: values}) is None


def test_encoders_too():
  encoder = EncoderConfig(vocab_size=97, num_layers=4, embed_dim=32, num_heads=4, local_reach=8)
  values = hf_config(encoder)
  for key in values:
    for bad in (None, 0, -1, "x", [], {}, 1.5, 10**30):
      check(values | {key: bad})


@pytest.mark.parametrize("name", PARTIAL)
def test_a_part_of_each_head_is_not_lost(name):
  """transformers' code of these families rotates whole heads whatever the config says: a model that
  rotates a part must not be written as one of them."""
  whole = hf_config(config(PARTIAL[name]))
  assert whole["model_type"] == name
  with pytest.raises(UserError, match=r"lacks .*rotary_fraction"):
    hf_config(config(PARTIAL[name] | {"rotary_fraction": 0.5}), model_type=name)
  read = find_family(whole).to_config(whole | {"partial_rotary_factor": 0.5})
  assert read.rotary_fraction == 1


def test_a_part_of_each_head_is_a_phi3():
  """The plain Llama that rotates a part of each head has a family."""
  half = {"rotary_fraction": 0.5}
  assert hf_config(config(half))["model_type"] == "phi3"
  assert hf_config(config(MODELS["gpt_neox"]))["model_type"] == "gpt_neox"
  for more in ({"qk_norm": True}, {"num_experts": 4}):
    with pytest.raises(UserError, match="no Hugging Face model type"):
      hf_config(config(half | more))


def test_local_layers_under_scaling_have_no_gemma3():
  """Without a base of their own they are scaled as all others; Gemma 3's are not."""
  assert hf_config(config(GEMMA3))["model_type"] == "gemma3_text"
  own = GEMMA3 | {
    "rope_scaling": RopeScaling(kind=RopeKind.LINEAR, factor=4.0, original_max_seq_len=16)
  }
  assert hf_config(config(own))["model_type"] == "gemma3_text"
  assert hf_config(config(GEMMA3 | {"local_rope_theta": None}))["model_type"] == "gemma3_text"
  with pytest.raises(UserError, match="local_rope_theta"):
    hf_config(config(own | {"local_rope_theta": None}), model_type="gemma3_text")


def test_linear_scaling_reads_no_length():
  """Exported whatever original_max_seq_len says, which changes nothing in it."""
  for length in (16, 64):
    scaling = RopeScaling(kind=RopeKind.LINEAR, factor=2.0, original_max_seq_len=length)
    assert hf_config(config({"rope_scaling": scaling}))["rope_scaling"]["factor"] == 2


def test_every_listed_model_type_is_a_family():
  assert set(MODELS) <= set(FAMILIES)

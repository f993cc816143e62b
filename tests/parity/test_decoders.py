"""Decoder families against transformers itself: the same numbers, there, back and on a mesh.

One table of cases: adding a family is a line of it beside the family's file.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import tree
from jaxlm.errors import UserError
from jaxlm.interop.families import FAMILIES, export_tensors, family_of, hf_config, import_params
from jaxlm.interop.tensors import open_tensors
from jaxlm.layers.config import DType
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.sharding import make_layout

torch = pytest.importorskip("torch", reason="parity needs torch (CPU)")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")
safetensors = pytest.importorskip("safetensors.numpy", reason="parity needs safetensors")

T, V = 600, 93  # tokens: long enough to see errors of positions; and an odd vocabulary
# Float32 sums in another order: what 2 layers make of rounding, logits being of size 1 to 3.
TOLERANCE = 2e-5


@dataclasses.dataclass(frozen=True)
class Case:
  """A tiny model. changes: of COMMON. tolerance, reason: where it is not TOLERANCE."""

  model_type: str
  changes: tuple[tuple[str, Any], ...] = ()
  tolerance: float = TOLERANCE
  reason: str = ""


COMMON = {
  "vocab_size": V,
  "hidden_size": 48,
  "intermediate_size": 72,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,  # 4 × 16 is not 48
  "max_position_embeddings": 640,
  "tie_word_embeddings": False,
  "bos_token_id": None,
  "eos_token_id": None,
  "pad_token_id": None,
}


def case(model_type, tolerance=TOLERANCE, reason="", **changes):
  return Case(model_type, tuple(changes.items()), tolerance, reason)


def rope(kind, **parameters):
  return {"rope_type": kind, "rope_theta": 10_000.0, **parameters}


LLAMA3 = rope(
  "llama3",
  factor=4.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=128,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=160)
# 48 / 4 = 12: GPT-2 and its like have no head_dim of their own.
GPT = {"head_dim": None, "num_key_value_heads": None, "intermediate_size": None}
GPT2 = {
  "n_embd": 48,
  "n_layer": 2,
  "n_head": 4,
  "n_positions": 640,
  **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads"), None),
  **dict.fromkeys(("max_position_embeddings",), None),
  **GPT,
}
BLOOM = {"n_layer": 2, "n_head": 4, "num_hidden_layers": None, "num_attention_heads": None, **GPT}
MPT = {
  "d_model": 48,
  "n_layers": 2,
  "max_seq_len": 640,
  **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads"), None),
  **dict.fromkeys(("max_position_embeddings",), None),
  **GPT,
}
MOE = {"num_experts_per_tok": 2, "num_hidden_layers": 2}
CASES = {
  "llama": case("llama"),
  "llama_biases_tied": case(
    "llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, num_key_value_heads=4
  ),
  "llama_llama3": case("llama", rope_parameters=LLAMA3),
  "llama_linear": case("llama", rope_parameters=rope("linear", factor=3.0)),
  "llama_dynamic": case(
    "llama", rope_parameters=rope("dynamic", factor=3.0), max_position_embeddings=256
  ),
  "llama_yarn": case("llama", rope_parameters=YARN),
  "qwen3": case("qwen3"),
  "qwen3_windows": case(
    "qwen3", use_sliding_window=True, sliding_window=9, max_window_layers=1, attention_bias=True
  ),
  "mistral": case("mistral", sliding_window=9),
  "gpt2": case("gpt2", **GPT2, tie_word_embeddings=True),
  "gpt2_untied": case("gpt2", **(GPT2 | {"n_inner": 72}), activation_function="gelu"),
  "qwen2": case("qwen2", head_dim=None, tie_word_embeddings=True),
  "gpt_neox": case("gpt_neox", **(GPT | {"intermediate_size": 72}), hidden_size=64),
  "gpt_neox_serial": case(
    "gpt_neox", **(GPT | {"intermediate_size": 72}), use_parallel_residual=False, rotary_pct=0.5
  ),
  "gemma": case("gemma", tie_word_embeddings=True),
  "gemma2": case("gemma2", tie_word_embeddings=True, sliding_window=9, query_pre_attn_scalar=24),
  "gemma3": case(
    "gemma3_text",
    tie_word_embeddings=True,
    sliding_window=9,
    query_pre_attn_scalar=24,
    layer_types=["sliding_attention", "full_attention"],
  ),
  "olmo2": case("olmo2", head_dim=None),
  "phi3": case("phi3", head_dim=None, sliding_window=9, pad_token_id=0),
  "phi3_partial": case(
    "phi3",
    head_dim=None,
    pad_token_id=0,
    rope_parameters=rope("default", partial_rotary_factor=0.5),
  ),
  "phi3_longrope": case(
    "phi3",
    head_dim=None,
    pad_token_id=0,
    original_max_position_embeddings=320,
    rope_parameters=rope(
      "longrope",
      short_factor=[1.0 + 0.1 * i for i in range(6)],
      long_factor=[1.5 + 0.3 * i for i in range(6)],
    ),
  ),
  "bloom": case("bloom", **BLOOM, tie_word_embeddings=True),
  "bloom_6_heads": case("bloom", **(BLOOM | {"n_head": 6}), tie_word_embeddings=True),
  "mpt": case(
    "mpt",
    tolerance=4e-5,
    reason="transformers' own float32 logits are 1.4e-5 from its float64 ones, jaxlm's 1.9e-5",
    **MPT,
    n_heads=6,
    tie_word_embeddings=True,
  ),
  "mixtral": case("mixtral", num_local_experts=4, **MOE),
  "qwen3_moe": case(
    "qwen3_moe", num_experts=4, moe_intermediate_size=40, norm_topk_prob=True, **MOE
  ),
}
CASES["qwen3_moe_raw"] = dataclasses.replace(
  CASES["qwen3_moe"], changes=(*CASES["qwen3_moe"].changes, ("norm_topk_prob", False))
)
CASES["dots1"] = case(
  "dots1",
  n_routed_experts=8,
  n_shared_experts=2,
  n_group=4,
  topk_group=2,
  moe_intermediate_size=40,
  norm_topk_prob=True,
  routed_scaling_factor=1.7,
  first_k_dense_replace=1,
  sliding_window=9,
  **(MOE | {"num_experts_per_tok": 3}),
)
DEEPSEEK = {
  "num_hidden_layers": 3,
  "first_k_dense_replace": 1,
  "head_dim": None,
  "num_key_value_heads": 4,
  "kv_lora_rank": 24,
  "q_lora_rank": 20,
  "qk_nope_head_dim": 12,
  "qk_rope_head_dim": 8,
  "v_head_dim": 10,
  "n_routed_experts": 8,
  "n_shared_experts": 1,
  "n_group": 4,
  "topk_group": 2,
  "num_experts_per_tok": 3,
  "moe_intermediate_size": 40,
}
CASES["deepseek_v3"] = case("deepseek_v3", **DEEPSEEK)
CASES["deepseek_v2"] = case(
  "deepseek_v2", **DEEPSEEK, topk_method="group_limited_greedy", routed_scaling_factor=1.3
)
CASES["deepseek_v2_greedy"] = case(
  "deepseek_v2",
  tolerance=4e-5,
  reason="transformers is 1.6e-5 and jaxlm 2.0e-5 from transformers in float64",
  **(DEEPSEEK | {"q_lora_rank": None, "n_group": None, "topk_group": None}),
)
CASES["deepseek_v3_yarn"] = case(
  "deepseek_v3",
  tolerance=4e-5,
  reason="transformers and jaxlm are each 1.2e-5 from transformers in float64",
  **(DEEPSEEK | {"q_lora_rank": None, "num_hidden_layers": 2, "routed_scaling_factor": 1.0}),
  rope_parameters=YARN | {"mscale": 0.8, "mscale_all_dim": 0.6},
)
DECODERS = {one.model_type for one in CASES.values()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """By case: the transformers model, its folder, and what jaxlm reads there."""
  found = {}

  def get(name):
    if name not in found:
      found[name] = Made(CASES[name], tmp_path_factory.mktemp(name))
    return found[name]

  return get


class Made:
  """One case on both sides."""

  def __init__(self, case, folder):
    values = {k: v for k, v in (COMMON | dict(case.changes)).items() if v is not None}
    hf = transformers.AutoConfig.for_model(case.model_type, **values)
    hf._attn_implementation = "eager"
    self.case, self.folder = case, folder
    self.torch = transformers.AutoModelForCausalLM.from_config(hf).float().eval()
    randomise(self.torch)
    self.torch.save_pretrained(folder)
    self.tensors = open_tensors(folder)
    self.family = FAMILIES[case.model_type]
    self.config = for_test(self.family.to_config(self.tensors.config))
    self.config.validate("model")
    self.model = self.config.build()
    self.ids = np.random.default_rng(1).integers(0, V, (2, T)).astype(np.int32)

  @functools.cached_property
  def expected(self):
    return torch_logits(self.torch, self.ids)

  @functools.cached_property
  def params(self):
    return import_params(self.tensors, self.config)

  @functools.cached_property
  def logits(self):
    return np.asarray(forward(self.model, self.params, jnp.asarray(self.ids)))[..., :V]


def for_test(config):
  return dataclasses.replace(config, compute_dtype=DType.FLOAT32, vocab_multiple=8)


def randomise(model, seed=0):
  """Weights that leave logits of size 1, and norms and biases that no default would hide."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, p in model.named_parameters():
      noise = torch.tensor(rng.normal(size=tuple(p.shape)), dtype=torch.float32)
      if p.ndim == 1:
        p += 0.3 * noise
      elif "emb" in name or "wte" in name or "wpe" in name:
        p.copy_(0.1 * noise)
      else:
        p.copy_(0.8 * noise * min(p.shape[-2:]) ** -0.5)

    for name, b in model.named_buffers():
      if name.endswith("e_score_correction_bias"):
        b += 0.1 * torch.tensor(rng.normal(size=tuple(b.shape)), dtype=torch.float32)


def torch_logits(model, ids):
  with torch.no_grad():
    return model(torch.tensor(ids).long()).logits.float().numpy()


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, ids, **kwargs):
  return model.bind(params)(ids, **kwargs)[0]


def gap(a, b):
  return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


@pytest.mark.parametrize("name", CASES)
def test_import(name, made, record_property):
  """Broken by any difference of the two models, however small its effect on one position."""
  one = made(name)
  assert tree.count(one.params) == one.config.num_params()
  assert one.expected.std() > 0.2, "logits too dull to tell anything"
  difference = gap(one.logits, one.expected)
  record_property("difference", difference)
  print(f"PARITY {name} {difference:.2e} of {np.abs(one.expected).max():.1f}")
  assert difference < one.case.tolerance
  assert (one.case.tolerance > TOLERANCE) == bool(one.case.reason)


@pytest.mark.parametrize("name", CASES)
def test_export(name, made, tmp_path):
  """The tensors that came in, under a config.json that makes transformers compute the same."""
  one = made(name)
  kind = one.case.model_type
  found = dict(export_tensors(one.params, one.config, kind))
  assert set(found) == set(one.tensors.names())
  for tensor, array in found.items():
    assert gap(array, one.tensors.read(tensor)) < 1e-6, tensor
  values = json.loads(json.dumps(hf_config(one.config, model_type=kind)))
  (tmp_path / "config.json").write_text(json.dumps(values))
  safetensors.save_file(found, tmp_path / "model.safetensors", metadata={"format": "pt"})
  back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
  assert gap(torch_logits(back.float().eval(), one.ids), one.expected) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_family_is_found(name, made):
  """A config alone names a family that computes the same: its own, or one that does so too."""
  one = made(name)
  also = {"phi3": ("llama", "mistral")}
  found = family_of(one.config).model_type
  assert found in (one.case.model_type, *also.get(one.case.model_type, ()))
  assert "rope_parameters" not in (values := hf_config(one.config)) or "rope_theta" in values
  assert values["torch_dtype"] == values["dtype"] == "float32"


@pytest.mark.parametrize("name", CASES)
def test_cache(name, made):
  """Prefilled and then token by token is the whole row at once; broken by a window or positions
  that count slots wrongly, or a layer that is told of another one's window."""
  one = made(name)
  prompt, total = 20, 24
  ids = jnp.asarray(one.ids[:, :total])
  module = one.model.bind(one.params)

  @jax.jit
  def run(params, cache, ids, positions):
    return one.model.bind(params)(ids, cache=cache, positions_BT=positions)

  places = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32)[None], ids.shape)
  out, cache = run(one.params, module.empty_cache(2, 32), ids[:, :prompt], places[:, :prompt])
  parts = [out]
  for t in range(prompt, total):
    out, cache = run(one.params, cache, ids[:, t : t + 1], places[:, t : t + 1])
    parts.append(out)
  whole = forward(one.model, one.params, ids)
  assert gap(jnp.concatenate(parts, axis=1)[..., :V], whole[..., :V]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_sharded(name, made):
  """Imported straight into 2 × 2 shards, unrolled: the logits of one device, scanned."""
  one = made(name)
  layout = make_layout(MeshConfig(fsdp=2, model=2), jax.devices()[:4])
  config = dataclasses.replace(one.config, scan_layers=False)
  config.validate_mesh("model", {axis: layout.size(axis) for axis in layout.mesh.axis_names})
  with layout.activate():
    model = config.build()
    params = import_params(one.tensors, config)
    ids = jax.device_put(one.ids[:, :64], layout.sharding(("act_batch", "act_seq")))
    found = np.asarray(forward(model, params, ids))[..., :V]
    axes = {axis for leaf in jax.tree.leaves(params) for axis in leaf.sharding.spec if axis}
    assert axes >= {"fsdp", "model"}
  whole = forward(one.model, one.params, jnp.asarray(one.ids[:, :64]))[..., :V]
  assert gap(found, whole) < TOLERANCE
  for (tensor, array), (other, expected) in zip(
    export_tensors(params, config), export_tensors(one.params, one.config), strict=True
  ):
    assert tensor == other
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_gradient_step(name, made):
  """The loss after one step of gradient descent is transformers'; broken by a wrong gradient."""
  one = made(name)
  ids, rate = one.ids[:, :48], 0.3

  def loss(params):
    out = one.model.bind(params)(jnp.asarray(ids[:, :-1]))[0]
    log_p = jax.nn.log_softmax(out, axis=-1)
    return -jnp.take_along_axis(log_p, jnp.asarray(ids[:, 1:, None]), axis=-1).mean()

  before, grads = jax.jit(jax.value_and_grad(loss))(one.params)
  after = loss(jax.tree.map(lambda p, g: p - rate * g, one.params, grads))

  model = transformers.AutoModelForCausalLM.from_pretrained(
    one.folder, attn_implementation="eager"
  ).float()

  def torch_loss():
    out = model(torch.tensor(ids[:, :-1]).long()).logits
    targets = torch.tensor(ids[:, 1:]).long()
    return torch.nn.functional.cross_entropy(out.reshape(-1, V), targets.reshape(-1))

  first = torch_loss()
  first.backward()
  with torch.no_grad():
    for p in model.parameters():
      if p.grad is not None:
        p -= rate * p.grad
    second = torch_loss()
  assert abs(float(before) - first.item()) < 1e-5
  assert abs(float(after) - second.item()) < 1e-5
  assert first.item() - second.item() > 0.01, "a step too small to tell anything"


def test_every_decoder_is_in_the_table():
  """A family without a case is not shown to be right."""
  configs = {name for name, family in FAMILIES.items() if "ForCausalLM" in family.architecture}
  assert configs | {"gpt2"} == DECODERS


class Changed:
  """Tensors with some of them changed."""

  def __init__(self, tensors, drop=(), add=None, shapes=None, config=None):
    self.config, self._inner = tensors.config | (config or {}), tensors
    self._drop, self._add, self._shapes = set(drop), add or {}, shapes or {}
    self.where = tensors.where

  def names(self):
    return [name for name in self._inner.names() if name not in self._drop] + [*self._add]

  def shape(self, name):
    return self._shapes.get(name) or self._inner.shape(name)

  def dtype(self, name):
    return self._inner.dtype(name)

  def read(self, name):
    return self._inner.read(name)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"drop": ["model.norm.weight"]}, "model.norm.weight: no such tensor"),
    ({"add": {"model.layers.0.self_attn.q_norm.weight": 1}}, "q_norm.weight: a tensor that"),
    ({"shapes": {"lm_head.weight": (94, 48)}}, "lm_head.weight: has shape"),
    ({"config": {"model_type": "lama"}}, "did you mean 'llama'"),
  ],
)
def test_wrong_tensors_are_named(changes, message, made):
  one = made("llama")
  with pytest.raises(UserError, match=message):
    import_params(Changed(one.tensors, **changes), one.config)


def test_published_names_and_buffers(made):
  """Files without the prefix (GPT-2's own), with buffers that say nothing, with a tied output."""
  one = made("gpt2")

  class Bare(Changed):
    def names(self):
      names = [name.removeprefix("transformer.") for name in self._inner.names()]
      return [*names, "h.0.attn.bias", "lm_head.weight"]

    def shape(self, name):
      return self._inner.shape(f"transformer.{name}")

    def read(self, name):
      return self._inner.read(f"transformer.{name}")

  params = import_params(Bare(one.tensors), one.config)
  jax.tree.map(np.testing.assert_array_equal, params, one.params)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rope_parameters": {"rope_type": "fancy"}}, "rope_type='fancy'"),
    ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ({"hidden_size": None}, "hidden_size is missing"),
  ],
)
def test_unknown_configs_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    FAMILIES["llama"].to_config({**COMMON, "model_type": "llama", **change})


def test_what_no_family_has_is_not_exported():
  config = DecoderConfig(vocab_size=60, norm_offset=1.0, parallel_residual=True)
  with pytest.raises(UserError, match="no Hugging Face model type"):
    hf_config(config)

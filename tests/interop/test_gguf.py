"""GGUF: written, read again, and read by the gguf package itself."""

import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.interop.families import find_family
from jaxlm.interop.gguf_config import read_config, write_metadata
from jaxlm.interop.gguf_export import write_gguf
from jaxlm.interop.gguf_families import llama3_factors, spec_of_arch
from jaxlm.interop.gguf_file import GgufFile
from jaxlm.interop.tensors import open_tensors

gguf = pytest.importorskip("gguf", reason="pip install 'jaxlm[interop]'")

LLAMA = {
  "model_type": "llama",
  "vocab_size": 96,
  "num_hidden_layers": 2,
  "hidden_size": 64,
  "intermediate_size": 96,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "max_position_embeddings": 128,
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "tie_word_embeddings": False,
}


def _tensors(config, *, norm=0.0):
  rng, D, F = np.random.default_rng(0), 64, 96
  H, N = 4 * 16, 2 * 16
  shapes = {
    "model.embed_tokens.weight": (96, D),
    "model.norm.weight": (D,),
    "lm_head.weight": (96, D),
  }
  for i in range(2):
    p = f"model.layers.{i}."
    shapes |= {
      f"{p}input_layernorm.weight": (D,),
      f"{p}post_attention_layernorm.weight": (D,),
      f"{p}self_attn.q_proj.weight": (H, D),
      f"{p}self_attn.k_proj.weight": (N, D),
      f"{p}self_attn.v_proj.weight": (N, D),
      f"{p}self_attn.o_proj.weight": (D, H),
      f"{p}mlp.gate_proj.weight": (F, D),
      f"{p}mlp.up_proj.weight": (F, D),
      f"{p}mlp.down_proj.weight": (D, F),
    }
    if config["model_type"] == "qwen2":
      shapes |= {f"{p}self_attn.{n}_proj.bias": (d,) for n, d in (("q", H), ("k", N), ("v", N))}
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize(
  ("kind", "error"), [("F32", 0), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2)]
)
def test_what_is_written_is_read(tmp_path, model_type, kind, error):
  config = LLAMA | {"model_type": model_type}
  made = _tensors(config)
  write_gguf(tmp_path / "x.gguf", config, made.items, {}, kind)
  found = open_tensors(tmp_path / "x.gguf")
  assert set(found.names()) == set(made)
  for name, array in made.items():
    assert found.shape(name) == array.shape
    # Gemma's norms are stored as 1 + w: one rounding.
    bound = max(error, 1e-6 if model_type == "gemma" else 0)
    np.testing.assert_allclose(found.read(name).astype(np.float32), array, atol=bound, rtol=error)
  same = set(LLAMA) - {"model_type"}
  assert {k: found.config[k] for k in same} == {k: LLAMA[k] for k in same}


def test_the_package_reads_it_and_llama_is_permuted(tmp_path):
  made = _tensors(LLAMA)
  write_gguf(tmp_path / "x.gguf", LLAMA, made.items, {"tokenizer.ggml.tokens": ["a", "é"]}, "F32")
  reader = gguf.GGUFReader(tmp_path / "x.gguf")
  by_name = {t.name: t for t in reader.tensors}
  assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "é"]
  q = made["model.layers.1.self_attn.q_proj.weight"]
  # llama.cpp's convert_hf_to_gguf.py, permute().
  permuted = q.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(q.shape)
  np.testing.assert_array_equal(by_name["blk.1.attn_q.weight"].data, permuted)
  assert not np.array_equal(permuted, q)


def test_llama3_scaling_comes_back(tmp_path):
  scaling = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  config = LLAMA | {"rope_theta": 500000.0, "rope_scaling": scaling}
  write_gguf(tmp_path / "x.gguf", config, _tensors(config).items, {}, "F16")
  assert open_tensors(tmp_path / "x.gguf").config["rope_scaling"] == scaling
  assert llama3_factors(16, 500000.0, scaling)[0] == 1


@pytest.mark.parametrize("cut", [2, 20, 500, -10])
def test_damaged_files_are_one_line(tmp_path, cut):
  write_gguf(tmp_path / "x.gguf", LLAMA, _tensors(LLAMA).items, {}, "F16")
  data = (tmp_path / "x.gguf").read_bytes()
  (tmp_path / "y.gguf").write_bytes(data[:cut])
  with pytest.raises(UserError, match=r"y\.gguf") as error:
    GgufFile(tmp_path / "y.gguf")
  assert "\n" not in str(error.value)


def test_what_has_no_place_is_refused(tmp_path):
  with pytest.raises(UserError, match="model_type 'bloom'"):
    write_gguf(tmp_path / "x.gguf", {"model_type": "bloom"}, dict.items, {})
  with pytest.raises(UserError, match=r"odd\.weight has no place"):
    write_gguf(tmp_path / "x.gguf", LLAMA, {"odd.weight": np.zeros((2, 2))}.items, {})
  assert not list(tmp_path.iterdir())


GEMMA2 = LLAMA | {"model_type": "gemma2", "query_pre_attn_scalar": 16}


@pytest.mark.parametrize(
  ("changes", "lost"),
  [
    ({"hidden_act": "gelu_new"}, "activation"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 64.0}}, "rope_scaling"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 2}}, "rope_scaling"),
    (GEMMA2 | {"query_pre_attn_scalar": 256}, "attention_scale"),
    (GEMMA2 | {"attn_logit_softcapping": None}, "attention_softcap"),
    (GEMMA2 | {"final_logit_softcapping": None}, "logits_softcap"),
    (GEMMA2 | {"layer_types": ["sliding_attention"] * 2}, "window_pattern"),
    (GEMMA2 | {"sliding_window": None}, "local_rope_theta, sliding_window, window_pattern"),
  ],
)
def test_what_would_read_back_as_another_model_is_refused(tmp_path, changes, lost):
  """Metadata that lacks it stands for the architecture's own default in every reader."""
  with pytest.raises(UserError, match=f"can't say this model's {lost}") as error:
    write_gguf(tmp_path / "x.gguf", LLAMA | changes, _tensors(LLAMA).items, {})
  assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_llama3_scaling_is_llamas_alone(tmp_path):
  """llama.cpp looks for rope_freqs.weight in no other of these architectures."""
  scaling = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  }
  with pytest.raises(UserError, match="'llama3' has no place in GGUF's arch qwen2"):
    config = LLAMA | {"model_type": "qwen2", "rope_scaling": scaling}
    write_gguf(tmp_path / "x.gguf", config, _tensors(config).items, {})


@pytest.mark.parametrize(
  ("layers", "heads", "scalar"), [(26, 8, 256), (42, 16, 256), (46, 32, 144), (2, 4, 256)]
)
def test_gemma2_scores_are_scaled_by_size(layers, heads, scalar):
  """GGUF has no key for it: Gemma 2 2B, 9B and 27B as published, and another of that kind."""
  widths = {26: 2304, 42: 3584, 46: 4608, 2: 32}
  fields = {
    "gemma2.block_count": layers,
    "gemma2.embedding_length": widths[layers],
    "gemma2.feed_forward_length": 64,
    "gemma2.attention.head_count": heads,
    "gemma2.attention.key_length": 256 if layers != 46 else 128,
  }
  config = read_config(fields, spec_of_arch("gemma2", "x"), "x", vocab_size=96, tied=True)
  assert config["query_pre_attn_scalar"] == scalar
  assert find_family(config).to_config(config).attention_scale == scalar**-0.5


@pytest.mark.parametrize(
  ("key", "value"),
  [("rope.dimension_count", 8), ("rope.scaling.yarn_beta_fast", 64.0), ("block_count", "x")],
)
def test_metadata_of_no_family_is_refused(key, value):
  spec = spec_of_arch("llama", "x")
  fields = write_metadata(LLAMA, spec)
  read_config(fields, spec, "x", vocab_size=96, tied=True)
  with pytest.raises(UserError, match=f"x: llama.{key}"):
    read_config(fields | {f"llama.{key}": value}, spec, "x", vocab_size=96, tied=True)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_what_is_no_float_is_not_written(tmp_path, dtype):
  made = _tensors(LLAMA)
  made["model.layers.1.mlp.up_proj.weight"] = made["model.layers.1.mlp.up_proj.weight"].astype(
    dtype
  )
  with pytest.raises(UserError, match=rf"model\.layers\.1\.mlp\.up_proj\.weight: is {dtype}"):
    write_gguf(tmp_path / "x.gguf", LLAMA, made.items, {})

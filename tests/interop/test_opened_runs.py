"""A run opened for use: no expert is full, and a prefix-LM's prompt is its prefix."""

import jax
import numpy as np
import pytest

from jaxlm import configlib, convert, trained
from jaxlm.data.task import PrefixConfig
from jaxlm.inference.sampling import Sampling
from jaxlm.interop.bundle import open_bundle
from jaxlm.interop.families import export_tensors, hf_config
from jaxlm.interop.hf_folder import write_folder
from jaxlm.interop.tokenizer_files import tokenizer_files
from jaxlm.models.config import DecoderConfig
from jaxlm.tokenizers.byte import ByteTokenizer

pytest.importorskip("tokenizers", reason="pip install 'jaxlm[tokenizers]'")
GREEDY = {"max_new_tokens": 8, "sampling": Sampling(temperature=0)}


@pytest.fixture
def make(tmp_path, monkeypatch):
  def make(change, **changes):
    """The directory of a run whose config was changed by `change` before it was sealed."""
    model = DecoderConfig(
      vocab_size=257,
      num_layers=2,
      embed_dim=32,
      mlp_dim=48,
      num_heads=4,
      max_seq_len=64,
      init_std=0.3,
      **changes,
    )
    tensors = export_tensors(model.build().init(jax.random.key(0)), model)
    files = tokenizer_files(ByteTokenizer())
    write_folder(tmp_path / "hf", hf_config(model), tensors, files=files)
    plain = convert._run_config

    def changed(*args):
      config = plain(*args)
      change(config)
      return config

    monkeypatch.setattr(convert, "_run_config", changed)
    convert.import_run(open_bundle(tmp_path / "hf"), tmp_path / "run", "hf:x", optimizer=False)
    return tmp_path / "run"

  return make


def test_equal_prompts_have_equal_answers(make):
  """With little room for each expert, what a row gets depends on the rows before it."""

  def change(config):
    config.model.expert_capacity = 0.5

  workdir = make(change, num_experts=4)
  opened = trained.open_run(workdir)
  assert opened.config.model.expert_capacity == 0.5
  alone = opened.generate(["hello"], **GREEDY)
  assert opened.generate(["hello"] * 4, **GREEDY) == alone * 4


def test_a_prefix_lm_sees_its_prompt_whole(make):
  """The first token added is what a full pass with the prompt as prefix says."""

  def change(config):
    config.data.task = PrefixConfig()

  workdir = make(change)
  opened = trained.open_run(workdir)
  assert configlib.load_json(workdir / "config.json").data.task == PrefixConfig()
  ids = np.asarray([[*opened.begin, *b"hello world"]], np.int32)
  module = opened.model.bind(opened.params)
  with opened.layout.activate():
    both, causal = (
      int(module(ids, prefix_BT=prefix)[0][0, -1, :257].argmax())
      for prefix in (np.ones_like(ids), None)
    )
    found = opened.generator()(ids.tolist(), max_new_tokens=1, sampling=Sampling(temperature=0))
  assert both != causal, "too dull to tell"
  assert found == [[both]]

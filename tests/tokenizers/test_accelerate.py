"""A faster encoder is used only after it gave the reference's ids, and one that differs never."""

import random
import sys

import pytest

from jaxlm.data.prep.config import TokenizerKind, TokenizerTrainConfig
from jaxlm.data.prep.train_tokenizer import train_any
from jaxlm.errors import UserError
from jaxlm.tokenizers import accelerate as module
from jaxlm.tokenizers.accelerate import AcceleratedTokenizer, accelerate, compare
from jaxlm.tokenizers.base import load_tokenizer, set_threads
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tokenizers.config import Accelerator

pytest.importorskip("tokenizers")

TEXT = "the model reads text and learns to write more of the same kind 1234 ünïcode 日本 \n\n \t"
WORDS = TEXT.split(" ")


def _documents(count):
  rng = random.Random(0)
  return [" ".join(rng.choices(WORDS, k=rng.randrange(60))) for _ in range(count)]


@pytest.fixture(scope="module")
def reference():
  config = TokenizerTrainConfig(kind=TokenizerKind.HUGGINGFACE, control_symbols=("<pad>",))
  return train_any(_documents(200), config, 400)


@pytest.mark.parametrize("name", ["tiktoken", "fastokens"])
def test_the_same_ids(reference, name):
  """The installed ones agree on this vocabulary, on one thread and on several."""
  pytest.importorskip(name)
  lines: list[str] = []
  fast, record = accelerate(reference, Accelerator(name), lambda: _documents(1000), lines.append)
  assert isinstance(fast, AcceleratedTokenizer)
  assert record["accelerator"] == name and record["equal"] and record["documents"] == 1000
  assert record["version"] and lines == [f"{name}: the same ids on 1,000 documents; it encodes"]
  texts = [*_documents(300), "", "x<|endoftext|><pad>y", "\u2581", "a" * 600_000]
  for threads in (None, 1):
    set_threads(fast, threads)
    assert fast.encode_batch(texts) == reference.encode_batch(texts)
  assert fast.fingerprint() == reference.fingerprint()
  with pytest.raises(UserError, match="U\\+D800"):
    fast.encode("\ud800")


def test_a_saved_dataset_knows_nothing_of_it(reference, tmp_path):
  pytest.importorskip("tiktoken")
  AcceleratedTokenizer(reference, "tiktoken").save(tmp_path)
  assert load_tokenizer(tmp_path).fingerprint() == reference.fingerprint()


def _wrong(reference):
  encode = reference.encode_batch

  def encode_batch(parts):
    found = encode(parts)
    return [[*ids[:-1], 5] if "learns" in part else ids for part, ids in zip(parts, found)]

  return encode_batch


@pytest.mark.parametrize("wanted", [Accelerator.AUTO, Accelerator.FASTOKENS])
def test_one_that_differs_is_refused(reference, monkeypatch, wanted):
  """AUTO goes on with the next one or the reference and says so; a named one is an error."""
  pytest.importorskip("fastokens")
  pytest.importorskip("tiktoken")
  monkeypatch.setitem(module.BUILD, Accelerator.FASTOKENS, _wrong)
  lines: list[str] = []
  if wanted is Accelerator.FASTOKENS:
    with pytest.raises(UserError, match=r"fastokens is refused: other ids at token .*NONE"):
      accelerate(reference, wanted, lambda: _documents(1000), lines.append)
    return
  fast, record = accelerate(reference, wanted, lambda: _documents(1000), lines.append)
  assert "fastokens is refused: other ids at token" in lines[0] and "\n" not in lines[0]
  assert record["tried"][0]["name"] == "fastokens" and not record["tried"][0]["equal"]
  difference = record["tried"][0]["difference"]
  assert difference["found"] != difference["reference"]
  assert record["accelerator"] == "tiktoken" == fast.name


def test_one_that_fails_is_refused(reference, monkeypatch):
  """A panic in Rust is not an Exception; it must not end the stage."""

  class Panic(BaseException):
    pass

  def fails(_):
    def encode_batch(parts):
      raise Panic("index out of bounds")

    return encode_batch

  pytest.importorskip("tiktoken")
  monkeypatch.setattr(module, "_ORDER", (Accelerator.TIKTOKEN,))
  monkeypatch.setitem(module.BUILD, Accelerator.TIKTOKEN, fails)
  fast, record = accelerate(reference, Accelerator.AUTO, lambda: _documents(1000))
  assert fast is reference and record["accelerator"] is None
  assert "index out of bounds" in record["tried"][0]["difference"]["error"]


def test_too_few_documents(reference):
  """999 documents are no proof."""
  pytest.importorskip("tiktoken")
  fast, record = accelerate(reference, Accelerator.AUTO, lambda: _documents(999))
  assert fast is reference and any("999 documents" in t["refused"] for t in record["tried"])
  with pytest.raises(UserError, match="999 documents, 1000 are needed"):
    accelerate(reference, Accelerator.TIKTOKEN, lambda: _documents(999))


def test_not_installed_and_not_fitting(reference, monkeypatch):
  monkeypatch.setitem(sys.modules, "fastokens", None)
  with pytest.raises(UserError, match=r"fastokens is not installed: pip install"):
    accelerate(reference, Accelerator.FASTOKENS, lambda: _documents(1000))
  with pytest.raises(UserError, match="does not read byte"):
    accelerate(ByteTokenizer(), Accelerator.TIKTOKEN, lambda: _documents(1000))
  for wanted in (Accelerator.AUTO, Accelerator.NONE):
    assert accelerate(ByteTokenizer(), wanted, lambda: 1 / 0)[0].kind == "byte"


def test_probes_are_compared_before_documents(reference, monkeypatch):
  """An encoder that reads "<pad>" from text is refused although no document holds it."""

  def reads_symbols(one):
    encode = one.encode_batch
    return lambda parts: [[1] if p == "<pad>" else ids for p, ids in zip(parts, encode(parts))]

  monkeypatch.setitem(module.BUILD, Accelerator.TIKTOKEN, reads_symbols)
  fast = AcceleratedTokenizer(reference, "tiktoken")
  found = compare(reference, fast, _documents(10))
  assert not found["equal"] and found["documents"] == 0

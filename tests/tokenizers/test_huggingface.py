"""tokenizer.json: lossless, special symbols out of reach of text, published files recognised."""

import base64
import json
import pickle
import random

import pytest

from jaxlm.data.prep.config import TokenizerKind, TokenizerTrainConfig
from jaxlm.data.prep.train_huggingface import EOS
from jaxlm.data.prep.train_tokenizer import train_any
from jaxlm.errors import UserError
from jaxlm.tokenizers import huggingface
from jaxlm.tokenizers.base import load_tokenizer, normalized
from jaxlm.tokenizers.huggingface import HuggingFaceTokenizer, byte_characters
from jaxlm.tokenizers.tiktoken import TiktokenTokenizer, is_ranks, parse_ranks

tokenizers = pytest.importorskip("tokenizers")

TEXT = "The quick brown fox, 1234 times:\n    return self.value  # jumped\n\n" * 20
HARD = [
  "",
  "one\r\ntwo\rthree\n\r\n",
  " leading,  double,     many   \n   \n  trailing  ",
  "".join(map(chr, range(32))) + "\x7f\x80\u200b\u2028\ufeff",
  "👍🏽 👩‍👩‍👧‍👦 🇫🇷 Żółć, 日本語, हिन्दी, العربية, ﬁ Ａ e\u0301 é",
  "\u2581 a\u2581b",
  f"</s>{EOS}<pad><|im_start|>[CLS]",
  "\ue000\U0010ffff\ufffd",
]


@pytest.fixture(scope="module")
def trained():
  config = TokenizerTrainConfig(kind=TokenizerKind.HUGGINGFACE, control_symbols=("<pad>",))
  return train_any([TEXT, *HARD], config, 600)


@pytest.fixture(scope="module")
def ranks(trained):
  """The same vocabulary as tiktoken writes it."""
  characters = byte_characters()
  pieces = sorted(trained.values["model"]["vocab"].items(), key=lambda p: p[1])[2:]
  lines = [
    base64.b64encode(bytes(characters[c] for c in piece)) + b" %d\n" % i
    for i, (piece, _) in enumerate(pieces)
  ]
  return b"".join(lines)


@pytest.fixture(params=["huggingface", "tiktoken"])
def tokenizer(request, trained):
  if request.param == "huggingface":
    return trained
  pytest.importorskip("tiktoken")
  data = request.getfixturevalue("ranks")
  special = {EOS: len(parse_ranks(data))}
  return TiktokenTokenizer(data, {"pattern": "cl100k", "special_tokens": special})


@pytest.mark.parametrize("text", HARD)
def test_round_trip(tokenizer, text):
  """Breaks when text is normalised, or when a symbol's name is read as the symbol."""
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
  assert tokenizer.eos_id not in ids


def test_random_text_and_batches(tokenizer):
  rng = random.Random(0)
  alphabet = "ab \n\t\r\0\u2581é日😀<>/s|_" + "".join(HARD)
  texts = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(300)]
  assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]
  assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
  assert tokenizer.encode_batch([]) == []
  tokenizer.threads = 1
  assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]
  tokenizer.threads = None


def test_long_texts_are_cut_without_loss(tokenizer, monkeypatch):
  """Broken by a segment that is given to another text of the batch."""
  whole = [tokenizer.encode(t) for t in (TEXT, "é" * 50)]
  monkeypatch.setattr(huggingface, "SEGMENT_CHARS", 70)
  texts = [TEXT, "é" * 500, "", "x"]
  found = tokenizer.encode_batch(texts)
  assert [tokenizer.decode(ids) for ids in found] == texts
  assert found[0] == whole[0]  # cut at line ends, where the pattern cuts too


def test_save_load_pickle(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert (loaded.kind, loaded.fingerprint()) == (tokenizer.kind, tokenizer.fingerprint())
  assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
  assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == tokenizer.encode(TEXT)
  card = json.loads((tmp_path / "tokenizer.json").read_text())
  file = tmp_path / card["file"]
  file.write_bytes(file.read_bytes()[:-2] + b"x\n")
  with pytest.raises(UserError, match="bytes changed"):
    load_tokenizer(tmp_path)


def test_errors_are_of_the_user(tokenizer):
  with pytest.raises(UserError, match="U\\+D800 at character 1"):
    tokenizer.encode("a\ud800")
  for bad in (-1, 10**6):
    with pytest.raises(UserError, match=str(bad)):
      tokenizer.decode([bad])


@pytest.mark.parametrize("as_object", [False, True])
def test_a_published_folder(trained, tmp_path, as_object):
  """Its EOS is what the files beside it say; tokenizer.json there is not jaxlm's card."""
  (tmp_path / "tokenizer.json").write_bytes(trained.data)
  eos = {"content": "<pad>"} if as_object else "<pad>"
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
  found = load_tokenizer(tmp_path)
  assert (found.kind, found.eos_id) == ("huggingface", 1)
  assert load_tokenizer(tmp_path, eos=EOS).eos_id == 0
  assert load_tokenizer(tmp_path).fingerprint() != trained.fingerprint()  # another EOS
  with pytest.raises(UserError, match=r"no EOS symbol '<x>'.*<pad>"):
    load_tokenizer(tmp_path, eos="<x>")


def test_truncation_padding_and_added_symbols_are_off(trained):
  """A published file may cut texts at 128 ids, as MiniLM's does: most of a text would be lost."""
  built = tokenizers.Tokenizer.from_str(trained.data.decode())
  built.enable_truncation(4)
  built.enable_padding(length=8)
  built.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{EOS} $A", special_tokens=[(EOS, 0)]
  )
  found = HuggingFaceTokenizer(built.to_str().encode(), eos=EOS)
  assert found.encode(TEXT) == trained.encode(TEXT)
  assert found.encode_batch(["a", TEXT]) == trained.encode_batch(["a", TEXT])


def test_lossy_files_are_refused(trained):
  """WordPiece, and a normalizer that is not of Unicode alone."""
  words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
  with pytest.raises(UserError, match="pieces are not bytes"):
    HuggingFaceTokenizer(words.to_str().encode(), eos=0)
  for junk in (b"", b"{}", b"[1]", b'{"model": 3}'):
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
      HuggingFaceTokenizer(junk)


def test_nfc_is_allowed_and_told(trained):
  """Qwen's files begin with NFC; what comes back is the text in that form."""
  values = json.loads(trained.data)
  values["normalizer"] = {"type": "NFC"}
  found = HuggingFaceTokenizer(json.dumps(values).encode(), eos=EOS)
  text = "e\u0301 a"
  assert found.decode(found.encode(text)) == "\u00e9 a" == normalized(found, text)
  assert normalized(trained, text) == text


def test_added_tokens_that_are_not_special_are_text(trained):
  values = json.loads(trained.data)
  token = {k: False for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
  new = trained.vocab_size
  values["added_tokens"].append({"id": new, "content": "<tool>", **token})
  found = HuggingFaceTokenizer(json.dumps(values).encode(), eos=EOS)
  ids = found.encode("a<tool>b")
  assert new in ids and found.decode(ids) == "a<tool>b"
  assert found.token_bytes()[ids].sum() == 8


def test_ranks_are_recognised_and_checked(ranks):
  pytest.importorskip("tiktoken")
  assert is_ranks(ranks) and not is_ranks(b"\n\x0a\x05<unk>") and not is_ranks(b"{}")
  good = {"pattern": "cl100k", "special_tokens": {EOS: 10_000}}
  lines = ranks.splitlines(keepends=True)
  for data, settings, message in (
    (b"".join(lines[:200]), good, "lack 56 of the 256 bytes"),
    (ranks + b"?? 9\n", good, "line .* is not 'base64 rank'"),
    (ranks, {**good, "pattern": None}, "need a pattern"),
    (ranks, {**good, "pattern": "("}, "pattern '\\('"),
    (ranks, {**good, "special_tokens": {EOS: 5}}, "ids of text too"),
    (ranks, {**good, "eos": "x"}, "eos='x' is not one of"),
  ):
    with pytest.raises(UserError, match=message):
      TiktokenTokenizer(data, settings)

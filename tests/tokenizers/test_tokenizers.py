"""Both tokenizers must give back every text, byte for byte, and keep EOS out of reach of text."""

import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from jaxlm.data.prep.train_tokenizer import train_sentencepiece
from jaxlm.errors import UserError
from jaxlm.tokenizers import sentencepiece as sentencepiece_module
from jaxlm.tokenizers.base import load_tokenizer
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tokenizers.sentencepiece import SentencePieceTokenizer
from jaxlm.tokenizers.stream import StreamDecoder

TEXT = "The quick brown fox, 1234 times:\n    return self.value  # jumped\n\n" * 20
HARD = {
  "empty": "",
  "crlf": "one\r\ntwo\rthree\n\r\n",
  "tabs": "\tif x:\n\t\treturn\t1\t\n",
  "nul": "a\0b\0\0c\0",
  "spaces": " leading,  double,     many   \n   \n  trailing  ",
  "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f\u200b\u2028\ufeff",
  "emoji": "👍🏽 👩‍👩‍👧‍👦 🇫🇷 ☃️",
  "scripts": "Żółć, 日本語, हिन्दी, العربية, ﬁ Ａ e\u0301 é",
  "u2581": "\u2581 \u2581\u2581 a\u2581b \u2581",
  "specials": "</s><s><unk><pad><0x0A><|endoftext|>\u2581</s>",
  "private": "\ue000\uf8ff\U000f0000\U0010ffff\ufffd\uffff",
}


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
  return train_sentencepiece([TEXT, *HARD.values()], 512)


@pytest.fixture(params=["byte", "sentencepiece"])
def tokenizer(request, trained):
  return ByteTokenizer() if request.param == "byte" else trained


@pytest.mark.parametrize("name", HARD)
def test_round_trip(tokenizer, name):
  """Breaks with the library's own decode (U+2581), any normalisation, or a missing byte piece."""
  text = HARD[name]
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
  assert all(0 <= i < tokenizer.vocab_size and i != tokenizer.eos_id for i in ids)


def test_round_trip_of_random_text(tokenizer):
  rng = random.Random(0)
  alphabet = "ab \n\t\r\0\u2581é日😀<>/s|_" + "".join(HARD.values())
  for _ in range(300):
    text = "".join(rng.choices(alphabet, k=rng.randrange(40)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_batch_is_one_by_one(tokenizer):
  """Breaks when segments of one text are given to another."""
  texts = [*HARD.values(), TEXT, ""]
  assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]
  assert tokenizer.encode_batch([]) == []


def test_unseen_characters_and_spaces_of_a_text_without_any():
  """Without a piece of its own, a space falls back to U+2581's bytes and comes back as that."""
  tokenizer = train_sentencepiece(["abcabcabc"], 512)
  assert tokenizer.decode(tokenizer.encode("x  y z")) == "x  y z"
  assert tokenizer.token_bytes()[tokenizer.encode("x  y z")].sum() == 6


def test_segments_do_not_change_the_text(trained, monkeypatch):
  """Long texts are cut for the encoder; a wrong cut loses or repeats characters."""
  monkeypatch.setattr(sentencepiece_module, "SEGMENT_CHARS", 7)
  for text in (TEXT, "x" * 50, "\n" * 50, HARD["u2581"] * 5, HARD["scripts"]):
    assert trained.decode(trained.encode(text)) == text


def test_control_ids_and_broken_utf8_decode(tokenizer):
  ids = tokenizer.encode("ab")
  assert tokenizer.decode([tokenizer.eos_id, *ids, tokenizer.eos_id]) == "ab"
  assert tokenizer.decode(np.array(tokenizer.encode("é")[:1], np.int32)) in ("\ufffd", "é")
  assert tokenizer.token_bytes().shape == (tokenizer.vocab_size,)
  assert tokenizer.token_bytes().dtype == np.int32
  assert tokenizer.token_bytes()[tokenizer.eos_id] == 0


def test_a_stream_is_the_whole(tokenizer):
  """Broken by decoding id by id: a character of several ids would come out as U+FFFD."""
  stream = StreamDecoder(tokenizer)
  for text in (*HARD.values(), TEXT):
    pieces = [stream.push([i]) for i in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
  half = tokenizer.encode("日本")[:-1]
  assert "".join(stream.push([i]) for i in half) + stream.finish() == tokenizer.decode(half)


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_unknown_id_is_a_user_error(tokenizer, bad):
  """A negative id would silently index from the table's end."""
  with pytest.raises(UserError, match=str(bad)):
    tokenizer.decode([bad])


def test_lone_surrogate_is_a_user_error(tokenizer):
  with pytest.raises(UserError, match="U\\+D800 at character 1"):
    tokenizer.encode("a\ud800")


def test_save_and_load(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  loaded = load_tokenizer(tmp_path)
  assert loaded.fingerprint() == tokenizer.fingerprint()
  assert loaded.kind == tokenizer.kind
  assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
  assert pickle.loads(pickle.dumps(tokenizer)).encode(TEXT) == tokenizer.encode(TEXT)


def test_damaged_directories_are_user_errors(trained, tmp_path):
  with pytest.raises(UserError, match="not a tokenizer's directory"):
    load_tokenizer(tmp_path / "none")
  trained.save(tmp_path)
  card = tmp_path / "tokenizer.json"
  good = json.loads(card.read_text())
  for change, message in (
    ({"kind": "sentencepeace"}, "kind='sentencepeace'"),
    ({"kind": ["byte"]}, "is not one of"),
    ({"vocab_size": 7}, "vocab_size is 7"),
    ({"sha256": "0"}, "changed"),
  ):
    card.write_text(json.dumps(good | change))
    with pytest.raises(UserError, match=message):
      load_tokenizer(tmp_path)
  card.write_text("{")
  with pytest.raises(UserError, match="not JSON"):
    load_tokenizer(tmp_path)
  card.write_text(json.dumps(good))
  model = tmp_path / "tokenizer.model"
  model.write_bytes(model.read_bytes()[:-1] + b"x")
  with pytest.raises(UserError, match="bytes changed"):
    load_tokenizer(tmp_path)
  model.unlink()
  with pytest.raises(UserError, match=r"tokenizer\.model"):
    load_tokenizer(tmp_path)


def test_not_a_model_is_a_user_error():
  for junk in (b"", b"junk", b"\0" * 100):
    with pytest.raises(UserError, match="SentencePiece model"):
      SentencePieceTokenizer(junk)


def test_lossy_model_is_refused():
  """A model trained with the library's defaults changes text; using it must not be possible."""
  import io

  import sentencepiece

  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([TEXT]),
    model_writer=out,
    vocab_size=400,
    model_type="bpe",
    byte_fallback=True,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(UserError, match="not lossless"):
    SentencePieceTokenizer(out.getvalue())


def test_importing_tokenizers_does_not_import_jax():
  code = (
    "import sys, jaxlm.tokenizers.base, jaxlm.tokenizers.byte, jaxlm.tokenizers.sentencepiece;"
    "sys.exit('jax' in sys.modules)"
  )
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Byte-level training, control symbols, and the sweep's short cut: a large vocabulary cut down."""

import pytest

from jaxlm.data.prep.config import TokenizerKind, TokenizerModel, TokenizerTrainConfig
from jaxlm.data.prep.train_tokenizer import cut_sentencepiece, train_any, train_sentencepiece
from jaxlm.errors import UserError

pytest.importorskip("tokenizers")

GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi"
WORDS = GREEK.split()


def _text(words: int, seed: int = 0) -> str:
  return "".join(
    f"{WORDS[(i * i + i // 7 + seed) % len(WORDS)]}{WORDS[i * 5 % 11]}{i % 97} é\n"
    for i in range(words)
  )


TEXTS = [_text(2000), _text(500, 3)]


def _config(kind, **values) -> TokenizerTrainConfig:
  return TokenizerTrainConfig(kind=kind, **values)


@pytest.mark.parametrize("kind", [TokenizerKind.HUGGINGFACE, TokenizerKind.SENTENCEPIECE])
@pytest.mark.parametrize("model", TokenizerModel)
def test_control_symbols_can_not_be_spelled(kind, model):
  """With user_defined_symbols, or stock encode, "<pad>" in a text becomes the symbol."""
  symbols = ("<pad>", "<fim_prefix>")
  tokenizer = train_any(TEXTS, _config(kind, model=model, control_symbols=symbols), 400)
  assert tokenizer.vocab_size <= 400
  text = "x<pad><fim_prefix></s><|endoftext|> y" + TEXTS[0]
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  silent = {i for i, size in enumerate(tokenizer.token_bytes().tolist()) if size == 0}
  assert len(silent) >= 3 and tokenizer.eos_id in silent and not silent & set(ids)


@pytest.mark.parametrize("kind", [TokenizerKind.HUGGINGFACE, TokenizerKind.SENTENCEPIECE])
def test_training_is_deterministic(kind):
  one, two = (train_any(TEXTS, _config(kind), 400).fingerprint() for _ in range(2))
  assert one == two


def test_a_cut_vocabulary_is_the_trained_one():
  """Every id the same: merges are found in order, so 350 is the beginning of 500."""
  config = _config(TokenizerKind.HUGGINGFACE, control_symbols=("<pad>",))
  from jaxlm.data.prep.train_huggingface import cut_huggingface

  wide, narrow = (train_any(TEXTS, config, size) for size in (500, 350))
  cut = cut_huggingface(wide, 350)
  assert cut.vocab_size == narrow.vocab_size == 350
  assert cut.values["model"]["vocab"] == narrow.values["model"]["vocab"]
  assert [list(m) for m in cut.values["model"]["merges"]] == narrow.values["model"]["merges"]
  assert cut.encode(TEXTS[0]) == narrow.encode(TEXTS[0])


def test_a_cut_model_is_the_trained_one():
  pytest.importorskip("google.protobuf")
  wide, narrow = (
    train_sentencepiece(TEXTS, size, control_symbols=("<pad>",)) for size in (500, 350)
  )
  cut = cut_sentencepiece(wide, TEXTS, 350, 1)
  assert cut is not None
  pieces = [
    [(t._processor.id_to_piece(i), t._processor.get_score(i)) for i in range(350)]
    for t in (cut, narrow)
  ]
  assert pieces[0] == pieces[1]
  assert cut.encode(TEXTS[0]) == narrow.encode(TEXTS[0])


def test_no_cut_where_the_alphabet_would_be_another():
  """512 has room for fewer characters than 2,000: merges of the cut one would be of the others."""
  text = "".join(chr(0x4E00 + i * 37 % 700) for i in range(20_000))
  wide = train_sentencepiece([text], 2000)
  assert cut_sentencepiece(wide, [text], 512) is None


def test_blank_text_and_bad_pattern_are_user_errors():
  config = _config(TokenizerKind.HUGGINGFACE)
  for texts in ([], [""], [" \n"]):
    with pytest.raises(UserError, match="blank"):
      train_any(texts, config, 400)
  with pytest.raises(UserError, match=r"tokenizer\.pattern='\('"):
    train_any(TEXTS, _config(TokenizerKind.HUGGINGFACE, pattern="("), 400)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"sweep": (100,)}, r"t\.sweep=100: must be at least 300"),
    ({"sweep": (400,), "choose": 500}, r"t\.choose=500: must be one of sweep"),
    ({"min_gain": 0.0}, r"t\.min_gain=0\.0"),
    ({"weights": {"a": -1.0}}, r"t\.weights"),
    ({"weights": {"a": 0.0}}, r"t\.weights"),
    ({"control_symbols": ("a", "a")}, r"t\.control_symbols"),
    ({"path": ""}, r"t\.path=''"),
  ],
)
def test_validate(values, message):
  with pytest.raises(UserError, match=message):
    TokenizerTrainConfig(**values).validate("t")

"""Training: the size asked for or smaller with a message, never a failure of the library."""

import pytest

from jaxlm.data.prep.train_tokenizer import sample, train_sentencepiece
from jaxlm.errors import UserError

GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi"
WORDS = GREEK.split()


def _text(words: int) -> str:
  return " ".join(WORDS[(i * i + i // 7) % len(WORDS)] + str(i % 97) for i in range(words)) + "\n"


def test_exact_size_when_there_is_enough_text():
  assert train_sentencepiece([_text(3000)], 330).vocab_size == 330


@pytest.mark.parametrize("text", ["a", "hello\n", "12", "é", _text(5)])
def test_tiny_text_shrinks_with_a_message(text):
  """The library would raise on some of these, and say nothing on the others."""
  messages: list[str] = []
  tokenizer = train_sentencepiece([text], 8192, messages.append)
  assert 258 <= tokenizer.vocab_size < 8192
  assert len(messages) == 1 and f"{tokenizer.vocab_size:,}" in messages[0]
  assert tokenizer.decode(tokenizer.encode(text + " other")) == text + " other"


def test_more_characters_than_vocabulary():
  """The library fails with "Vocabulary size is smaller than required_chars"."""
  text = "".join(chr(0x4E00 + i % 3000) for i in range(9000))
  tokenizer = train_sentencepiece([text], 512)
  assert tokenizer.vocab_size <= 512
  assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("texts", [[], [""], ["   "], ["\n", " \n\t"], ["\0\u2581"]])
def test_blank_text_is_a_user_error(texts):
  with pytest.raises(UserError, match="blank"):
    train_sentencepiece(texts, 512)


def test_training_is_deterministic():
  texts = [_text(500), _text(800)]
  assert (
    train_sentencepiece(texts, 400).fingerprint() == train_sentencepiece(texts, 400).fingerprint()
  )


def test_long_lines_are_trained_on():
  """Lines beyond the library's limit would be dropped: then xyzzy never becomes a piece."""
  tokenizer = train_sentencepiece(["xyzzy" * 100_000], 300)
  assert len(tokenizer.encode("xyzzy" * 40)) < 40


def test_training_is_silent(capfd):
  """The C++ log writes hundreds of lines to stderr otherwise."""
  train_sentencepiece([_text(200)], 400)
  assert capfd.readouterr() == ("", "")


def test_sample_is_bounded_and_cut_at_a_character():
  data = ["é" * 100, "日" * 100, "a" * 100]
  texts = sample(lambda i: data[i].encode(), range(3), 301, seed=0)
  assert 290 < sum(len(t.encode()) for t in texts) <= 301
  assert all(t == data[i][: len(t)] for t in texts for i in range(3) if data[i][0] == t[0])

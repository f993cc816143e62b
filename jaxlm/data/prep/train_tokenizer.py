"""Trains a tokenizer that is lossless on every text: SentencePiece's BPE or unigram.

Settings: byte fallback (no unknown text), identity normalisation, no dummy prefix and no removal of
white space (decode is exact), digits one by one, EOS and all others as control symbols (a text can
not spell them; `user_defined_symbols` are parsed from text). Hugging Face's are in
train_huggingface.py.
"""

import io
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import sentencepiece

from jaxlm.data.prep.config import TokenizerKind, TokenizerModel, TokenizerTrainConfig
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer
from jaxlm.tokenizers.sentencepiece import SPACE, SentencePieceTokenizer

_CHUNK = 2000  # characters: the trainer reads white space within a chunk, so line ends can merge
_FIXED = 2 + 256 + 1  # unknown, EOS, the bytes, the piece of a space
_COVERAGE = 0.9999
_ERROR_LEVEL = 2  # of the C++ log, which would fill the terminal


def sample(
  read: Callable[[int], bytes], indices: Iterable[int], max_bytes: int, seed: int
) -> list[str]:
  """Texts of a random choice of documents, max_bytes in sum (the last one is cut)."""
  order = list(indices)
  random.Random(seed).shuffle(order)
  texts: list[str] = []
  left = max_bytes
  for i in order:
    if left <= 0:
      break
    data = read(i)[:left]
    if text := data.decode("utf-8", "ignore"):  # the cut may lie inside of a character
      texts.append(text)
    left -= len(data)
  return texts


def train_any(
  texts: list[str],
  config: TokenizerTrainConfig,
  vocab_size: int,
  on_message: Callable[[str], None] = lambda _: None,
) -> Tokenizer:
  """A tokenizer of config's kind of at most vocab_size pieces, trained on the texts."""
  if config.kind is TokenizerKind.BYTE:
    from jaxlm.tokenizers.byte import ByteTokenizer

    return ByteTokenizer()
  if config.kind is TokenizerKind.HUGGINGFACE:
    from jaxlm.data.prep.train_huggingface import train_huggingface

    return train_huggingface(texts, config, vocab_size, on_message)
  return train_sentencepiece(
    texts,
    vocab_size,
    on_message,
    model=config.model,
    control_symbols=config.control_symbols,
  )


def train_sentencepiece(
  texts: list[str],
  vocab_size: int,
  on_message: Callable[[str], None] = lambda _: None,
  *,
  model: TokenizerModel = TokenizerModel.BPE,
  control_symbols: Sequence[str] = (),
) -> SentencePieceTokenizer:
  """A tokenizer of at most vocab_size pieces.

  Args:
    texts: the sample to train on.
    on_message: told when the vocabulary had to shrink.
    control_symbols: symbols beside EOS that have an id and that no text can spell.

  Raises:
    UserError: the sample holds no text to train on.
  """
  rare = _rare_characters(texts, (vocab_size - _FIXED - len(control_symbols)) // 2)
  unigram = model is TokenizerModel.UNIGRAM
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=_chunks(texts, rare),
    model_writer=out,
    model_type=model.value,
    control_symbols=list(control_symbols),
    # In the order given to each thread: the result does not depend on their number for BPE alone.
    num_threads=1 if unigram else os.cpu_count() or 1,
    vocab_size=vocab_size,
    hard_vocab_limit=False,  # a small text has fewer pairs to merge than were asked for
    character_coverage=1.0,  # rare characters are gone; the library's own floor of 0.98 fails
    required_chars=SPACE,  # without its own piece a space would fall back to three wrong bytes
    byte_fallback=True,
    normalization_rule_name="identity",
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
    max_sentence_length=1 << 20,  # longer ones would be dropped without a word
    unk_id=0,
    eos_id=1,
    bos_id=-1,
    pad_id=-1,
    minloglevel=_ERROR_LEVEL,
  )
  tokenizer = SentencePieceTokenizer(out.getvalue())
  if tokenizer.vocab_size < vocab_size:
    on_message(
      f"the text is too small for a vocabulary of {vocab_size:,}: it has"
      f" {tokenizer.vocab_size:,} pieces"
    )
  return tokenizer


def cut_sentencepiece(
  tokenizer: SentencePieceTokenizer, texts: list[str], vocab_size: int, control_symbols: int = 0
) -> SentencePieceTokenizer | None:
  """What training BPE at the smaller vocab_size would give: the last merges are left out.

  None where that is not so: with fewer pieces more characters count as rare, and the merges of
  another alphabet are others. Merges are found one after the other, whatever their number; they
  stand before the characters, all ordered by score.
  """
  wide = _rare_characters(texts, (tokenizer.vocab_size - _FIXED - control_symbols) // 2)
  if _rare_characters(texts, (vocab_size - _FIXED - control_symbols) // 2) != wide:
    return None
  try:
    from sentencepiece import sentencepiece_model_pb2
  except ImportError:  # protobuf is not there
    return None
  message: Any = sentencepiece_model_pb2
  proto = message.ModelProto()
  proto.ParseFromString(tokenizer.model)
  normal = message.ModelProto.SentencePiece.NORMAL
  meta = [p for p in proto.pieces if p.type != normal]
  merges = [p for p in proto.pieces if p.type == normal and len(p.piece) > 1]
  characters = [p for p in proto.pieces if p.type == normal and len(p.piece) == 1]
  room = vocab_size - len(meta) - len(characters)
  if room < 0 or room > len(merges):
    return None
  scores = [p.score for p in (*merges, *characters)]
  kept = [*merges[:room], *characters]
  for piece, score in zip(kept, scores):
    piece.score = score
  pieces = [type(p).FromString(p.SerializeToString()) for p in (*meta, *kept)]
  del proto.pieces[:]
  proto.pieces.extend(pieces)
  proto.trainer_spec.vocab_size = vocab_size
  return SentencePieceTokenizer(proto.SerializeToString())


def _chunks(texts: Iterable[str], rare: dict[int, None]) -> Iterator[str]:
  """The texts cut at line ends, without rare characters. The trainer counts words, not chunks."""
  for text in texts:
    if not text.isascii() or any(c < 128 for c in rare if chr(c) in text):
      text = text.translate(rare)
    start = 0
    while start < len(text):
      end = text.find("\n", start + _CHUNK, start + 2 * _CHUNK) + 1 or start + 2 * _CHUNK
      yield text[start:end]
      start = end


def _rare_characters(texts: Iterable[str], limit: int) -> dict[int, None]:
  """A table for str.translate that removes the characters that get no piece of their own.

  They are written in bytes: what lies beyond 99.99 % of the text, or beyond the `limit` most
  frequent ones. Chinese text with a small vocabulary has more characters than there is room for,
  on which the trainer fails.

  Raises:
    UserError: no character is left.
  """
  counts: Counter[str] = Counter()
  for text in texts:
    counts.update(text)
  # The trainer drops sentences with the first and maps the second to a space.
  rare: dict[int, None] = {0: None, ord(SPACE): None}
  for character in ("\0", SPACE, " "):
    counts.pop(character, None)
  if all(map(str.isspace, counts)):  # the trainer trims line ends, and fails on nothing
    raise UserError("the text to train the tokenizer on is blank; correct --config.source")
  enough = _COVERAGE * counts.total()
  covered = 0
  # Equal counts in the order of the characters, so that the result is no accident of the order.
  for n, (character, count) in enumerate(sorted(counts.items(), key=lambda c: (-c[1], c[0]))):
    if n and (n >= limit or covered >= enough):
      rare[ord(character)] = None
    covered += count
  return rare

"""Trains a byte-level tokenizer.json with Hugging Face's library.

All 256 bytes are in the alphabet, so no text is unknown; EOS and other symbols are special tokens,
which jaxlm's encoder never reads from text. One of them is EOS: "<|endoftext|>", id 0.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxlm.data.prep.config import TokenizerModel, TokenizerTrainConfig
from jaxlm.errors import UserError
from jaxlm.tokenizers.huggingface import HuggingFaceTokenizer

EOS = "<|endoftext|>"
# A word with the blank (or mark) before it; up to three digits; marks; line ends; other blanks.
PATTERN = (
  r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHUNK = 1 << 16  # characters: the trainer counts words, and works on texts beside each other


def train_huggingface(
  texts: Sequence[str],
  config: TokenizerTrainConfig,
  vocab_size: int,
  on_message: Callable[[str], None] = lambda _: None,
) -> HuggingFaceTokenizer:
  """A tokenizer of at most vocab_size pieces; config: model, pattern, control_symbols.

  Raises:
    UserError: no text; no such package; a pattern that does not compile.
  """
  try:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
  except ImportError:
    raise UserError("tokenizers is not installed: pip install 'jaxlm[tokenizers]'") from None
  if not any(text.strip() for text in texts):
    raise UserError("the text to train the tokenizer on is blank; correct --config.source")
  special = [EOS, *(s for s in config.control_symbols if s != EOS)]
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  try:
    split = pre_tokenizers.Split(Regex(config.pattern or PATTERN), "isolated")
  except Exception as e:  # the library raises a bare Exception
    raise UserError(f"tokenizer.pattern={config.pattern!r}: {e}; correct it") from None
  trainer: Any
  if config.model is TokenizerModel.UNIGRAM:
    built = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
      vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
  else:
    built = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
      vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
  built.pre_tokenizer = pre_tokenizers.Sequence(
    [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  built.decoder = decoders.ByteLevel()
  built.train_from_iterator(_chunks(texts), trainer)
  tokenizer = HuggingFaceTokenizer(built.to_str().encode(), eos=EOS)
  if tokenizer.vocab_size < vocab_size:
    on_message(
      f"the text is too small for a vocabulary of {vocab_size:,}: it has"
      f" {tokenizer.vocab_size:,} pieces"
    )
  return tokenizer


def cut_huggingface(tokenizer: HuggingFaceTokenizer, vocab_size: int) -> HuggingFaceTokenizer:
  """What training BPE at the smaller vocab_size would give: merges are found one after the other,
  so the smaller vocabulary is the beginning of the larger one."""
  values = json.loads(tokenizer.data)
  model = values["model"]
  vocabulary = {piece: i for piece, i in model["vocab"].items() if i < vocab_size}
  merges = []
  for merge in model["merges"]:
    if "".join(merge) not in vocabulary:
      break
    merges.append(merge)
  values["model"] = {**model, "vocab": vocabulary, "merges": merges}
  return HuggingFaceTokenizer(json.dumps(values, ensure_ascii=False).encode(), eos=tokenizer.eos_id)


def _chunks(texts: Sequence[str]) -> Iterator[str]:
  for text in texts:
    for start in range(0, len(text), _CHUNK):
      yield text[start : start + _CHUNK]

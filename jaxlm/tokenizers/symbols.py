"""The ids of a tokenizer's control symbols, by name, and where words begin."""

from typing import Any

import numpy as np

from jaxlm.tokenizers.base import Tokenizer


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
  """Name → id of the symbols that no text can spell, as far as the kind of tokenizer names them."""
  any_kind: Any = tokenizer
  if tokenizer.kind == "sentencepiece":
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=any_kind.model)
    ids = [i for i in range(tokenizer.vocab_size) if processor.is_control(i)]
    return {processor.id_to_piece(i): i for i in ids}
  if tokenizer.kind == "huggingface":
    added = any_kind.values.get("added_tokens") or []
    return {one["content"]: one["id"] for one in added if one["special"]}
  if tokenizer.kind == "tiktoken":
    return {name: int(i) for name, i in any_kind.settings["special_tokens"].items()}
  return {}


def word_edges(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """Whether each id begins, and ends, inside a word: bool, shape (vocab_size,) each.

  A token continues the word before it if that one ends and itself begins with a letter, a digit,
  an underscore or a byte beyond ASCII (a part of a character of some other script).
  """

  def inside(byte: bytes) -> bool:
    return byte >= b"\x80" or byte.isalnum() or byte == b"_"

  pieces = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
  begins = np.array([bool(p) and inside(p[:1]) for p in pieces])
  return begins, np.array([bool(p) and inside(p[-1:]) for p in pieces])

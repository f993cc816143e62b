"""How each accelerator is made from a reference tokenizer; see accelerate.py for their use.

Special symbols are left out of what an encoder is given, so that no text can spell them.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tokenizers.config import Accelerator
from jaxlm.tokenizers.huggingface import HuggingFaceTokenizer, byte_characters

EncodeBatch = Callable[[list[str]], list[list[int]]]


def _json(reference: Any, name: str) -> dict[str, Any]:
  """The tokenizer.json without special symbols, so that no text can spell them."""
  if not isinstance(reference, HuggingFaceTokenizer):
    raise UserError(f"{name} does not read {reference.kind} tokenizers")
  values = dict(reference.values)
  added = values.get("added_tokens") or []
  if any(not token["special"] for token in added):
    raise UserError(f"{name}: the tokenizer has added tokens that are read from text")
  values["added_tokens"] = []
  values["truncation"] = values["padding"] = values["post_processor"] = None
  return values


def _tiktoken(reference: Any) -> EncodeBatch:
  values = _json(reference, "tiktoken")
  import tiktoken

  model = values["model"]
  if model.get("type") != "BPE" or values.get("normalizer") or model.get("byte_fallback"):
    raise UserError("tiktoken: only byte-level BPE without a normalizer")
  characters = byte_characters()
  names: dict[str, int] = model["vocab"]
  table = {bytes([byte]): names.get(character) for character, byte in characters.items()}
  if None in table.values():
    raise UserError("tiktoken: the vocabulary lacks single bytes")
  # tiktoken ranks pairs by the id of what they become: here, by the order of the merges.
  ranks = {piece: rank for rank, piece in enumerate(table)}
  ids = [names[c] for c in characters]
  for merge in model["merges"]:
    left, right = merge if isinstance(merge, list) else merge.split(" ")
    piece = bytes(characters[c] for c in left + right)
    if piece not in ranks:
      ranks[piece] = len(ids)
      ids.append(names[left + right])
  pattern = _pattern(values.get("pre_tokenizer"))
  encoding = tiktoken.Encoding("jaxlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
  lookup = np.array(ids, np.int64)

  def encode_batch(parts: list[str]) -> list[list[int]]:
    if len(parts) == 1:
      found = [encoding.encode_ordinary(parts[0])]
    else:
      found = encoding.encode_ordinary_batch(parts, num_threads=os.cpu_count() or 1)
    return [lookup[one].tolist() if one else [] for one in found]

  return encode_batch


def _pattern(pre_tokenizer: Any) -> str:
  """The pattern that a pre-tokenizer cuts with: that of ByteLevel, or of one Split before it."""
  from jaxlm.tokenizers.tiktoken import PATTERNS

  parts = pre_tokenizer or {}
  parts = parts.get("pretokenizers") or [parts]
  found = None
  for part in parts:
    isolated = part.get("behavior") == "Isolated" and not part.get("invert")
    if part.get("type") == "Split" and isolated and found is None and "Regex" in part["pattern"]:
      found = part["pattern"]["Regex"]
      continue
    if part.get("type") == "ByteLevel" and not part.get("add_prefix_space"):
      if not part.get("use_regex", True):
        continue
      if found is None:
        found = PATTERNS["gpt2"]
        continue
    raise UserError(f"tiktoken: pre-tokenizer {part.get('type')!r} can not be written as a pattern")
  if found is None:
    raise UserError("tiktoken: the tokenizer cuts text by no pattern")
  return found


def _fastokens(reference: Any) -> EncodeBatch:
  values = _json(reference, "fastokens")
  import fastokens

  encoder = _made("fastokens", lambda: fastokens.Tokenizer.from_json_str(json.dumps(values)))

  def encode_batch(parts: list[str]) -> list[list[int]]:
    return [
      getattr(one, "ids", one) for one in encoder.encode_batch(parts, add_special_tokens=False)
    ]

  return encode_batch


def _gigatoken(reference: Any) -> EncodeBatch:
  if reference.kind == "sentencepiece":
    import gigatoken

    made = _made("gigatoken", lambda: gigatoken.Tokenizer.from_sentencepiece(reference.model))
    return made.encode_batch_list
  values = _json(reference, "gigatoken")
  import gigatoken

  encoder = _made("gigatoken", lambda: gigatoken.Tokenizer.from_json(json.dumps(values)))
  return encoder.encode_batch_list


def _made(name: str, make: Callable[[], Any]) -> Any:
  try:
    return make()
  except BaseException as e:  # a Rust panic is not an Exception
    if isinstance(e, KeyboardInterrupt | SystemExit):
      raise
    reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
    raise UserError(f"{name} does not read this tokenizer ({reason})") from None


BUILD: dict[Accelerator, Callable[[Any], EncodeBatch]] = {
  Accelerator.TIKTOKEN: _tiktoken,
  Accelerator.FASTOKENS: _fastokens,
  Accelerator.GIGATOKEN: _gigatoken,
}

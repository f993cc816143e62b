"""A jaxlm tokenizer as the files that transformers' AutoTokenizer opens, without remote code.

Everything becomes a tokenizer.json of the `tokenizers` package. Two differences to jaxlm's own
`encode` remain, both on purpose there: transformers reads the names of special tokens out of text,
and takes a literal U+2581 for a space where the vocabulary is SentencePiece's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer
from jaxlm.tokenizers.huggingface import byte_characters

TEMPLATE = "chat_template.jinja"
# What belongs to a tokenizer in a Hugging Face folder.
FILES = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  TEMPLATE,
)
SPACE = "\u2581"


def read_files(folder: Path) -> dict[str, bytes]:
  """The tokenizer's files in a Hugging Face folder, as they are."""
  return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def tokenizer_files(
  tokenizer: Tokenizer,
  *,
  chat_template: str | None = None,
  bos_token: str | None = None,
  max_length: int | None = None,
) -> dict[str, bytes]:
  """tokenizer.json and tokenizer_config.json, by name.

  Args:
    tokenizer: any of jaxlm's kinds.
    chat_template: Jinja, kept in a file of its own and in tokenizer_config.json (transformers 4).
    bos_token: its name, if the model has one.
    max_length: tokens that the model takes.

  Raises:
    UserError: a kind without a conversion.
  """
  one: Any = tokenizer
  make = {
    "huggingface": lambda: one.data,
    "sentencepiece": lambda: sentencepiece_json(one.model),
    "tiktoken": lambda: _tiktoken(one),
    "byte": lambda: _byte(one),
  }.get(tokenizer.kind)
  if make is None:
    raise UserError(f"a tokenizer of kind {tokenizer.kind!r} has no form as tokenizer.json")
  data: bytes = make()
  config: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": name_of(json.loads(data), tokenizer.eos_id),
    "clean_up_tokenization_spaces": False,
  }
  if bos_token is not None:
    config["bos_token"] = bos_token
  if max_length is not None:
    config["model_max_length"] = max_length
  files = {"tokenizer.json": data}
  if tokenizer.kind == "sentencepiece":
    files["tokenizer.model"] = one.model
  if chat_template is not None:
    config["chat_template"] = chat_template
    files[TEMPLATE] = chat_template.encode()
  return {**files, "tokenizer_config.json": json_bytes(config)}


def name_of(values: Mapping[str, Any], token_id: int) -> str | None:
  """The token of an id in a tokenizer.json."""
  for added in values.get("added_tokens") or []:
    if added["id"] == token_id:
      return added["content"]
  vocabulary = values["model"]["vocab"]
  if isinstance(vocabulary, list):  # Unigram
    return vocabulary[token_id][0] if token_id < len(vocabulary) else None
  return next((token for token, i in vocabulary.items() if i == token_id), None)


def json_bytes(values: Any) -> bytes:
  return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def byte_level(
  vocabulary: Mapping[str, int],
  merges: list[tuple[str, str]],
  *,
  pattern: str | None,
  digits: bool = False,
  nfc: bool = False,
  ignore_merges: bool = False,
  special: Mapping[str, int] | None = None,
  plain_added: Mapping[str, int] | None = None,
) -> bytes:
  """A tokenizer.json of byte-level BPE.

  Args:
    vocabulary, merges: in the byte-level alphabet of GPT-2.
    pattern: by which text is cut; None: GPT-2's.
    digits: each digit stands alone.
    nfc: text is brought to NFC first.
    ignore_merges: a piece that is in the vocabulary is taken whole.
    special, plain_added: names of control tokens, and of added tokens that are text.
  """
  return json_bytes(
    {
      "version": "1.0",
      "truncation": None,
      "padding": None,
      "added_tokens": _added({**(special or {}), **(plain_added or {})}, set(special or {})),
      "normalizer": {"type": "NFC"} if nfc else None,
      "pre_tokenizer": pre_tokenizer(pattern, digits),
      "post_processor": None,
      "decoder": _BYTE_LEVEL | {"use_regex": True},
      "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": [list(pair) for pair in merges],
      },
    }
  )


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def pre_tokenizer(pattern: str | None, digits: bool) -> dict[str, Any]:
  """How byte-level BPE cuts text before it merges, as tokenizer.json says it."""
  steps: list[dict[str, Any]] = []
  if digits:
    steps.append({"type": "Digits", "individual_digits": True})
  if pattern is not None:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    steps.append(cut)
  steps.append(_BYTE_LEVEL | {"use_regex": pattern is None})
  return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _added(tokens: Mapping[str, int], special: set[str]) -> list[dict[str, Any]]:
  flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  return [
    {"id": i, "content": token, **flags, "special": token in special}
    for token, i in sorted(tokens.items(), key=lambda item: item[1])
  ]


def bos_processor(token: str, token_id: int) -> dict[str, Any]:
  """A tokenizer.json's post_processor that puts BOS before every text."""
  parts = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
  return {
    "type": "TemplateProcessing",
    "single": parts,
    "pair": [*parts, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
  }


def _byte(tokenizer: Any) -> bytes:
  vocabulary = {character: byte for character, byte in byte_characters().items()}
  table = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
  ids = {piece: i for i, piece in enumerate(table) if piece}
  vocabulary = {character: ids[bytes([byte])] for character, byte in vocabulary.items()}
  special = {
    f"<|{'eos' if i == tokenizer.eos_id else i}|>": i for i, p in enumerate(table) if not p
  }
  return byte_level({**vocabulary, **special}, [], pattern=None, special=special)


def _tiktoken(tokenizer: Any) -> bytes:
  from jaxlm.tokenizers.tiktoken import PATTERNS, parse_ranks

  ranks = parse_ranks(tokenizer._ranks)
  characters = {byte: character for character, byte in byte_characters().items()}

  def spell(piece: bytes) -> str:
    return "".join(characters[b] for b in piece)

  merges = []
  for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
    if len(piece) > 1:
      parts = _merge(ranks, piece, rank)
      if len(parts) == 2:
        merges.append((spell(parts[0]), spell(parts[1])))
  special = tokenizer.settings["special_tokens"]
  pattern = tokenizer.settings["pattern"]
  return byte_level(
    {**{spell(piece): i for piece, i in ranks.items()}, **special},
    merges,
    pattern=PATTERNS.get(pattern, pattern),
    ignore_merges=True,
    special=special,
  )


def _merge(ranks: Mapping[bytes, int], piece: bytes, limit: int) -> list[bytes]:
  """A piece after all merges of a rank below `limit`: the two parts that make it, at its rank."""
  parts = [piece[i : i + 1] for i in range(len(piece))]
  while len(parts) > 1:
    pairs = [(ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1)]
    rank, i = min(pairs)
    if rank >= limit:
      return parts
    parts[i : i + 2] = [parts[i] + parts[i + 1]]
  return parts


def sentencepiece_json(model: bytes) -> bytes:
  """A serialised SentencePiece model (BPE or unigram) as tokenizer.json."""
  from sentencepiece import sentencepiece_model_pb2 as pb

  proto = pb.ModelProto()  # type: ignore[attr-defined]
  proto.ParseFromString(model)
  kinds = pb.ModelProto.SentencePiece  # type: ignore[attr-defined]
  pieces = [(p.piece, p.score, p.type) for p in proto.pieces]
  unknown = next(i for i, (_, _, kind) in enumerate(pieces) if kind == kinds.UNKNOWN)
  control = {piece: i for i, (piece, _, kind) in enumerate(pieces) if kind == kinds.CONTROL}
  control[pieces[unknown][0]] = unknown
  user = {piece: i for i, (piece, _, kind) in enumerate(pieces) if kind == kinds.USER_DEFINED}
  body: dict[str, Any]
  if proto.trainer_spec.model_type == pb.TrainerSpec.BPE:  # type: ignore[attr-defined]
    body = {
      "type": "BPE",
      "dropout": None,
      "unk_token": pieces[unknown][0],
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": True,
      "byte_fallback": True,
      "ignore_merges": False,
      "vocab": {piece: i for i, (piece, _, _) in enumerate(pieces)},
      "merges": _merges_of_scores(
        {piece: score for piece, score, kind in pieces if kind == kinds.NORMAL}
      ),
    }
  elif proto.trainer_spec.model_type == pb.TrainerSpec.UNIGRAM:  # type: ignore[attr-defined]
    body = {
      "type": "Unigram",
      "unk_id": unknown,
      "byte_fallback": True,
      "vocab": [[piece, score] for piece, score, _ in pieces],
    }
  else:
    raise UserError("a SentencePiece model of words or characters has no form as tokenizer.json")
  prefix = proto.normalizer_spec.add_dummy_prefix
  before: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
  before.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
  after: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  if prefix:
    after.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  return json_bytes(
    {
      "version": "1.0",
      "truncation": None,
      "padding": None,
      "added_tokens": _added({**control, **user}, set(control)),
      "normalizer": {"type": "Sequence", "normalizers": before},
      "pre_tokenizer": None,
      "post_processor": None,
      "decoder": {"type": "Sequence", "decoders": after},
      "model": body,
    }
  )


def _merges_of_scores(scores: Mapping[str, float]) -> list[list[str]]:
  """BPE merges of a SentencePiece model: every pair whose joint is a piece, best score first."""
  order = {piece: i for i, piece in enumerate(scores)}
  found = []
  for piece, score in scores.items():
    pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    good = [(a, b) for a, b in pairs if a in scores and b in scores]
    good.sort(key=lambda pair: (order[pair[0]], order[pair[1]]))
    found += [(-score, order[piece], i, a, b) for i, (a, b) in enumerate(good)]
  return [[a, b] for *_, a, b in sorted(found)]

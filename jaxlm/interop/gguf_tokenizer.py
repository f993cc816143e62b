"""The tokenizer inside a GGUF file, as Hugging Face's files and back."""

import json
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.interop.gguf_file import GgufFile
from jaxlm.interop.tokenizer_files import (
  TEMPLATE,
  bos_processor,
  byte_level,
  json_bytes,
  pre_tokenizer,
  sentencepiece_json,
)
from jaxlm.tokenizers.tiktoken import PATTERNS

# Token types of llama.cpp; SentencePiece numbers its own alike.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# tokenizer.ggml.pre → how text is cut. The first name of equal ones is written.
PRE: dict[str, dict[str, Any]] = {
  "gpt-2": {"pattern": None},
  "smollm": {"pattern": None, "digits": True},
  "llama-bpe": {"pattern": PATTERNS["llama3"], "ignore_merges": True},
  "llama3": {"pattern": PATTERNS["llama3"], "ignore_merges": True},
  "llama-v3": {"pattern": PATTERNS["llama3"], "ignore_merges": True},
  "qwen2": {"pattern": PATTERNS["qwen2"], "nfc": True},
  "gpt-4o": {"pattern": PATTERNS["o200k"]},
}
REMEDY = "name the tokenizer's own files with --tokenizer=PATH"


def files_of(file: GgufFile) -> dict[str, bytes]:
  """The tokenizer's files by name, as a Hugging Face folder would hold them.

  Raises:
    UserError: none inside, or a kind that is not known.
  """
  fields = file.fields
  kind, tokens = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.tokens")
  if kind is None or not isinstance(tokens, list):
    raise UserError(f"{file.path}: no tokenizer inside: {REMEDY}")
  types = np.asarray(fields.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32)))
  if len(types) != len(tokens):
    raise UserError(f"{file.path}: {len(tokens)} tokens but {len(types)} token types: {REMEDY}")
  if kind == "gpt2":
    files = {"tokenizer.json": _bpe(file, tokens, types)}
  elif kind in ("llama", "t5"):
    model = _sentencepiece(file, tokens, types, kind)
    files = {"tokenizer.model": model, "tokenizer.json": sentencepiece_json(model)}
  else:
    raise UserError(f"{file.path}: a tokenizer of kind {kind!r} is not known: {REMEDY}")
  config: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
  }
  for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
    i = fields.get(f"tokenizer.ggml.{theirs}_token_id")
    if i is not None and i < len(tokens):
      config[f"{ours}_token"] = tokens[i]
  for key in ("add_bos_token", "add_eos_token"):
    if (value := fields.get(f"tokenizer.ggml.{key}")) is not None:
      config[key] = bool(value)
  # llama.cpp's default is True for SentencePiece. tokenizer.json is where transformers looks.
  if "bos_token" in config and config.get("add_bos_token", kind == "llama"):
    values = json.loads(files["tokenizer.json"])
    bos = config["bos_token"]
    values["post_processor"] = bos_processor(bos, tokens.index(bos))
    files["tokenizer.json"] = json_bytes(values)
  template = fields.get("tokenizer.chat_template")
  if isinstance(template, str):
    config["chat_template"] = template
    files[TEMPLATE] = template.encode()
  return {**files, "tokenizer_config.json": json_bytes(config)}


def _bpe(file: GgufFile, tokens: list[str], types: np.ndarray) -> bytes:
  pre = file.fields.get("tokenizer.ggml.pre", "default")
  if pre not in PRE:
    raise UserError(
      f"{file.path}: tokenizer.ggml.pre={pre!r} is not among {', '.join(PRE)}: {REMEDY}"
    )
  merges = [tuple(m.split(" ", 1)) for m in file.fields.get("tokenizer.ggml.merges", [])]
  if bad := [m for m in merges if len(m) != 2]:
    raise UserError(f"{file.path}: merge {bad[0][0]!r} is not of two tokens: {REMEDY}")
  special = {t: i for i, t in enumerate(tokens) if types[i] in (CONTROL, UNKNOWN)}
  added = {t: i for i, t in enumerate(tokens) if types[i] == USER}
  vocabulary = {t: i for i, t in enumerate(tokens) if types[i] != UNUSED}
  return byte_level(vocabulary, merges, **PRE[pre], special=special, plain_added=added)


def _sentencepiece(file: GgufFile, tokens: list[str], types: np.ndarray, kind: str) -> bytes:
  from sentencepiece import sentencepiece_model_pb2 as pb

  fields = file.fields
  scores = fields.get("tokenizer.ggml.scores", np.zeros(len(tokens), np.float32))
  proto = pb.ModelProto()  # type: ignore[attr-defined]
  for token, score, one in zip(tokens, scores, types, strict=True):
    proto.pieces.add(piece=token, score=float(score), type=int(one))
  trainer = proto.trainer_spec
  trainer.model_type = pb.TrainerSpec.UNIGRAM if kind == "t5" else pb.TrainerSpec.BPE  # type: ignore[attr-defined]
  trainer.vocab_size, trainer.byte_fallback = len(tokens), bool(np.any(types == BYTE))
  for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
    i = fields.get(f"tokenizer.ggml.{theirs}_token_id")
    setattr(trainer, f"{ours}_id", -1 if i is None else int(i))
    if i is not None:
      setattr(trainer, f"{ours}_piece", tokens[i])
  normalizer = proto.normalizer_spec
  normalizer.name, normalizer.escape_whitespaces = "identity", True
  normalizer.add_dummy_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
  normalizer.remove_extra_whitespaces = bool(
    fields.get("tokenizer.ggml.remove_extra_whitespaces", False)
  )
  return proto.SerializeToString()


def fields_of(files: dict[str, bytes], vocab_size: int) -> dict[str, Any]:
  """The metadata (tokenizer.…) of a tokenizer given as Hugging Face's files.

  Args:
    files: tokenizer.model, or else tokenizer.json; tokenizer_config.json and the chat template.
    vocab_size: rows of the embedding; ids without a token get an unused one.

  Raises:
    UserError: llama.cpp has no name for the way it cuts text.
  """
  from jaxlm.interop.bundle import begin_ids

  config = json.loads(files.get("tokenizer_config.json", b"{}"))
  if "tokenizer.model" in files:
    out, tokens = _fields_of_sentencepiece(files["tokenizer.model"])
  elif "tokenizer.json" in files:
    out, tokens = _fields_of_bpe(json.loads(files["tokenizer.json"]))
  else:
    raise UserError("--to=gguf: the tokenizer is neither tokenizer.json nor tokenizer.model")
  places = {token: i for i, token in enumerate(tokens)}
  for i in range(len(tokens), vocab_size):
    tokens.append(f"[PAD{i}]")
    out["tokenizer.ggml.token_type"].append(UNUSED)
    if "tokenizer.ggml.scores" in out:
      out["tokenizer.ggml.scores"].append(-1e4)
  if len(tokens) > vocab_size:
    raise UserError(f"--to=gguf: {len(tokens)} tokens, but the model has {vocab_size}")
  out["tokenizer.ggml.tokens"] = tokens
  for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
    token = config.get(f"{ours}_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token in places:
      out[f"tokenizer.ggml.{theirs}_token_id"] = places[token]
  out["tokenizer.ggml.add_bos_token"] = bool(begin_ids(files, places))
  template = files[TEMPLATE].decode() if TEMPLATE in files else config.get("chat_template")
  if isinstance(template, str):
    out["tokenizer.chat_template"] = template
  return out


def _fields_of_bpe(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  model = values["model"]
  pre = pre_name(values)
  if model["type"] != "BPE" or pre is None:
    raise UserError(
      "--to=gguf: llama.cpp has no name for the way this tokenizer.json cuts text (known: "
      f"{', '.join(PRE)}): export to hf"
    )
  added = {t["content"]: t for t in values.get("added_tokens") or []}
  ids = {**model["vocab"], **{name: t["id"] for name, t in added.items()}}
  tokens = [f"[PAD{i}]" for i in range(max(ids.values()) + 1)]
  types = [UNUSED] * len(tokens)
  for token, i in ids.items():
    tokens[i], types[i] = token, NORMAL
    if token in added:
      types[i] = CONTROL if added[token]["special"] else USER
  merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": pre,
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.merges": merges,
  }, tokens


def pre_name(values: dict[str, Any]) -> str | None:
  """llama.cpp's name for how a byte-level tokenizer.json cuts text; None where it has none."""
  found = _essence(values.get("pre_tokenizer"))
  nfc = (values.get("normalizer") or {}).get("type") == "NFC"
  for name, how in PRE.items():
    same = _essence(pre_tokenizer(how["pattern"], how.get("digits", False)))
    if found == same and nfc == how.get("nfc", False):
      return name
  return None


def _essence(part: Any) -> list[Any]:
  """What of a pre_tokenizer decides the cuts."""
  if not isinstance(part, dict):
    return []
  if part.get("type") == "Sequence":
    return [step for one in part["pretokenizers"] for step in _essence(one)]
  # Files differ in how they spell one and the same pattern.
  pattern = (part.get("pattern") or {}).get("Regex", "")
  for old, new in (("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS),):
    pattern = pattern.replace(old, new)
  keys = ("type", "individual_digits", "add_prefix_space", "use_regex", "behavior", "invert")
  return [(pattern, *((key, part[key]) for key in keys if key in part))]


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _fields_of_sentencepiece(data: bytes) -> tuple[dict[str, Any], list[str]]:
  from sentencepiece import sentencepiece_model_pb2 as pb

  proto = pb.ModelProto()  # type: ignore[attr-defined]
  proto.ParseFromString(data)
  bpe = proto.trainer_spec.model_type == pb.TrainerSpec.BPE  # type: ignore[attr-defined]
  return {
    "tokenizer.ggml.model": "llama" if bpe else "t5",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.scores": [p.score for p in proto.pieces],
    "tokenizer.ggml.token_type": [int(p.type) for p in proto.pieces],
    "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    "tokenizer.ggml.remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
  }, [p.piece for p in proto.pieces]

"""Published tokenizers, recognised by what their files hold.

tokenizer.json           Hugging Face; EOS from tokenizer_config.json, special_tokens_map.json
*.model                  SentencePiece, or tiktoken ranks (Llama 3 names them so)
*.tiktoken               tiktoken ranks; pattern and special tokens from <file>.json beside it
vocab.json, merges.txt   byte-level BPE as GPT-2 published it (also encoder.json, vocab.bpe)
"""

import json
from pathlib import Path

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import CARD, Tokenizer

_BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def open_foreign(path: Path, eos: str | None = None, *, lossy: bool = False) -> Tokenizer | None:
  """The tokenizer in a published file or folder; None where it is jaxlm's own or nothing is there.

  lossy: see base.load_tokenizer.

  Raises:
    UserError: the file can not be read, is not what its name says, or is not lossless.
  """
  try:
    if path.is_file():
      return _open_file(path, eos, lossy)
    if not path.is_dir():
      return None
    if (path / CARD).is_file():
      return _hugging_face(path / CARD, eos, lossy, optional=True)
    for vocabulary, merges in _BPE_FILES:
      if (path / vocabulary).is_file() and (path / merges).is_file():
        from jaxlm.tokenizers.huggingface import from_bpe_files

        return from_bpe_files(path / vocabulary, path / merges, eos=eos)
    found = sorted([*path.glob("*.tiktoken"), *path.glob("*.model")])
    if len(found) > 1:
      names = ", ".join(f.name for f in found)
      raise UserError(f"{path}: holds several tokenizers ({names}): name one of the files")
    return _open_file(found[0], eos, lossy) if found else None
  except OSError as e:
    raise UserError(f"{e.filename or path}: {e.strerror or e}; correct the tokenizer's path") from e


def _open_file(path: Path, eos: str | None, lossy: bool) -> Tokenizer | None:
  if path.suffix == ".json":
    return _hugging_face(path, eos, lossy, optional=False)
  data = path.read_bytes()
  from jaxlm.tokenizers.tiktoken import is_ranks, open_ranks

  if is_ranks(data):
    return open_ranks(path, data, eos)
  from jaxlm.tokenizers.sentencepiece import SentencePieceTokenizer

  try:
    return SentencePieceTokenizer(data, lossy=lossy)
  except UserError as e:
    raise UserError(f"{path}: {e}") from None


def _hugging_face(path: Path, eos: str | None, lossy: bool, *, optional: bool) -> Tokenizer | None:
  data = path.read_bytes()
  try:
    values = json.loads(data)
  except ValueError as e:
    if optional:
      return None  # the card's reader says what is wrong
    raise UserError(f"{path}: not JSON ({e}); correct the tokenizer's path") from None
  if not isinstance(values, dict) or "model" not in values:
    if optional:
      return None
    raise UserError(f"{path}: not a tokenizer.json (no 'model' in it); correct the path")
  from jaxlm.tokenizers.huggingface import HuggingFaceTokenizer

  try:
    return HuggingFaceTokenizer(data, eos=eos or _named_eos(path.parent), lossy=lossy)
  except UserError as e:
    raise UserError(f"{path}: {e}") from None


def _named_eos(folder: Path) -> str | None:
  """eos_token of the files beside a tokenizer.json."""
  for name in ("tokenizer_config.json", "special_tokens_map.json"):
    file = folder / name
    if not file.is_file():
      continue
    try:
      values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as e:
      raise UserError(f"{file}: not JSON ({e}); correct or remove it") from None
    token = values.get("eos_token") if isinstance(values, dict) else None
    if isinstance(token, dict):  # an AddedToken
      token = token.get("content")
    if isinstance(token, str):
      return token
  return None

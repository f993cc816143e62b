"""Ranks files of tiktoken: a line for each token, its bytes in base64 and its rank.

The file holds neither the pattern that cuts text nor the special tokens. Both stand in a small JSON
file beside it, NAME.tiktoken.json or NAME.json for NAME.tiktoken:

    {"pattern": "cl100k", "special_tokens": {"<|endoftext|>": 100257}, "eos": "<|endoftext|>"}

pattern: a name of PATTERNS, or a regular expression. Nothing is ever fetched.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import ByteTable, check_lossless, sha256, write_card
from jaxlm.tokenizers.huggingface import encode_segmented

FILE = "tokenizer.tiktoken"
_CL100K = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# The patterns that the published vocabularies were trained with.
PATTERNS = {
  "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
  "cl100k": _CL100K,
  "llama3": _CL100K,
  "qwen2": _CL100K.replace(r"\p{N}{1,3}", r"\p{N}"),
  "o200k": (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
  ),
}
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


class TiktokenTokenizer(ByteTable):
  """Byte-pair ranks with a pattern.

  Args:
    ranks: the bytes of the file.
    settings: pattern, special_tokens (name → id) and eos, as in the module's docstring.

  Raises:
    UserError: a broken file or setting.
  """

  kind = "tiktoken"

  def __init__(self, ranks: bytes, settings: dict[str, Any]):
    self._ranks = ranks
    self.threads: int | None = None
    self.settings: dict[str, Any] = {
      "pattern": settings.get("pattern"),
      "special_tokens": dict(settings.get("special_tokens") or {}),
      "eos": settings.get("eos"),
    }
    table = parse_ranks(ranks)
    pattern, special = self.settings["pattern"], self.settings["special_tokens"]
    if not isinstance(pattern, str) or not pattern:
      raise UserError(
        f"tiktoken ranks need a pattern: {{'pattern': one of {sorted(PATTERNS)} or a regular"
        " expression} in the JSON file beside them"
      )
    eos = self.settings["eos"]
    if eos is None and len(special) == 1:
      eos = self.settings["eos"] = next(iter(special))
    if eos not in special:
      raise UserError(
        f"tiktoken ranks: eos={eos!r} is not one of special_tokens ({', '.join(special) or 'none'}"
        "): name them in the JSON file beside them"
      )
    self._encoding = _encoding(table, PATTERNS.get(pattern, pattern), special)
    self.eos_id = int(special[eos])
    self.vocab_size = max(*table.values(), *special.values()) + 1
    self._table = [b""] * self.vocab_size
    for piece, i in table.items():
      self._table[i] = piece
    check_lossless(self, special, "name the pattern and special tokens that belong to the ranks")

  @classmethod
  def load(cls, directory: Path, card: dict[str, Any]) -> "TiktokenTokenizer":
    """Reads the ranks that the card names and the settings beside them."""
    file = directory / Path(str(card.get("file") or FILE)).name
    remedy = "make the dataset again with `python -m jaxlm.prepare`"
    try:
      ranks = file.read_bytes()
      settings = json.loads(_settings_file(file).read_text("utf-8"))
    except OSError as e:
      raise UserError(f"{e.filename or file}: {e.strerror or e}; {remedy}") from None
    except ValueError as e:
      raise UserError(f"{_settings_file(file)}: not JSON ({e}); {remedy}") from None
    if _fingerprint(ranks, settings) != card.get("sha256"):
      raise UserError(f"{file}: its bytes changed (sha256 differs from tokenizer.json); {remedy}")
    return cls(ranks, settings)

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self.encode_with(texts, self._encode_batch)

  def encode_with(
    self, texts: Sequence[str], encode_batch: Callable[[list[str]], list[list[int]]]
  ) -> list[list[int]]:
    """encode_batch over the segments of the texts; shared with accelerators, which must agree."""
    return encode_segmented(texts, encode_batch)

  def _encode_batch(self, parts: list[str]) -> list[list[int]]:
    threads = min(len(parts), self.threads or os.cpu_count() or 1)
    if threads <= 1:
      return [self._encoding.encode_ordinary(part) for part in parts]
    return self._encoding.encode_ordinary_batch(parts, num_threads=threads)

  def fingerprint(self) -> str:
    return _fingerprint(self._ranks, self.settings)

  def save(self, directory: str | os.PathLike[str]) -> None:
    root = Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_bytes(self._ranks)
    text = json.dumps(self.settings, indent=2, sort_keys=True)
    _settings_file(root / FILE).write_text(text + "\n", "utf-8")
    write_card(self, root, FILE)

  def __reduce__(self) -> tuple[Any, ...]:
    return type(self), (self._ranks, self.settings)


def is_ranks(data: bytes) -> bool:
  """Whether these are the bytes of a ranks file."""
  return _RANK_LINE.match(data[:4096] + b"\n") is not None


def parse_ranks(data: bytes) -> dict[bytes, int]:
  """Token → rank. Raises UserError with the line where the file is broken."""
  table: dict[bytes, int] = {}
  for number, line in enumerate(data.splitlines(), 1):
    if not line:
      continue
    try:
      token, rank = line.split()
      table[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError:
      raise UserError(
        f"line {number} of the ranks is not 'base64 rank': the file is damaged; copy it again"
      ) from None
  missing = sum(bytes([b]) not in table for b in range(256))
  if missing:
    raise UserError(f"the ranks lack {missing} of the 256 bytes, so that text would be lost")
  return table


def open_ranks(path: Path, data: bytes, eos: str | None = None) -> TiktokenTokenizer:
  """A published ranks file with the settings beside it."""
  for file in (_settings_file(path), path.with_suffix(".json")):
    if file.is_file():
      try:
        settings = json.loads(file.read_text("utf-8"))
      except ValueError as e:
        raise UserError(f"{file}: not JSON ({e}); correct it") from None
      break
  else:
    raise UserError(
      f"{path}: ranks alone do not say how text is cut: write {_settings_file(path).name} beside"
      ' them, {"pattern": "cl100k", "special_tokens": {"<|endoftext|>": 100257}}'
    )
  if not isinstance(settings, dict):
    raise UserError(f"{file}: holds {type(settings).__name__}, not an object; correct it")
  try:
    return TiktokenTokenizer(data, {**settings, **({"eos": eos} if eos else {})})
  except UserError as e:
    raise UserError(f"{path}: {e}") from None


def _settings_file(ranks: Path) -> Path:
  return ranks.with_name(ranks.name + ".json")


def _encoding(table: dict[bytes, int], pattern: str, special: dict[str, int]) -> Any:
  try:
    import tiktoken
  except ImportError:
    raise UserError("tiktoken is not installed: pip install 'jaxlm[tokenizers]'") from None
  clash = set(special.values()) & set(table.values())
  if clash:
    raise UserError(f"tiktoken ranks: special token ids {sorted(clash)[:3]} are ids of text too")
  try:
    return tiktoken.Encoding(
      "jaxlm", pat_str=pattern, mergeable_ranks=table, special_tokens=special
    )
  except Exception as e:  # of its regular expressions, bare
    raise UserError(f"tiktoken ranks: pattern {pattern[:60]!r}: {e}; correct it") from None


def _fingerprint(ranks: bytes, settings: dict[str, Any]) -> str:
  text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
  return sha256(ranks + b"\0" + text.encode())

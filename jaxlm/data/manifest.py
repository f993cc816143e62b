"""The manifest of a tokenised dataset: what its shards hold, and the checks that they still do.

A dataset is a directory:

    DIR/manifest.json
    DIR/tokenizer/              the tokenizer that made the ids
    DIR/<split>/shard-00000.bin ids, little-endian <u2 or <u4; every document ends in EOS
    DIR/<split>/shard-00000.idx <u8 exclusive document ends, in tokens from the start of the shard
"""

import dataclasses
import hashlib
import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any, TypeVar

from jaxlm.errors import UserError

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
ITEM_SIZES = {"<u2": 2, "<u4": 4}
INDEX_ITEM_SIZE = 8

_T = TypeVar("_T")
_NOT_CONTENT = ("versions", "accelerator")


def dtype_for(vocab_size: int) -> str:
  """The narrowest dtype on disk that holds ids below vocab_size: "<u2" or "<u4"."""
  return "<u2" if vocab_size <= 1 << 16 else "<u4"


@dataclasses.dataclass(kw_only=True)
class Shard:
  """One .bin file; its index is the same name with .idx.

  file: path relative to the dataset's directory. tokens: ids in it, EOS included. docs: documents.
  bytes: size of the UTF-8 text of its documents (not of the file).
  """

  file: str
  tokens: int
  docs: int
  bytes: int
  sha256: str
  index_sha256: str

  @property
  def index_file(self) -> str:
    return str(Path(self.file).with_suffix(".idx"))


@dataclasses.dataclass(kw_only=True)
class Split:
  """tokens, docs, bytes: sums over the shards. baselines: compressor → bytes of its output."""

  tokens: int
  docs: int
  bytes: int
  shards: list[Shard]
  baselines: dict[str, int] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, shards: list[Shard], baselines: dict[str, int] | None = None) -> "Split":
    """The split made of these shards, its totals summed from them."""
    return cls(
      tokens=sum(s.tokens for s in shards),
      docs=sum(s.docs for s in shards),
      bytes=sum(s.bytes for s in shards),
      shards=shards,
      baselines=dict(baselines or {}),
    )


@dataclasses.dataclass(kw_only=True)
class Manifest:
  """Everything that is known of a dataset. source: free, JSON values only."""

  format_version: int = FORMAT_VERSION
  name: str
  dtype: str
  vocab_size: int
  eos_id: int
  tokenizer_sha256: str
  shuffle_seed: int
  splits: dict[str, Split]
  source: dict[str, Any] = dataclasses.field(default_factory=dict)
  created: str = ""
  jaxlm_version: str = ""

  @classmethod
  def load(cls, directory: str | os.PathLike[str]) -> "Manifest":
    """Reads DIR/manifest.json; every problem is a UserError that names the file and the remedy."""
    root = Path(directory)
    if not root.is_dir():
      raise UserError(
        f"{root}: no such dataset directory; make it with `python -m jaxlm.prepare`,"
        " or correct the path"
      )
    file = root / FILE_NAME
    remake = "make the dataset again with `python -m jaxlm.prepare`"
    try:
      values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
      raise UserError(f"{file}: missing, so {root} is not a (complete) dataset; {remake}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
      raise UserError(f"{file}: cannot be read as JSON ({e}); {remake}") from None
    if not isinstance(values, dict):
      raise UserError(f"{file}: holds {type(values).__name__}, not an object; {remake}")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
      raise UserError(
        f"{file}: format_version is {version!r}, this jaxlm reads {FORMAT_VERSION}; {remake}"
      )
    manifest = _construct(cls, values, str(file), remake)
    splits = _object(manifest.splits, f"{file}: splits", remake)
    manifest.splits = {}
    for name, split_values in splits.items():
      where = f"{file}: splits.{name}"
      split = _construct(Split, _object(split_values, where, remake), where, remake)
      if not isinstance(split.shards, list):
        raise UserError(f"{where}.shards: not a list; {remake}")
      split.shards = [
        _construct(
          Shard, _object(s, f"{where}.shards[{i}]", remake), f"{where}.shards[{i}]", remake
        )
        for i, s in enumerate(split.shards)
      ]
      manifest.splits[name] = split
    manifest.validate(str(file))
    return manifest

  def validate(self, where: str = "manifest") -> None:
    """Checks that the numbers agree with each other; UserError where they do not."""
    remake = "make the dataset again with `python -m jaxlm.prepare`"
    if self.dtype not in ITEM_SIZES:
      raise UserError(
        f"{where}: dtype={self.dtype!r}: must be one of {sorted(ITEM_SIZES)}; {remake}"
      )
    if not 0 < self.vocab_size <= min(1 << 31, 1 << 8 * ITEM_SIZES[self.dtype]):
      raise UserError(
        f"{where}: vocab_size={self.vocab_size} does not fit in dtype {self.dtype}; {remake}"
      )
    if not 0 <= self.eos_id < self.vocab_size:
      raise UserError(
        f"{where}: eos_id={self.eos_id} is not below vocab_size={self.vocab_size}; {remake}"
      )
    for name, split in self.splits.items():
      for key in ("tokens", "docs", "bytes"):
        total = sum(getattr(s, key) for s in split.shards)
        if getattr(split, key) != total:
          raise UserError(
            f"{where}: splits.{name}.{key}={getattr(split, key)} but its shards sum to {total};"
            f" {remake}"
          )
      for shard in split.shards:
        # A manifest may come from anywhere; it must not make a reader open files outside of DIR.
        if Path(shard.file).is_absolute() or ".." in Path(shard.file).parts:
          raise UserError(f"{where}: {shard.file}: must lie inside of the dataset; {remake}")
        if Path(shard.file).suffix != ".bin":
          raise UserError(f"{where}: {shard.file}: a shard's name must end in .bin; {remake}")

  def split(self, name: str) -> Split:
    """The split of that name, or a UserError that lists the names there are."""
    if name not in self.splits:
      names = ", ".join(sorted(self.splits)) or "none"
      raise UserError(f"dataset {self.name!r}: no split {name!r}; choose one of: {names}")
    return self.splits[name]

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes DIR/manifest.json whole or not at all (temporary file, then os.replace)."""
    root = Path(directory)
    self.validate(str(root / FILE_NAME))
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".{FILE_NAME}.{os.getpid()}.tmp"
    try:
      with temporary.open("w", encoding="utf-8") as f:
        json.dump(self.to_dict(), f, indent=2, ensure_ascii=False)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
      temporary.replace(root / FILE_NAME)
    finally:
      temporary.unlink(missing_ok=True)

  def fingerprint(self) -> str:
    """sha256 (hex) over the canonical JSON of everything but when and with what it was made.

    Left out: `created`, and of `source` the package versions, the encoder used (its ids are those
    of the tokenizer) and places on disk; two runs of one seed agree wherever they lie.
    """
    values = self.to_dict()
    del values["created"]
    source = {k: v for k, v in values["source"].items() if k not in _NOT_CONTENT}
    if isinstance(upstream := source.get("upstream"), list):
      keys = ("stage", "fingerprint", "sha256")
      source["upstream"] = [{k: one.get(k) for k in keys} for one in upstream]
    values["source"] = source
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def verify(self, directory: str | os.PathLike[str], *, full: bool) -> None:
    """Checks the files of every split against the manifest.

    Always: each shard and index exists and has exactly the size that the counts ask for.
    full: also both sha256, and that the index is increasing and ends at the shard's last token.
    """
    for name in self.splits:
      self.verify_split(directory, name, full=full)

  def verify_split(self, directory: str | os.PathLike[str], name: str, *, full: bool) -> None:
    """`verify` of one split."""
    root = Path(directory)
    for shard in self.split(name).shards:
      index = root / shard.index_file
      _check_size(root / shard.file, shard.tokens * ITEM_SIZES[self.dtype])
      _check_size(index, shard.docs * INDEX_ITEM_SIZE)
      if full:
        _check_sha256(root / shard.file, shard.sha256)
        _check_sha256(index, shard.index_sha256)
        _check_index(index, shard.tokens)


def _remedy(file: Path) -> str:
  return f"copy {file.name} again, or make the dataset again with `python -m jaxlm.prepare`"


def _check_size(file: Path, expected: int) -> None:
  try:
    size = file.stat().st_size
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}; {_remedy(file)}") from None
  if size != expected:
    state = "truncated" if size < expected else "too long"
    raise UserError(f"{file}: {state}: {size} bytes, the manifest says {expected}; {_remedy(file)}")


def _check_sha256(file: Path, expected: str) -> None:
  with file.open("rb") as f:
    found = hashlib.file_digest(f, "sha256").hexdigest()
  if found != expected:
    raise UserError(
      f"{file}: its bytes changed: sha256 is {found[:12]}…, the manifest says {expected[:12]}…;"
      f" {_remedy(file)}"
    )


def _check_index(file: Path, tokens: int) -> None:
  data = file.read_bytes()
  ends = struct.unpack(f"<{len(data) // INDEX_ITEM_SIZE}Q", data)
  if any(b <= a for a, b in itertools.pairwise((0, *ends))) or (ends[-1] if ends else 0) != tokens:
    raise UserError(
      f"{file}: not an increasing list of document ends up to {tokens} tokens; {_remedy(file)}"
    )


def _object(values: Any, where: str, remake: str) -> dict[str, Any]:
  if not isinstance(values, dict):
    raise UserError(f"{where}: not an object; {remake}")
  return values


_TYPES: dict[Any, type] = {int: int, str: str}


def _construct(cls: type[_T], values: dict[str, Any], where: str, remake: str) -> _T:
  """cls(**values) with a UserError for missing or unknown keys and numbers of a wrong type."""
  fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
  missing = [
    n
    for n, f in fields.items()
    if n not in values
    and f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise UserError(f"{where}: lacks {', '.join(missing)}; {remake}")
  unknown = sorted(set(values) - set(fields))
  if unknown:
    raise UserError(f"{where}: unknown key {', '.join(unknown)}; {remake}")
  for name, value in values.items():
    expected = _TYPES.get(fields[name].type)
    if expected and (not isinstance(value, expected) or isinstance(value, bool)):
      raise UserError(f"{where}: {name}={value!r}: expected {expected.__name__}; {remake}")
    if expected is int and value < 0:
      raise UserError(f"{where}: {name}={value}: must not be negative; {remake}")
  return cls(**values)

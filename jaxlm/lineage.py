"""Sealed lineage: what a checkpoint was made from, checked wherever it is used.

A trainer that only looks at shapes will train in silence on the wrong tokenizer's ids (and show a
better loss). Every checkpoint of jaxlm carries a Seal; training, resuming, evaluating, generating
and exporting compare it with what they were given.

Beside it a run keeps WORKDIR/lineage.json, the datasets that it trained on by the sha256 of their
manifests; `walk` follows it from there: manifest, stages, raw files. A run that began with a
published checkpoint has WORKDIR/imported.json too: the files of its weights, with their sha256.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm import __version__
from jaxlm.data.manifest import FILE_NAME, Manifest
from jaxlm.errors import UserError

DATASETS = "lineage.json"
IMPORTED = "imported.json"  # in the directory of a run that began with a published checkpoint
_IMPORTED_DATA = "imported, weights of sha256 "  # of such a run's first seal


@dataclasses.dataclass(frozen=True)
class Seal:
  """Hashes (sha256, hex) of what a run is made from.

  Attributes:
    model: the model's shape, i.e. all of its config that decides what the parameters mean.
    tokenizer: the tokenizer's content; None where the data carries none (synthetic ids).
    data: what decided every row up to the checkpoint's.
    code: jaxlm's own source.
    version: jaxlm's version.
  """

  model: str
  tokenizer: str | None
  data: str
  code: str
  version: str = __version__

  @property
  def imported(self) -> bool:
    """Whether the checkpoint is an import as it came, not trained since."""
    return self.data.startswith(_IMPORTED_DATA)

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any], where: str) -> "Seal":
    """Reads what to_dict wrote. Raises UserError when a field is missing."""
    try:
      return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
    except (KeyError, TypeError) as error:
      raise UserError(f"{where}: its seal is damaged ({error}); use an older checkpoint") from error


_REMEDY = {
  "model": "the model's shape differs: use the workdir's own config.json, or another --workdir",
  "tokenizer": "the tokenizer is another one: use the one that the run began with",
  "data": "the rows already trained on differ (data changed on disk, or its order, mixture or"
  " seq_len): restore the dataset, or start another --workdir",
}


def check(sealed: Seal, found: Seal, where: str, parts: tuple[str, ...]) -> list[str]:
  """Compares the named parts of a checkpoint's seal with what is there now.

  Returns:
    Warnings: the code changed since (never an error: fixing a bug must not end a run).

  Raises:
    UserError: a part differs; the line names it, the place and the remedy.
  """
  for part in parts:
    old, new = getattr(sealed, part), getattr(found, part)
    if old != new and part == "tokenizer" and old is None and sealed.imported:
      raise UserError(
        f"{where}: imported without a tokenizer, so nothing shows that the data's ids "
        f"({_short(new)}) are the model's: import it again with --tokenizer=PATH, the data's"
      )
    if old != new:
      raise UserError(
        f"{where}: sealed with {part} {_short(old)}, but {_short(new)} is here now: {_REMEDY[part]}"
      )
  if sealed.code != found.code:
    return [
      f"{where} was made by jaxlm {sealed.version} ({_short(sealed.code)}), this is {found.version}"
      f" ({_short(found.code)}): results may differ in their last digits"
    ]
  return []


def _short(digest: str | None) -> str:
  return "none" if digest is None else digest[:12]


@functools.cache
def code_fingerprint() -> str:
  """sha256 (hex) of all Python files of the installed jaxlm package."""
  root = Path(__file__).parent
  digest = hashlib.sha256()
  for file in sorted(root.rglob("*.py")):
    digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
  return digest.hexdigest()


# ---- from a run back to the raw files ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Link:
  """One thing that a run was made from.

  kind: imported (weights that the run began with), dataset, shard, stage, output (of a stage),
  listing or raw. where: the file. sha256: as recorded. state: good, changed, missing, or unchecked.
  note: of an import, what was converted and its family.
  """

  kind: str
  where: str
  sha256: str
  state: str
  note: str = ""


def dataset_paths(sources: Iterable[Any]) -> dict[str, str]:
  """Name → directory of those sources of a DataConfig that are datasets of jaxlm."""
  from jaxlm.data.config import TokenShardsConfig

  return {s.name: s.path for s in sources if isinstance(s, TokenShardsConfig)}


def datasets(paths: Mapping[str, str]) -> dict[str, dict[str, str]]:
  """The record of the datasets of a run. paths: source name → dataset directory.

  Each {"path", "manifest_sha256" (of the file), "fingerprint" (of what decides its ids)}.
  """
  return {
    name: {
      "path": str(Path(path).resolve()),
      "manifest_sha256": _sha256(Path(path) / FILE_NAME),
      "fingerprint": Manifest.load(path).fingerprint(),
    }
    for name, path in sorted(paths.items())
  }


def write(workdir: str | Path, found: Mapping[str, Mapping[str, str]]) -> None:
  """Writes WORKDIR/lineage.json whole or not at all."""
  fresh = Path(workdir) / f".{DATASETS}.tmp"
  text = json.dumps({"datasets": found}, indent=2, sort_keys=True)
  fresh.write_text(text + "\n", encoding="utf-8")
  fresh.replace(Path(workdir) / DATASETS)


def walk(workdir: str | Path, *, full: bool = False) -> list[Link]:
  """Everything that a run was made from, each compared with the hash recorded one step before.

  Manifests, stage records and listings are always compared; imported weights, shards, the files of
  stages and raw files (which may be gone by now, or large) with full.

  Raises:
    UserError: the run has neither lineage.json nor imported.json.
  """
  file = Path(workdir) / DATASETS
  links = list(_imported_links(workdir, full))
  if links and not file.exists():
    return links  # not trained since
  try:
    found = json.loads(file.read_text(encoding="utf-8"))["datasets"]
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}: the run names no datasets") from None
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"{file}: damaged ({type(e).__name__}: {e}); start the run again") from None
  return [*links, *(link for one in found.values() for link in _dataset_links(one, full))]


def imported(workdir: str | Path) -> dict[str, Any] | None:
  """The record of the import that a run began with: {"from", "sha256": file → sha256,
  "model_type", "begin" (ids that begin a text), …}; None for any other run."""
  file = Path(workdir) / IMPORTED
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(found["from"], str) and isinstance(found["sha256"], dict):
      return found
    error = "its fields are not those of an import"
  except (OSError, ValueError, KeyError, TypeError) as e:
    error = f"{type(e).__name__}: {e}"
  raise UserError(f"{file}: damaged ({error}); import the checkpoint again")


def _imported_links(workdir: str | Path, full: bool) -> Iterator[Link]:
  record = imported(workdir)
  if record is not None:
    note = f"{record.get('model_type') or 'unknown family'}, from {record['from']}"
    files = ((Path(name), sha256) for name, sha256 in sorted(record["sha256"].items()))
    yield from (dataclasses.replace(link, note=note) for link in _links("imported", files, full))


def imported_data(sources: Mapping[str, str]) -> str:
  """`Seal.data` of an import. sources: path → sha256 of every file of weights."""
  digest = hashlib.sha256("".join(sorted(sources.values())).encode()).hexdigest()
  return _IMPORTED_DATA + digest


def _dataset_links(record: Mapping[str, str], full: bool) -> Iterator[Link]:
  root = Path(record["path"])
  manifest_file = root / FILE_NAME
  yield (top := _link("dataset", manifest_file, record["manifest_sha256"]))
  if top.state != "good":
    return
  manifest = Manifest.load(root)
  shards = [shard for split in manifest.splits.values() for shard in split.shards]
  yield from _links("shard", ((root / s.file, s.sha256) for s in shards), full)
  for stage in manifest.source.get("upstream") or []:
    directory = root / stage["path"]
    yield (link := _link("stage", directory / "stage.json", stage["sha256"]))
    if link.state == "good":
      values = json.loads((directory / "stage.json").read_text(encoding="utf-8"))
      files = ((directory / name, sha256) for name, sha256 in sorted(values["files"].items()))
      yield from _links("output", files, full)
      yield from _raw_links(directory, values.get("raw"), full)
  yield from _raw_links(root, manifest.source.get("raw"), full)


def _raw_links(directory: Path, raw: Any, full: bool) -> Iterator[Link]:
  """raw: {"listing", "sha256"}: a file as sha256sum writes it, in the directory."""
  if not isinstance(raw, dict) or not raw.get("listing"):
    return
  listing = directory / raw["listing"]
  yield (link := _link("listing", listing, raw["sha256"]))
  if link.state == "good":
    lines = listing.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    pairs = (line.split("  ", 1) for line in lines)
    yield from _links("raw", ((Path(name), sha256) for sha256, name in pairs), full)


def _links(kind: str, files: Iterable[tuple[Path, str]], full: bool) -> Iterator[Link]:
  for file, sha256 in files:
    yield _link(kind, file, sha256) if full else Link(kind, str(file), sha256, "unchecked")


def _link(kind: str, file: Path, sha256: str) -> Link:
  if not file.is_file():
    return Link(kind, str(file), sha256, "missing")
  return Link(kind, str(file), sha256, "good" if _sha256(file) == sha256 else "changed")


def _sha256(file: Path) -> str:
  try:
    with file.open("rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}; restore the dataset") from None

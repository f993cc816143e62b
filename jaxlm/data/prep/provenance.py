"""Where a dataset comes from: the chain of stages before it, each by fingerprint and hash.

The entries of a stage's record are followed to the first one, so that a dataset's manifest holds
the whole chain: every stage's fingerprint, the sha256 of its stage.json (which holds the sha256 of
each of its files), and of the first the state of the raw files.
"""

import hashlib
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Raw = dict[str, Any]
PACKAGES = ("numpy", "sentencepiece", "tokenizers", "tiktoken", "fastokens", "gigatoken")


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
  """Versions of those that are installed."""
  out = {}
  for name in names:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return out


def chain_of(directory: str | Path, start: Path) -> list[dict[str, Any]]:
  """The stage in `directory` and all before it, the first stage first.

  start: the directory that paths are relative to, so that both may be moved together.

  Each {"stage", "fingerprint", "sha256" (of its stage.json), "path", "documents", "bytes",
  "versions", "raw" (the first stage: what it read)}.
  """
  from jaxlm.data.stages import base
  from jaxlm.data.stages.chain import chain

  return [
    {
      "stage": record["stage"],
      "fingerprint": record["fingerprint"],
      "sha256": base.file_sha256(Path(where) / base.RECORD),
      "path": os.path.relpath(Path(where).resolve(), Path(start).resolve()),
      "documents": record["kept"],
      "bytes": record.get("bytes_out", 0),
      "versions": record.get("versions", {}),
      **{key: record[key] for key in ("raw", "inputs", "states") if key in record},
    }
    for where, record in chain(directory)
  ]


def upstream_stages(paths: Iterable[str], start: Path) -> list[dict[str, Any]]:
  """The chains of those paths that lie in a finished stage (its directory or documents/)."""
  from jaxlm.data.stages import base

  out: list[dict[str, Any]] = []
  for name in paths:
    path = Path(name).expanduser()
    for where in (path, path.parent):
      if (where / base.RECORD).is_file():
        out += [entry for entry in chain_of(where, start) if entry not in out]
        break
  return out


LISTING = "raw.sha256"


def raw_files(paths: Iterable[str], exclude: Path | None = None) -> list[Path]:
  """The files that `paths` name, folders with all below them but what is hidden, sorted."""
  found: set[Path] = set()
  for name in paths:
    root = Path(name).expanduser()
    if root.is_file():
      found.add(root)
    for file in root.rglob("*") if root.is_dir() else ():
      hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
      inside = exclude is not None and file.resolve().is_relative_to(exclude)
      if file.is_file() and not hidden and not inside:
        found.add(file)
  return sorted(found)


def write_listing(paths: Iterable[str], directory: Path, exclude: Path | None = None) -> Raw:
  """Writes DIRECTORY/raw.sha256 (as sha256sum does; `sha256sum -c` checks it) of the raw files.

  Returns:
    {"listing", "sha256" (of the listing), "files", "bytes"}; {} where there are none.
  """
  files = raw_files(paths, exclude)
  if not files:
    return {}
  lines, size = [], 0
  for file in files:
    with file.open("rb") as stream:
      digest = hashlib.file_digest(stream, "sha256").hexdigest()
      size += stream.tell()
    lines.append(f"{digest}  {file.resolve()}\n")
  data = "".join(lines).encode("utf-8", "surrogateescape")
  (directory / LISTING).write_bytes(data)
  digest = hashlib.sha256(data).hexdigest()
  return {"listing": LISTING, "sha256": digest, "files": len(files), "bytes": size}


def raw_paths(record: dict[str, Any]) -> list[str]:
  """The paths that the sources of a stage's record name."""
  sources = (record.get("config") or {}).get("sources") or {}
  out: list[str] = []
  for source in sources.values() if isinstance(sources, dict) else sources:
    paths = source.get("paths") or source.get("path") or () if isinstance(source, dict) else ()
    out += [paths] if isinstance(paths, str) else list(paths)
  return out

"""The stage collect: documents of all sources, in one form, every one that was skipped counted."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.runner import as_json, begin
from jaxlm.data.stages.stage_io import whole_file

OPS_VERSION = 1
FILE_DOCUMENTS = 10_000  # of a file: the unit of work of the stages after it


def run(config: CurationConfig, *, limit: int | None = None) -> Path:
  """Makes the stage, or finds it made. Returns its directory.

  limit: at most so many documents of each source.
  """
  config.validate()
  output = Path(config.output)
  corpora = {
    name: source.build(strict=False, exclude=str(output.resolve()))
    for name, source in config.sources.items()
  }
  settings = {name: as_json(source) for name, source in config.sources.items()}
  states = {name: corpus.fingerprint() for name, corpus in corpora.items()}
  found = base.fingerprint("collect", settings, states, limit, OPS_VERSION)
  directory = base.stage_dir(output, "collect", found)
  if base.is_finished(directory, found):
    return directory
  begin(directory, found, 1)
  started = time.perf_counter()
  by_source: dict[str, dict[str, int]] = {}
  ops: list[dict[str, Any]] = []
  number = kept_bytes = 0
  for name, corpus in corpora.items():
    seen: set[str] = set()
    kept = 0
    batch: list[str] = []

    def flush(batch: list[str]) -> None:
      nonlocal number
      if batch:
        path = directory / "documents" / f"{number:05d}.jsonl.gz"
        with whole_file(path) as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
          file.write("".join(batch).encode())
        number += 1
        batch.clear()

    for document in corpus.documents():
      if limit is not None and kept >= limit:
        break
      identity = document.origin.get("id", document.id)
      if identity in seen:
        corpus.counts.skip("duplicate id", document.id)
        continue
      seen.add(identity)
      if not document.text.strip():
        corpus.counts.skip("empty", document.id)
        continue
      try:
        size = len(document.text.encode())
      except UnicodeEncodeError:  # a lone surrogate, which no reader takes back
        corpus.counts.skip("undecodable", document.id)
        continue
      extra = {key: value for key, value in document.origin.items() if key != "id"}
      metadata = {**extra, "source": name}
      row = {"text": document.text, "id": identity, "metadata": metadata}
      batch.append(json.dumps(row, ensure_ascii=False) + "\n")
      kept += 1
      kept_bytes += size
      if len(batch) == FILE_DOCUMENTS:
        flush(batch)
    flush(batch)
    reasons = dict(sorted(corpus.counts.skipped.items()))
    by_source[name] = {"in": kept + sum(reasons.values()), "kept": kept}
    ops.append({"source": name, "kept": kept, "reasons": reasons})
  dropped: dict[str, int] = {}
  for op in ops:
    for reason, count in op["reasons"].items():
      dropped[reason] = dropped.get(reason, 0) + count
  kept = sum(op["kept"] for op in ops)
  read = {
    "name": "read",
    "in": kept + sum(dropped.values()),
    "kept": kept,
    "dropped": sum(dropped.values()),
    "reasons": dropped,
    "errored": 0,
    "bytes_in": kept_bytes,
    "bytes_kept": kept_bytes,
    "seconds": round(time.perf_counter() - started, 3),
  }
  base.check_books("collect", [read], config.max_drop_ratio, str(directory))
  base.write_stage_json(
    directory,
    {
      "stage": "collect",
      "fingerprint": found,
      "upstream": [],
      "config": {"name": config.name, "sources": settings, "limit": limit},
      "versions": {},
      "ops": [read],
      **{key: read[key] for key in ("in", "kept", "dropped", "errored", "bytes_in")},
      "bytes_out": kept_bytes,
      "by_source": by_source,
      "by_language": {},
      "seconds": read["seconds"],
    },
  )
  return directory

"""`verify`: files against their checksums, the chain of stages, and the books."""

import dataclasses
import gzip
import itertools
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.manifest import FILE_NAME, ITEM_SIZES, Manifest, Split
from jaxlm.data.stages import base
from jaxlm.data.stages.chain import finished, upstream_dir
from jaxlm.data.stages.report_dataset import sidecar
from jaxlm.errors import UserError

SHOWN = 3  # problems named in the error


def verify(path: str | Path, say: Callable[[str], None] = lambda _: None) -> list[str]:
  """Checks a directory of stages, one stage, or a tokenised dataset.

  Args:
    say: told every problem, one line each.

  Returns:
    One line for each stage or split that is good.

  Raises:
    UserError: there are problems: their number and the first of them.
  """
  root = Path(path)
  good: list[str] = []
  if (root / FILE_NAME).exists():
    found = _dataset(root, good)
  else:
    stages = [root] if (root / base.RECORD).is_file() else finished(root)
    if not stages:
      raise UserError(f"{root}: holds no finished stage ({base.RECORD}) and no {FILE_NAME}")
    found = (problem for stage in stages for problem in _stage(stage, good))
  problems = []
  for problem in found:
    say(problem)
    problems.append(problem)
  if problems:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UserError(f"{root}: {count}: {'; '.join(problems[:SHOWN])}{more}")
  return good


# ---- stages -----------------------------------------------------------------------------------


def _stage(directory: Path, good: list[str]) -> Iterator[str]:
  try:
    record = base.read_stage(directory)
    problems = [*_files(directory, record), *_chain(directory, record), *_books(directory, record)]
  except UserError as error:
    yield str(error)
    return
  except (KeyError, TypeError, AttributeError) as error:
    yield f"{directory / base.RECORD}: damaged ({type(error).__name__}: {error}); run it again"
    return
  yield from problems
  if not problems:
    good.append(f"{directory}: {len(record['files'])} files, {record['kept']:,} documents: good")


def _files(directory: Path, record: dict[str, Any]) -> Iterator[str]:
  again = "run the stage again"
  for name, expected in sorted(record["files"].items()):
    file = directory / name
    if not file.is_file():
      yield f"{file}: missing; {again}"
      continue
    if (digest := base.file_sha256(file)) != expected:
      yield (
        f"{file}: its bytes changed: sha256 is {digest[:12]}…, {base.RECORD} says"
        f" {expected[:12]}…; {again}"
      )
  for file in sorted((directory / "documents").rglob("*")):
    if file.is_file() and str(file.relative_to(directory)) not in record["files"]:
      yield f"{file}: not listed in {base.RECORD}; remove it, or {again}"


def _chain(directory: Path, record: dict[str, Any]) -> Iterator[str]:
  stage, fingerprint = record["stage"], record["fingerprint"]
  if directory.name != base.stage_dir(directory.parent, stage, fingerprint).name:
    yield f"{directory}: the record in it is of {stage}-{fingerprint[:8]}; was it renamed?"
  kept = 0
  for entry in record["upstream"]:
    before = upstream_dir(directory, entry)
    if not (before / base.RECORD).is_file():
      yield f"{directory}: made from {entry['stage']}-{entry['fingerprint'][:8]}, now missing"
      return
    found = base.read_stage(before)
    kept += found["kept"]
    if found["fingerprint"] != entry["fingerprint"]:
      yield (
        f"{directory}: made from {entry['stage']} {entry['fingerprint'][:12]}…, but {before} is"
        f" {found['fingerprint'][:12]}… now; run {stage} again"
      )
  limit = record.get("limit") or (record.get("config") or {}).get("limit")
  if record["upstream"] and (record["in"] > kept or (record["in"] < kept and not limit)):
    yield (
      f"{directory}: {record['in']:,} documents went in, but the stage before kept {kept:,}; run"
      f" {stage} again"
    )


def _books(directory: Path, record: dict[str, Any]) -> Iterator[str]:
  ops = record["ops"]
  if not ops:
    yield f"{directory}: {base.RECORD} holds no books of its ops; run the stage again"
  for op in [*ops, {**record, "name": "total"}]:
    if op["in"] != op["kept"] + op["dropped"] + op["errored"]:
      yield (
        f"{directory}: {op['name']}: {op['in']:,} in is not {op['kept']:,} kept +"
        f" {op['dropped']:,} dropped + {op['errored']:,} errored"
      )
    reasons = op.get("reasons")
    if reasons and sum(reasons.values()) != op["dropped"]:
      yield (
        f"{directory}: {op['name']}: the reasons add up to {sum(reasons.values()):,}, dropped are"
        f" {op['dropped']:,}"
      )
  for op, following in itertools.pairwise(ops):
    if op["kept"] != following["in"]:
      yield (
        f"{directory}: {op['name']} kept {op['kept']:,} documents, but {following['name']} got"
        f" {following['in']:,}"
      )
  if ops and ops[0]["in"] != record["in"]:
    yield f"{directory}: {record['in']:,} in, but {ops[0]['name']} got {ops[0]['in']:,}"
  if ops and ops[-1]["kept"] != record["kept"]:
    yield f"{directory}: {record['kept']:,} kept, but {ops[-1]['name']} kept {ops[-1]['kept']:,}"
  for key in ("by_source", "by_language"):
    groups = record.get(key) or {}
    if groups and sum(g["kept"] for g in groups.values()) != record["kept"]:
      total = sum(g["kept"] for g in groups.values())
      yield f"{directory}: {key} adds up to {total:,} documents kept, not {record['kept']:,}"
  counts = [("documents", record["kept"])]
  counts += [(f"removed/{op['name']}", op["dropped"] + op["errored"]) for op in ops]
  for folder, expected in counts:
    if folder != "documents" and not (directory / folder).is_dir():
      continue
    lines = 0
    for file in sorted((directory / folder).rglob("*.jsonl.gz")):
      try:
        with gzip.open(file, "rb") as stream:
          lines += sum(1 for _ in stream)
      except (OSError, EOFError, zlib.error) as error:
        yield f"{file}: {error}; run the stage again"
    if lines != expected:
      yield f"{directory / folder}: {lines:,} documents, {base.RECORD} says {expected:,}"


# ---- a dataset --------------------------------------------------------------------------------


def _dataset(root: Path, good: list[str]) -> Iterator[str]:
  try:
    manifest = Manifest.load(root)
  except UserError as error:
    yield str(error)
    return
  for name, split in manifest.splits.items():
    problems: list[str] = []
    for shard in split.shards:
      # A manifest of one shard, so that every bad shard is named and not the first alone.
      alone = dataclasses.replace(manifest, splits={name: Split.of([shard])})
      try:
        alone.verify(root, full=True)
        problems += _ids(root, manifest, shard.file, shard.docs)
      except UserError as error:
        problems.append(str(error))
    listed = {s.file for s in split.shards} | {s.index_file for s in split.shards}
    for file in sorted((root / name).glob("shard-*")):
      relative = str(file.relative_to(root))
      if relative not in listed and not re.fullmatch(r"shard-\d+\.ids\.jsonl\.gz", file.name):
        problems.append(f"{file}: not listed in {FILE_NAME}; remove it")
    yield from problems
    if not problems:
      good.append(
        f"{root}: {name}: {len(split.shards)} shards, {split.docs:,} documents,"
        f" {split.tokens:,} tokens: good"
      )
  if not manifest.splits:
    yield f"{root / FILE_NAME}: names no split; copy the dataset again"
  yield from _listing(root, manifest)
  if (root / "tokenizer").is_dir():
    from jaxlm.tokenizers.base import load_tokenizer

    try:
      found = load_tokenizer(root / "tokenizer").fingerprint()
      if found != manifest.tokenizer_sha256:
        yield f"{root / 'tokenizer'}: not the tokenizer that made the ids; copy the dataset again"
    except UserError as error:
      yield str(error)


def _listing(root: Path, manifest: Manifest) -> Iterator[str]:
  """The list of raw files is the one that was written."""
  raw = manifest.source.get("raw")
  if not isinstance(raw, dict) or not raw.get("listing"):
    return
  file = root / str(raw["listing"])
  if not file.is_file():
    yield f"{file}: missing; copy the dataset again"
  elif base.file_sha256(file) != raw.get("sha256"):
    yield f"{file}: its bytes changed; copy the dataset again"


def _ids(root: Path, manifest: Manifest, name: str, docs: int) -> Iterator[str]:
  """Ids are below vocab_size, EOS ends each document and stands nowhere else."""
  import numpy as np

  file = root / name
  if file.stat().st_size:
    ids = np.memmap(file, dtype=manifest.dtype, mode="r")
    ends = np.memmap(file.with_suffix(".idx"), dtype="<u8", mode="r")
    count, block = 0, (1 << 24) // ITEM_SIZES[manifest.dtype]
    for begin in range(0, ids.size, block):
      part = ids[begin : begin + block]
      count += int((part == manifest.eos_id).sum())
      if int(part.max()) >= manifest.vocab_size:
        yield f"{file}: holds id {int(part.max())}, vocab_size is {manifest.vocab_size}"
        break
    else:
      at_ends = sum(
        int((ids[ends[i : i + block].astype(np.int64) - 1] == manifest.eos_id).sum())
        for i in range(0, ends.size, block)
      )
      if not count == at_ends == docs:
        yield (
          f"{file}: {count:,} EOS, {at_ends:,} of them where a document ends; the manifest says"
          f" {docs:,} documents"
        )
  listing = sidecar(root, name)
  if listing.is_file():
    try:
      with gzip.open(listing, "rb") as lines:
        found = sum(1 for _ in lines)
    except (OSError, EOFError, zlib.error) as error:
      yield f"{listing}: {error}; make the dataset again"
    else:
      if found != docs:
        yield f"{listing}: lists {found:,} documents, the manifest says {docs:,}"

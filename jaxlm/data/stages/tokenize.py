"""The stage tokenize: documents of a finished stage to shards, globally shuffled, with a manifest.

Memory is bounded by config.bucket_bytes for each worker, whatever the corpus; a killed run goes on
at its tasks; the bytes depend on documents, settings and seed, not on the number of workers.
"""

import datetime
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.data.manifest import FILE_NAME, Manifest, Split, dtype_for
from jaxlm.data.prep import provenance
from jaxlm.data.prep.baseline import compressed_sizes
from jaxlm.data.prep.config import TokenizeConfig
from jaxlm.data.prep.runs import Done, total
from jaxlm.data.prep.tokenise import encode_all, write_dataset
from jaxlm.data.stages import base
from jaxlm.data.stages.document_units import document_units, sample_texts
from jaxlm.data.stages.runner import as_json, begin, need_documents
from jaxlm.errors import UserError
from jaxlm.tokenizers.accelerate import SAMPLE_DOCUMENTS, accelerate
from jaxlm.tokenizers.base import Tokenizer, load_tokenizer
from jaxlm.tokenizers.config import Accelerator

OPS_VERSION = 1
DATASETS = "datasets.json"  # of split_by_source: {source: its directory}
_HASHED_BYTES = 1 << 34  # of raw files that are read again for their hashes, if `collect` has none
Say = Callable[[str], None]


def identity(config: TokenizeConfig, upstream: str, seed: int, tokenizer: str) -> dict[str, Any]:
  """What the fingerprint is made of: fingerprints of the stage before and of the tokenizer too."""
  return {
    "config.tokenize": as_json(config),
    "tokenizer": tokenizer,
    "config.seed": seed,
    "upstream": upstream,
    "op version": OPS_VERSION,
  }


def mark_of(directory: Path, config: TokenizeConfig) -> Path:
  """The file that is written last."""
  return directory / (DATASETS if config.split_by_source else FILE_NAME)


def run(
  upstream_dir: str | Path,
  output: str | Path,
  config: TokenizeConfig,
  tokenizer: str | Path,
  *,
  name: str = "dataset",
  eos: str | None = None,
  accelerator: Accelerator = Accelerator.AUTO,
  seed: int = 0,
  workers: int = 1,
  say: Say = print,
) -> Path:
  """Makes the stage from a finished one, or finds it made.

  Args:
    tokenizer: as for load_tokenizer, with eos. name: of the dataset.
    workers: processes; with 1, this one. say: told what goes on, and how far it is.

  Returns:
    The dataset's directory; with split_by_source the directory of the datasets.
  """
  config.validate("config.tokenize")
  upstream = base.read_stage(upstream_dir)
  reference = load_tokenizer(tokenizer, eos=eos)
  parts = identity(config, upstream["fingerprint"], seed, reference.fingerprint())
  found = base.fingerprint("tokenize", *parts.values())
  directory = base.stage_dir(output, "tokenize", found)
  if mark_of(directory, config).is_file():
    return directory
  need_documents(upstream_dir, upstream)
  begin(directory, found, 1, parts)
  try:
    _make(
      upstream_dir, upstream, directory, config, reference, found, name, accelerator, seed, workers,
      say, _training_card(tokenizer),
    )  # fmt: skip
  except OSError as error:
    raise UserError(
      f"{error.filename or directory}: {error.strerror or error}; nothing half-written counts: make"
      " room, then run the stage again"
    ) from error
  return directory


def _make(
  upstream_dir: str | Path,
  upstream: dict[str, Any],
  directory: Path,
  config: TokenizeConfig,
  tokenizer: Tokenizer,
  found: str,
  name: str,
  accelerator: Accelerator,
  seed: int,
  workers: int,
  say: Say,
  card: dict[str, Any] | None,
) -> None:
  units = document_units(upstream_dir)
  encoder, accelerated = accelerate(
    tokenizer, accelerator, lambda: sample_texts(units, SAMPLE_DOCUMENTS, seed), say
  )
  work = directory / "work.tmp"
  done = encode_all(
    units,
    encoder,
    work,
    seed=seed,
    bucket_bytes=config.bucket_bytes,
    workers=workers,
    on_bytes=Every(say, "tokenize", upstream.get("bytes_out") or 0),
  )
  books = total(list(done))
  read = books.docs + sum(books.skipped.values())
  if read != upstream["kept"]:
    raise UserError(
      f"{upstream_dir}: {read} documents were read, but stage.json says {upstream['kept']}: a file"
      " is damaged; run that stage again"
    )
  if not books.docs:
    raise UserError(f"{upstream_dir}: all documents are empty; check that stage")
  say(f"tokenize: {books.docs:,} documents, {books.tokens:,} tokens; shuffling into shards")
  source = {
    "fingerprint": found,
    "config": as_json(config),
    "seed": seed,
    "tokenizer_training": card,
    "accelerator": {**accelerated, "compared_whole": books.compared},
    "counts": {"in": read, "encoded": books.docs, "skipped": books.skipped},
    "normalised": books.normalised,
    "versions": provenance.package_versions(),
  }
  datasets: dict[str, tuple[Path, frozenset[str] | None]] = {"": (directory, None)}
  if config.split_by_source:
    datasets = {s: (directory / _folder(s), frozenset((s,))) for s in books.sources}
    if len({where for where, _ in datasets.values()}) != len(datasets):
      raise UserError(f"sources {sorted(datasets)}: names too alike for folders; rename one")
  for label, (root, wanted) in datasets.items():
    if (root / FILE_NAME).is_file():
      continue
    shards = write_dataset(
      done,
      work,
      root,
      eos_id=tokenizer.eos_id,
      vocab_size=tokenizer.vocab_size,
      bucket_bytes=config.bucket_bytes,
      shard_tokens=config.shard_tokens,
      sources=wanted,
      heldout_fraction=config.heldout_fraction,
      heldout_max_bytes=config.heldout_max_bytes,
      workers=workers,
    )
    tokenizer.save(root / "tokenizer")
    splits = {split: Split.of(part) for split, part in shards.items()}
    manifest = Manifest(
      name=f"{name}-{label}" if label else name,
      dtype=dtype_for(tokenizer.vocab_size),
      vocab_size=tokenizer.vocab_size,
      eos_id=tokenizer.eos_id,
      tokenizer_sha256=tokenizer.fingerprint(),
      shuffle_seed=seed,
      splits=splits,
      source={
        **source,
        **_shares(done, label if config.split_by_source else None),
        "upstream": provenance.chain_of(upstream_dir, root),
        "raw": _raw(upstream_dir, root),
      },
      created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      jaxlm_version=jaxlm.__version__,
    )
    if not splits["heldout"].docs:
      say(f"{root}: too few documents to hold one out; raise tokenize.heldout_fraction")
      del splits["heldout"]
    elif config.baselines:
      splits["heldout"].baselines = compressed_sizes(_heldout(root, manifest, tokenizer))
    manifest.save(root)
  shutil.rmtree(work, ignore_errors=True)
  if config.split_by_source:
    fresh = directory / f".{DATASETS}"
    fresh.write_text(json.dumps({s: str(w.name) for s, (w, _) in datasets.items()}, indent=2))
    fresh.replace(directory / DATASETS)


class Every:
  """Says how far it is, at each tenth."""

  def __init__(self, say: Say, what: str, whole: int):
    self._say, self._what, self._whole, self._told = say, what, whole, 0

  def __call__(self, done: int) -> None:
    tenth = 10 * done // self._whole if self._whole else 0
    if tenth > self._told:
      self._told = tenth
      self._say(f"{self._what}: {done / 1e6:,.1f} of {self._whole / 1e6:,.1f} MB")


def _shares(done: list[Done], only: str | None) -> dict[str, dict[str, dict[str, int]]]:
  """by_source, by_language, licences: documents, bytes and tokens (without EOS) of each.

  only: the source that is meant, or None for all.
  """
  groups = {"source": "by_source", "language": "by_language", "licence": "licences"}
  out: dict[str, dict[str, dict[str, int]]] = {}
  for name, values in total(list(done)).shares.items():
    kind, source, *value = name.split("\t")
    if only is not None and source != (only or "unknown"):
      continue
    entry = out.setdefault(groups[kind], {}).setdefault((value or [source])[0], {})
    for key, count in zip(("documents", "bytes", "tokens"), values):
      entry[key] = entry.get(key, 0) + count
  return out


def _raw(upstream_dir: str | Path, root: Path) -> dict[str, Any]:
  """Hashes of the raw files: as `collect` recorded them, else of the files its sources name."""
  from jaxlm.data.stages.chain import chain

  record = chain(upstream_dir)[0][1]
  if "raw" in record:
    return {"recorded_by": record["stage"]}
  files = provenance.raw_files(provenance.raw_paths(record))
  size = sum(file.stat().st_size for file in files)
  if size > _HASHED_BYTES:
    return {"files": len(files), "bytes": size, "sha256": None}
  return provenance.write_listing(map(str, files), root)


def _heldout(root: Path, manifest: Manifest, tokenizer: Tokenizer) -> Iterator[bytes]:
  from jaxlm.data.shards import TokenShards

  shards = TokenShards(root, "heldout", manifest)
  for i in range(shards.num_docs):
    yield tokenizer.decode(shards.document(i)[:-1]).encode()


def _training_card(tokenizer: str | Path) -> dict[str, Any] | None:
  """Which training made the tokenizer, if the verb train_tokenizer did."""
  from jaxlm.data.stages.train_tokenizer import CARD_FILE

  file = Path(tokenizer).parent / CARD_FILE
  if not file.is_file():
    return None
  values = json.loads(file.read_text(encoding="utf-8"))
  return {"fingerprint": values["fingerprint"], "sha256": base.file_sha256(file)}


def _folder(source: str) -> str:
  return re.sub(r"[^A-Za-z0-9._-]+", "_", source).strip(".") or "unnamed"

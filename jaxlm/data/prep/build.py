"""`prepare`: from a source of text to a tokenised dataset on disk, whole or not at all."""

import dataclasses
import datetime
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm import configlib
from jaxlm.data.manifest import FILE_NAME, Manifest, Split, dtype_for
from jaxlm.data.prep.baseline import compressed_sizes
from jaxlm.data.prep.config import PrepareConfig, TokenizerKind
from jaxlm.data.prep.documents import Corpus, Counts, Document, Spool
from jaxlm.data.prep.output import remove_abandoned, replacing
from jaxlm.data.prep.provenance import package_versions, upstream_stages, write_listing
from jaxlm.data.prep.runs import HELDOUT as HELDOUT_SPLIT
from jaxlm.data.prep.runs import TRAIN as TRAIN_SPLIT
from jaxlm.data.prep.split import Collected, Splits, collect, split
from jaxlm.data.prep.spooled import SharedSpool, units
from jaxlm.data.prep.tokenise import encode_all, write_dataset
from jaxlm.errors import UserError
from jaxlm.tokenizers.accelerate import SAMPLE_CHARS, SAMPLE_DOCUMENTS, accelerate
from jaxlm.tokenizers.base import Tokenizer, load_tokenizer

REPORT = "report.json"
TRAIN, HELDOUT = "train", "heldout"
_NAMED = ("undecodable", "unreadable")  # problems whose files are named in a warning
# Where the dataset lies and how errors are met; not what is in it.
_NOT_CONTENT = ("output", "overwrite", "strict", "workers")
BUCKET_BYTES = 1 << 26  # of text that the shuffle holds in memory


@dataclasses.dataclass(frozen=True)
class Progress:
  """stage: what is being done. done, total: bytes of text, where known. message: a line to show."""

  stage: str
  done: int = 0
  total: int | None = None
  message: str = ""


OnProgress = Callable[[Progress], None]


def prepare(config: PrepareConfig, on_progress: OnProgress = lambda _: None) -> Manifest:
  """Makes the dataset `config.output`, or returns the one there if config and source are the same.

  Read → drop duplicates → hold out documents → train the tokenizer on the rest → write shards →
  compress the held-out documents for comparison. All of it happens in a directory beside the
  output that takes its name at the end; an interruption leaves the output as it was.

  Args:
    on_progress: told what goes on.

  Raises:
    UserError: bad config or source; the output exists with another config or source, or is
      something else.
  """
  config.validate()
  # The folder itself and not a link to it: the finished directory is renamed to its place.
  output = Path(config.output).expanduser().resolve()
  on_progress(Progress("scan", message=f"source: {_describe(config)}"))
  corpus = config.source.build(strict=config.strict, exclude=str(output))
  fingerprint = _fingerprint(config, corpus)
  remove_abandoned(output)
  if (existing := _existing(config, output, fingerprint)) is not None:
    on_progress(
      Progress("reuse", message=f"{config.output}: same config and source; used as it is")
    )
    return existing
  try:
    with replacing(output) as directory:
      return _build(config, corpus, fingerprint, directory, on_progress)
  except OSError as e:
    raise UserError(f"{e.filename or config.output}: {e.strerror or e}") from e


def _build(
  config: PrepareConfig,
  corpus: Corpus,
  fingerprint: str,
  directory: Path,
  on_progress: OnProgress,
) -> Manifest:
  spool_file = directory / "documents.tmp"
  with SharedSpool(spool_file) as spool:
    collected = collect(_watched(corpus.documents(), on_progress), spool)
    for reason in _NAMED:
      if number := corpus.counts.skipped[reason]:
        names = ", ".join(corpus.counts.named[reason][:5]) + ", …" * (number > 5)
        on_progress(Progress("read", message=f"warning: {number} {reason}, skipped: {names}"))
    on_progress(Progress("read", message=_read_line(corpus.counts, collected)))
    splits = split(
      spool, collected.digests, config.heldout_fraction, config.heldout_max_bytes, config.seed
    )
    if splits.cut_document:
      on_progress(
        Progress("split", message="few documents: the end of the longest one is held out")
      )
    tokenizer = _tokenizer(config, spool, splits.train, on_progress)
    tokenizer.save(directory / "tokenizer")
    encoder, accelerator = _accelerated(config, tokenizer, spool, splits.train, on_progress)
    total = sum(spool.size(i) for i in range(len(spool)))
    work = directory / "work.tmp"
    done = encode_all(
      units(spool, ((TRAIN_SPLIT, splits.train), (HELDOUT_SPLIT, splits.heldout))),
      encoder,
      work,
      seed=config.seed,
      bucket_bytes=BUCKET_BYTES,
      workers=config.workers,
      on_bytes=lambda size: on_progress(Progress("tokenise", size, total)),
    )
    shards = write_dataset(
      done,
      work,
      directory,
      eos_id=tokenizer.eos_id,
      vocab_size=tokenizer.vocab_size,
      bucket_bytes=BUCKET_BYTES,
      shard_tokens=config.shard_tokens,
      workers=config.workers,
    )
    shutil.rmtree(work)
    parts = {name: Split.of(shards[name]) for name in (TRAIN, HELDOUT)}
    on_progress(Progress("compress", message="gzip and xz on the held-out documents"))
    parts[HELDOUT].baselines = compressed_sizes(map(spool.read, splits.heldout))
  spool_file.unlink()
  report = _report(corpus.counts, collected, splits, parts)
  paths = getattr(config.source, "paths", ())
  output = Path(config.output).expanduser().resolve()
  manifest = Manifest(
    name=config.name,
    dtype=dtype_for(tokenizer.vocab_size),
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
    shuffle_seed=config.seed,
    splits=parts,
    source={
      "fingerprint": fingerprint,
      "config": _content_config(config),
      **{k: report[k] for k in ("files_read", "skipped", "duplicates", "cut_document")},
      "raw": write_listing(paths, directory, output),
      "upstream": upstream_stages(paths, output),
      "accelerator": accelerator,
      "versions": package_versions(),
    },
    created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    jaxlm_version=jaxlm.__version__,
  )
  (directory / REPORT).write_text(
    json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
  )
  manifest.save(directory)
  return manifest


def _tokenizer(
  config: PrepareConfig, spool: Spool, train: list[int], on_progress: OnProgress
) -> Tokenizer:
  wanted = config.tokenizer
  if wanted.path is not None:
    return load_tokenizer(wanted.path, eos=wanted.eos)
  if wanted.kind is TokenizerKind.BYTE:
    from jaxlm.tokenizers.byte import ByteTokenizer

    return ByteTokenizer()
  from jaxlm.data.prep.train_tokenizer import sample, train_any

  texts = sample(spool.read, train, wanted.max_train_bytes, config.seed)
  size = sum(map(len, texts))
  on_progress(
    Progress("train tokenizer", message=f"training a tokenizer on {size / 1e6:.1f} M characters")
  )
  return train_any(
    texts,
    wanted,
    wanted.vocab_size,
    lambda text: on_progress(Progress("train tokenizer", message=text)),
  )


def _accelerated(
  config: PrepareConfig,
  tokenizer: Tokenizer,
  spool: Spool,
  train: list[int],
  on_progress: OnProgress,
) -> tuple[Tokenizer, dict[str, Any]]:
  """What encodes: the tokenizer, or an encoder that gave its ids on a sample of the documents."""
  chosen = random.Random(config.seed).sample(train, min(len(train), SAMPLE_DOCUMENTS))

  def documents() -> Iterator[str]:
    for i in chosen:
      yield spool.read(i).decode()[:SAMPLE_CHARS]

  return accelerate(
    tokenizer,
    config.tokenizer.accelerator,
    documents,
    lambda text: on_progress(Progress("tokenise", message=text)),
  )


def _watched(documents: Iterator[Document], on_progress: OnProgress) -> Iterator[Document]:
  """Reports the bytes read, about every 256 kB."""
  done = told = 0
  for document in documents:
    done += len(document.text)
    if done - told >= 1 << 18:
      told = done
      on_progress(Progress("read", done))
    yield document


def _read_line(counts: Counts, collected: Collected) -> str:
  parts = [f"{counts.files_read:,} files read"]
  parts += [f"{number:,} {reason}" for reason, number in sorted(counts.skipped.items())]
  if collected.duplicates:
    parts.append(f"{collected.duplicates:,} duplicates")
  return parts[0] + ("; dropped: " + ", ".join(parts[1:]) if parts[1:] else "")


def _report(
  counts: Counts, collected: Collected, splits: Splits, parts: dict[str, Split]
) -> dict[str, Any]:
  return {
    "files_read": counts.files_read,
    "skipped": dict(sorted(counts.skipped.items())),
    "skipped_names": {k: counts.named[k] for k in sorted(counts.named)},
    "unknown_extensions": dict(counts.unknown_extensions.most_common()),
    "duplicates": collected.duplicates,
    "duplicate_bytes": collected.duplicate_bytes,
    "cut_document": splits.cut_document,
    "splits": {
      name: {
        "docs": part.docs,
        "bytes": part.bytes,
        "tokens": part.tokens,
        "bytes_per_token": part.bytes / part.tokens,
        **{
          f"{baseline}, bits per byte": 8 * size / part.bytes
          for baseline, size in part.baselines.items()
        },
      }
      for name, part in parts.items()
    },
  }


# ---- the output directory ---------------------------------------------------------------------


def _describe(config: PrepareConfig) -> str:
  paths = getattr(config.source, "paths", None)
  return ", ".join(paths) if paths else type(config.source).__name__.removesuffix("SourceConfig")


def _content_config(config: PrepareConfig) -> dict[str, Any]:
  values = configlib.to_dict(config)
  values = {k: v for k, v in values.items() if k not in _NOT_CONTENT}
  # An accelerator gives the same ids.
  values["tokenizer"] = {k: v for k, v in values["tokenizer"].items() if k != "accelerator"}
  return values


def _fingerprint(config: PrepareConfig, corpus: Corpus) -> str:
  """sha256 of what decides the dataset: config, source and, where one is given, tokenizer."""
  tokenizer = config.tokenizer.path
  values = {
    "config": _content_config(config),
    "source": corpus.fingerprint(),
    "tokenizer": None
    if tokenizer is None
    else load_tokenizer(tokenizer, eos=config.tokenizer.eos).fingerprint(),
  }
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _existing(config: PrepareConfig, output: Path, fingerprint: str) -> Manifest | None:
  """The dataset in `output` if it is the one wanted; None if there is none or it may be replaced.

  Raises:
    UserError: there is another dataset (without config.overwrite), or something else.
  """
  if not output.exists():
    return None
  if not output.is_dir():
    raise UserError(f"{config.output}: is a file; choose another --config.output")
  if not (output / FILE_NAME).exists():
    if any(output.iterdir()):
      # Never replaced, even with overwrite: it may be anybody's folder.
      raise UserError(
        f"{config.output}: exists and is not a dataset (no {FILE_NAME}); choose another"
        " --config.output"
      )
    return None
  remedy = "replace it with --config.overwrite=true, or choose another --config.output"
  try:
    manifest = Manifest.load(output)
    manifest.verify(output, full=False)
    load_tokenizer(output / "tokenizer")
  except UserError as e:
    if config.overwrite:
      return None
    raise UserError(f"{config.output}: holds a damaged dataset ({e}); {remedy}") from None
  if manifest.source.get("fingerprint") == fingerprint:
    return manifest
  if config.overwrite:
    return None
  changes = configlib.diff(manifest.source.get("config", {}), _content_config(config))
  what = "; ".join(changes[:3]) if changes else "the files of the source changed"
  raise UserError(f"{config.output}: holds another dataset ({what}); {remedy}")

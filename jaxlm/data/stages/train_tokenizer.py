"""The verb train_tokenizer: a sweep of vocabulary sizes on a sample of a finished stage.

    OUTPUT/train_tokenizer-<fingerprint>/
      card.json           what it was trained on and how, written last
      sweep.json .svg .txt   bytes per token by language and source, speed, fertility, round trips
      sizes/<n>/          the tokenizer of each size
      tokenizer/          the one that was chosen

BPE is trained once, at the largest size: its merges are found one after the other, so a smaller
vocabulary is its beginning. Where that is not exact (unigram; more rare characters than there is
room for), each size is trained.
"""

import datetime
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.data.prep import provenance
from jaxlm.data.prep.config import TokenizerKind, TokenizerModel, TokenizerTrainConfig
from jaxlm.data.prep.mixture_sample import Sample, take
from jaxlm.data.stages import base
from jaxlm.data.stages.document_units import document_units
from jaxlm.data.stages.runner import as_json, begin, need_documents
from jaxlm.data.stages.tokenizer_sweep import draw, measure, table
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer

OPS_VERSION = 1
CARD_FILE = "card.json"
Say = Callable[[str], None]


def identity(config: TokenizerTrainConfig, upstream: str, seed: int) -> dict[str, Any]:
  """What the fingerprint is made of. upstream: the fingerprint of the stage before."""
  settings = {k: v for k, v in as_json(config).items() if k not in ("accelerator", "path", "eos")}
  return {
    "config.tokenizer": settings,
    "config.seed": seed,
    "upstream": upstream,
    "op version": OPS_VERSION,
  }


def run(
  upstream_dir: str | Path,
  output: str | Path,
  config: TokenizerTrainConfig,
  *,
  seed: int = 0,
  say: Say = print,
) -> Path:
  """Trains and compares, or finds it done.

  Returns:
    The directory of the chosen tokenizer, for `tokenize`; config.path where that is set.
  """
  config.validate("config.tokenizer")
  if config.path is not None:
    return Path(config.path)
  upstream = base.read_stage(upstream_dir)
  parts = identity(config, upstream["fingerprint"], seed)
  found = base.fingerprint("train_tokenizer", *parts.values())
  directory = base.stage_dir(output, "train_tokenizer", found)
  if (directory / CARD_FILE).is_file():
    return directory / "tokenizer"
  need_documents(upstream_dir, upstream)
  begin(directory, found, 1, parts)
  try:
    _make(upstream_dir, upstream, directory, config, parts["config.tokenizer"], found, seed, say)
  except OSError as error:
    raise UserError(
      f"{error.filename or directory}: {error.strerror or error}; make room, then run it again"
    ) from error
  return directory / "tokenizer"


def _make(
  upstream_dir: str | Path,
  upstream: dict[str, Any],
  directory: Path,
  config: TokenizerTrainConfig,
  settings: dict[str, Any],
  found: str,
  seed: int,
  say: Say,
) -> None:
  sample = take(
    document_units(upstream_dir),
    upstream.get("by_source") or (),
    weights=config.weights,
    max_bytes=config.max_train_bytes,
    heldout_bytes=config.heldout_bytes,
    seed=seed,
  )
  sources = ", ".join(f"{s or 'unnamed'} {b / 1e6:,.1f}" for s, b in sample.bytes.items())
  say(
    f"train_tokenizer: {sum(sample.bytes.values()) / 1e6:,.1f} MB to train on ({sources}),"
    f" {sum(len(r.text) for r in sample.heldout) / 1e6:,.1f} M characters to measure on"
  )
  for source, share in sample.short().items():
    say(f"warning: source {source} has {share:.0%} of the text that tokenizer.weights asks for")
  rows = []
  for size, tokenizer, seconds, how in _sizes(sample, config, say):
    folder = directory / "sizes" / str(size)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(folder)
    row = {"size": size, "vocab_size": tokenizer.vocab_size, "trained": how}
    rows.append({**row, "train_seconds": round(seconds, 2), **measure(tokenizer, sample.heldout)})
  rows.sort(key=lambda row: row["size"])
  chosen, why = _choose(rows, config)
  say(table(rows, chosen))
  say(f"chosen: {chosen:,} ({why})")
  (directory / "sweep.txt").write_text(table(rows, chosen) + "\n", encoding="utf-8")
  (directory / "sweep.svg").write_text(draw(rows, chosen), encoding="utf-8")
  _write_json(directory / "sweep.json", {"chosen": chosen, "why": why, "sizes": rows})
  shutil.rmtree(directory / "tokenizer", ignore_errors=True)
  shutil.copytree(directory / "sizes" / str(chosen), directory / "tokenizer")
  tokenizer_card = json.loads((directory / "tokenizer/tokenizer.json").read_text("utf-8"))
  _write_json(
    directory / CARD_FILE,
    {
      "fingerprint": found,
      "tokenizer": tokenizer_card,
      "chosen": chosen,
      "why": why,
      "config": settings,
      "seed": seed,
      "sample": {
        "sha256": sample.sha256,
        "bytes_by_source": sample.bytes,
        "short": sample.short(),
        "documents": len(sample.train),
        "files_read": sample.files[0],
        "files": sample.files[1],
        "heldout_documents": len(sample.heldout),
      },
      "upstream": provenance.chain_of(upstream_dir, directory),
      "versions": provenance.package_versions(),
      "jaxlm_version": jaxlm.__version__,
      "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    },
  )


def _sizes(
  sample: Sample, config: TokenizerTrainConfig, say: Say
) -> list[tuple[int, Tokenizer, float, str]]:
  """(size, tokenizer, seconds, how) of all sizes, the largest first."""
  from jaxlm.data.prep.train_tokenizer import train_any

  wide: Tokenizer | None = None
  out: list[tuple[int, Tokenizer, float, str]] = []
  for size in sorted(config.sizes(), reverse=True):
    started = time.perf_counter()
    tokenizer = _cut(wide, sample, config, size) if wide is not None else None
    how = "cut"
    if tokenizer is None:
      how = "trained"
      tokenizer = train_any(sample.train, config, size, say)
      wide = wide or tokenizer
    out.append((size, tokenizer, time.perf_counter() - started, how))
  return out


def _cut(
  wide: Tokenizer, sample: Sample, config: TokenizerTrainConfig, size: int
) -> Tokenizer | None:
  """The largest one cut to a smaller size, where that gives what training there would."""
  if config.model is not TokenizerModel.BPE or wide.vocab_size < size:
    return None
  if config.kind is TokenizerKind.HUGGINGFACE:
    from jaxlm.data.prep.train_huggingface import cut_huggingface
    from jaxlm.tokenizers.huggingface import HuggingFaceTokenizer

    assert isinstance(wide, HuggingFaceTokenizer)
    return cut_huggingface(wide, size)
  if config.kind is TokenizerKind.SENTENCEPIECE:
    from jaxlm.data.prep.train_tokenizer import cut_sentencepiece
    from jaxlm.tokenizers.sentencepiece import SentencePieceTokenizer

    assert isinstance(wide, SentencePieceTokenizer)
    return cut_sentencepiece(wide, sample.train, size, len(config.control_symbols))
  return None


def _choose(rows: list[dict[str, Any]], config: TokenizerTrainConfig) -> tuple[int, str]:
  """By hand, or the largest size at which doubling the vocabulary still saves min_gain."""
  if config.choose is not None:
    return config.choose, "by hand"
  if len(rows) == 1:
    return rows[0]["size"], "the only size"
  best = rows[0]
  for before, row in itertools.pairwise(rows):
    doublings = math.log2(row["vocab_size"] / before["vocab_size"]) or 1.0
    saved = 1 - before["bytes_per_token"] / row["bytes_per_token"] if row["tokens"] else 0.0
    gain = 1 - (1 - saved) ** (1 / doublings)
    row["gain_per_doubling"] = round(gain, 5)
    if gain < config.min_gain:
      break
    best = row
  return best["size"], f"the largest at which doubling saves {config.min_gain:.1%} of the tokens"


def _write_json(file: Path, values: dict[str, Any]) -> None:
  fresh = file.with_name(f".{file.name}.tmp")
  text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True)
  fresh.write_text(text + "\n", encoding="utf-8")
  fresh.replace(file)


def card(directory: str | Path) -> dict[str, Any]:
  """The card of a finished training. directory: as returned by `run`, or the one above."""
  for where in (Path(directory), Path(directory).parent):
    if (where / CARD_FILE).is_file():
      return json.loads((where / CARD_FILE).read_text(encoding="utf-8"))
  raise UserError(f"{directory}: no {CARD_FILE}: run python -m jaxlm.data train_tokenizer")

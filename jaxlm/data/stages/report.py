"""`report`: what every stage did to the documents, as one HTML file and the same numbers as JSON.

Every document is read once; memory holds counters and samples only.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from jaxlm.data.manifest import Manifest
from jaxlm.data.stages import base
from jaxlm.data.stages.card import render
from jaxlm.data.stages.chain import chain, upstream_dir
from jaxlm.data.stages.report_dataset import dataset_values, sweep
from jaxlm.data.stages.report_scan import UNKNOWN, Scan
from jaxlm.data.stages.report_tables import (
  flag_rates,
  language_shares,
  lengths,
  source_table,
  top,
)
from jaxlm.errors import UserError

Json = dict[str, Any]


def report(
  output: str | Path,
  *,
  dataset: str | Path | None = None,
  out: str | Path | None = None,
  tokens_planned: float | None = None,
  seq_len: int = 1024,
  seed: int = 0,
) -> tuple[Path, Path]:
  """Writes the card of the last finished stage and all before it.

  Args:
    output: the directory of the stages (of several runs the one written last), or one stage's.
    dataset: a tokenised dataset: adds tokens, packing and epochs, and says which stage is meant.
    out: the HTML file to write; the JSON goes beside it. None: <output>/report.html.
    tokens_planned: of the training, for the epochs. seq_len: of its rows.
    seed: of the examples.

  Returns:
    The HTML file and the JSON file.
  """
  values = collect(
    output, dataset=dataset, tokens_planned=tokens_planned, seq_len=seq_len, seed=seed
  )
  root = Path(output)
  if (root / base.RECORD).is_file():
    root = root.parent  # nothing is added to a stage's own directory
  page = Path(out) if out is not None else root / "report.html"
  if page.is_dir():
    page = page / "report.html"
  data = page.with_suffix(".json")
  try:
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(values), encoding="utf-8", errors="replace")
    data.write_text(
      json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace"
    )
  except OSError as error:
    raise UserError(f"{error.filename or page}: {error.strerror or error}; give --out") from None
  return page, data


# ---- numbers ----------------------------------------------------------------------------------


def collect(
  output: str | Path,
  *,
  dataset: str | Path | None = None,
  tokens_planned: float | None = None,
  seq_len: int = 1024,
  seed: int = 0,
) -> Json:
  """All numbers and examples of the report as JSON values."""
  output = Path(output) if dataset is None else _stage_of(dataset, Path(output))
  stages = chain(output)
  scans = [Scan(directory, record, seed) for directory, record in stages]
  first, end = scans[0], scans[-1]
  alone = len(scans) == 1
  # What came out of the first stage is the raw text; with one stage alone, all that it saw.
  before_lengths = first.lengths["kept"] + (first.lengths["removed"] if alone else Counter())
  before_domains = first.kept_domains.merged(first.removed_domains) if alone else first.kept_domains
  # The stage that knows the language of most documents: the one that identified them, if any did.
  spoken = max(scans, key=_spoken)
  spoken_whole = spoken is not first or alone
  before_languages = (
    spoken.kept_languages.merged(spoken.removed_languages)
    if spoken_whole
    else spoken.kept_languages
  )
  root = output.parent if (output / base.RECORD).is_file() else output
  named = [str(r["config"]["name"]) for _, r in stages if (r.get("config") or {}).get("name")]
  values: Json = {
    "name": named[-1] if named else root.resolve().name,
    "last_stage": end.record["stage"],
    "stages": [s.header() for s in scans],
    "seconds": sum(float(s.record.get("seconds") or 0) for s in scans),
    "documents_in": first.record["in"],
    "documents_kept": end.record["kept"],
    "bytes_in": first.record.get("bytes_in", 0),
    "bytes_kept": end.record.get("bytes_out", 0),
    "funnel": [s.funnel() for s in scans],
    "examples": [e for s in scans for e in s.examples()],
    "near_threshold": [e for s in scans for e in s.near_threshold()],
    "lengths": lengths(before_lengths, end.lengths["kept"]),
    "lengths_before": "all documents" if alone else f"kept by {first.record['stage']}",
    "languages": language_shares(before_languages, end.kept_languages),
    "languages_before": f"{'seen' if spoken_whole else 'kept'} by {spoken.record['stage']}",
    "domains_before": top(before_domains),
    "domains_after": top(end.kept_domains),
    "domains_exact": before_domains.exact and end.kept_domains.exact,
    "duplicates": [d for s in scans for d in s.duplicates()],
    "flags": flag_rates(scans),
    "contamination": [t for s in scans for t in s.record.get("tasks") or []],
    "over_removal": [r for s in scans for r in s.over_removal()],
    "sources": source_table(scans),
    "licences": top(end.licences, None),
    "years": first.record.get("by_year") or {},
    "models": {s.record["stage"]: s.record["models"] for s in scans if s.record.get("models")},
    "harm": {op: rows for s in scans for op, rows in (s.record.get("harm") or {}).items()},
    "dataset": None,
    "sweep": None,
  }
  if dataset is not None:
    by_source = {name: size for name, _, size in end.sources.top()}
    values["dataset"] = dataset_values(dataset, by_source, tokens_planned, seq_len)
    places = (root, Path(dataset).parent)
    tokenizer = values["dataset"]["tokenizer_sha256"]
    values["sweep"] = next((found for p in places if (found := sweep(p, tokenizer))), None)
  return values


def _stage_of(dataset: str | Path, output: Path) -> Path:
  """The stage that a dataset was made from; `output` where the dataset does not name one."""
  named = Manifest.load(dataset).source.get("upstream")
  if not named:
    return output
  last = named[-1]
  root = output.parent if (output / base.RECORD).is_file() else output
  beside = base.stage_dir(root, last["stage"], last["fingerprint"])
  for found in (beside, upstream_dir(dataset, last)):
    if (found / base.RECORD).is_file():
      return found
  raise UserError(
    f"{dataset}: made from {beside.name}, which is neither in {root} nor where the dataset's "
    "manifest says; give the config of its output"
  )


def _spoken(scan: Scan) -> int:
  """How many documents that a stage saw have a language."""
  counters = (scan.kept_languages, scan.removed_languages)
  return sum(n for one in counters for key, n, _ in one.top() if key != UNKNOWN)

"""`inspect`: one document through all stages; `preview`: rows as a training run will see them."""

import difflib
import json
from collections import Counter
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base
from jaxlm.data.stages.chain import chain, reason_of, removed_ops
from jaxlm.errors import UserError

DIFF_LINES = 40
LINE = 160
SHARES_OF = 2000  # rows that real mixture shares are counted over
PREVIEW = 400  # characters of a document's part in a row


def find(output: str | Path, doc_id: str) -> list[str]:
  """What every stage did with a document, as lines of text.

  Args:
    doc_id: its id, or its url.

  Raises:
    UserError: no stage has it.
  """
  lines: list[str] = []
  before: dict[str, Any] | None = None
  seen = False
  for directory, record in chain(output):
    name = record["stage"]
    op, document = _search(directory, record, doc_id)
    if document is None:
      if seen:
        lines.append(f"{name}: not here, neither kept nor removed (an error, or another input)")
      continue
    seen = True
    if op is None:
      passed = ", ".join(o["name"] for o in record.get("ops", []))
      lines.append(f"{name}: kept" + (f" (passed {passed})" if passed else ""))
    else:
      lines.append(f"{name}: removed by {op}: {reason_of(document, op)}")
    if before is None:
      metadata = json.dumps(document.get("metadata") or {}, ensure_ascii=False, sort_keys=True)
      lines += [f"  id {document['id']}", f"  {_cut(metadata, 4 * LINE)}"]
      lines += [f"  | {_cut(t)}" for t in document["text"].splitlines()[:10]]
    else:
      lines += _changes(before, document)
    if op is not None:
      return lines
    before = document
  if not seen:
    raise UserError(f"{output}: no stage has a document with the id or url {doc_id!r}")
  return lines


def _search(
  directory: Path, record: dict[str, Any], doc_id: str
) -> tuple[str | None, dict[str, Any] | None]:
  for op in [*removed_ops(directory, record), None]:
    for document in base.iter_documents(directory, op):
      url = (document.get("metadata") or {}).get("url")
      if str(document.get("id")) == doc_id or url == doc_id:
        return op, document
  return None, None


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
  lines: list[str] = []
  old, new = before.get("metadata") or {}, after.get("metadata") or {}
  for key in sorted({*old, *new}):
    if old.get(key) != new.get(key):
      lines.append(f"  {key}: {_cut(repr(old.get(key)), 60)} → {_cut(repr(new.get(key)), 60)}")
  if before["text"] == after["text"]:
    return [*lines, "  text unchanged"]
  sizes = f"{len(before['text']):,} → {len(after['text']):,} characters"
  # A diff of very long texts takes minutes: their beginnings are compared.
  left, right = (d["text"][:200_000].splitlines()[:2000] for d in (before, after))
  changed = list(difflib.unified_diff(left, right, "before", "after", lineterm="", n=1))
  lines.append(f"  text changed, {sizes}")
  lines += [f"  {_cut(line)}" for line in changed[:DIFF_LINES]]
  if len(changed) > DIFF_LINES:
    lines.append(f"  … and {len(changed) - DIFF_LINES} lines more")
  return lines


def _cut(text: str, limit: int = LINE) -> str:
  return text if len(text) <= limit else text[:limit] + " …"


def preview(where: str | Path, n: int = 4, seq_len: int | None = None) -> list[str]:
  """The first rows decoded, documents apart, and the real shares of the mixture, as lines.

  Args:
    where: a dataset, or a run's workdir or config.json.
    n: rows. seq_len: other than the config's.
  """
  from jaxlm.data.rows import batch_from_rows
  from jaxlm.data.stages.trace import Rows, open_config

  if n < 1:
    raise UserError(f"--n={n}: must be at least 1")
  config, _ = open_config(where)
  if seq_len is not None:
    config.seq_len = seq_len
  rows = Rows(config)
  lines = []
  for number in range(n):
    row = rows.row(number)
    eos = rows.sources[row.source].eos_id
    batch = batch_from_rows(
      row.ids[None],
      eos,
      attend_across_documents=config.attend_across_documents,
      predict_first_token=config.predict_first_token,
    )
    segments = int(batch["segment_ids"].max())
    weight = float(batch["loss_weights"].mean())
    lines.append(
      f"row {number}: source {row.source}, {segments} segments, loss on {weight:.1%} of tokens"
    )
    places = rows.places(row.source)
    for piece in row.pieces:
      assert places is not None
      name = str(piece.info.get("id") or f"{piece.shard}:{piece.document}")
      opens = "begins" if not piece.first else f"from its token {piece.first}"
      lines.append(f"  ── {name} {opens}: {piece.end - piece.begin} tokens")
      shown = _cut(places.decode(piece.ids), PREVIEW)
      lines += [f"  {line}" for line in shown.splitlines() or [""]]
      if eos is not None and piece.ids[-1] == eos:
        lines.append("  ── end of document")
  served: Counter[str] = Counter()
  for number in range(SHARES_OF):
    name = rows.mixture.locate(number)[0]
    served[name] += 1
  asked = rows.mixture.weights(0)
  lines.append(f"mixture over the first {SHARES_OF} rows:")
  for name in rows.mixture.names:
    rate = len(rows.sources[name])
    lines.append(
      f"  {name}: {served[name] / SHARES_OF:.2%} (asked for {asked[name]:.2%} at row 0),"
      f" {served[name] * config.seq_len:,} tokens, {served[name] / rate:.2f} epochs"
    )
  return lines

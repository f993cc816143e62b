"""`diff`: two runs of the stages beside each other."""

from pathlib import Path
from typing import Any

from jaxlm import configlib
from jaxlm.data.stages import base, charts
from jaxlm.data.stages.chain import HashSample, Reservoir, chain, clip, reason_of, removed_ops
from jaxlm.errors import UserError

SAMPLED = 10  # documents named of each side
Json = dict[str, Any]


def diff(
  a: str | Path, b: str | Path, *, out: str | Path | None = None, seed: int = 0
) -> list[str]:
  """Compares two outputs (or two stages' directories, each with all before it).

  Args:
    out: an HTML file to write as well. seed: of the documents that are named.

  Returns:
    The comparison as lines of text.
  """
  values = compare(a, b, seed=seed)
  if out is not None:
    page = Path(out)
    try:
      page.parent.mkdir(parents=True, exist_ok=True)
      page.write_text(render(values), encoding="utf-8", errors="replace")
    except OSError as error:
      raise UserError(f"{page}: {error.strerror or error}; give another --out") from None
  return lines_of(values)


def compare(a: str | Path, b: str | Path, *, seed: int = 0) -> Json:
  """All differences as JSON values."""
  chains = [chain(a), chain(b)]
  ops = [_ops(c) for c in chains]
  order = _merged(list(ops[0]), list(ops[1]))
  rows = []
  for key in order:
    left, right = ops[0].get(key), ops[1].get(key)
    state = "both" if left and right else "removed" if left else "added"
    rows.append({"op": key, "state": state, "a": left, "b": right})
  records = [{r["stage"]: r for _, r in c} for c in chains]
  stages = _merged(list(records[0]), list(records[1]))
  config = [
    f"{stage}: {line}"
    for stage in stages
    for line in configlib.diff(
      records[0].get(stage, {}).get("config", {}), records[1].get(stage, {}).get("config", {})
    )
  ]
  versions = [
    f"{stage}: {line}"
    for stage in stages
    for line in configlib.diff(
      records[0].get(stage, {}).get("versions", {}), records[1].get(stage, {}).get("versions", {})
    )
  ]
  only_a, only_b = _documents(chains, seed)
  return {
    "a": str(a),
    "b": str(b),
    "documents": [{"in": c[0][1]["in"], "kept": c[-1][1]["kept"]} for c in chains],
    "ops": rows,
    "config": config,
    "versions": versions,
    "only_a": only_a,
    "only_b": only_b,
  }


def _ops(stages: list[tuple[Path, Json]]) -> dict[str, Json]:
  found: dict[str, Json] = {}
  for _, record in stages:
    for op in record.get("ops", []):
      key, n = f"{record['stage']}/{op['name']}", 2
      while key in found:  # an op may be named twice
        key, n = f"{record['stage']}/{op['name']} ({n})", n + 1
      found[key] = op
  return found


def _merged(a: list[str], b: list[str]) -> list[str]:
  """Both lists' items, each list's order kept as far as the two agree."""
  out = list(a)
  for i, key in enumerate(b):
    if key not in a:
      before = next((k for k in reversed(b[:i]) if k in out), None)
      out.insert(out.index(before) + 1 if before is not None else 0, key)
  return out


def _documents(chains: list[list[tuple[Path, Json]]], seed: int) -> tuple[Json, Json]:
  """Documents kept at the end of one and not of the other; by id, of a sample if they are many."""
  ends = [c[-1][0] for c in chains]
  # Hashes decide which ids are looked at, so both sides look at the same ones.
  known = HashSample(1 << 19)
  for document in base.iter_documents(ends[0]):
    known.add(str(document.get("id")))
  left = {key: False for key in known.counts}
  samples = [Reservoir[str](SAMPLED, f"{seed}/{side}") for side in "ab"]
  for document in base.iter_documents(ends[1]):
    identity = str(document.get("id"))
    if identity in left:
      left[identity] = True
    elif known.covers(identity):
      samples[1].add(identity)
  for identity, found in left.items():
    if not found:
      samples[0].add(identity)
  results = []
  for sample, other in ((samples[0], chains[1]), (samples[1], chains[0])):
    fates = _fates(set(sample.items), other)
    results.append(
      {
        "count": sample.seen * known.scale,
        "exact": known.scale == 1,
        "documents": [
          {"id": i, "other": fates.get(i, "never there")} for i in sorted(sample.items)
        ],
      }
    )
  return results[0], results[1]


def _fates(wanted: set[str], stages: list[tuple[Path, Json]]) -> dict[str, str]:
  """Which op removed the documents, and why."""
  found: dict[str, str] = {}
  for directory, record in stages if wanted else []:
    for op in removed_ops(directory, record):
      for document in base.iter_documents(directory, op):
        identity = str(document.get("id"))
        if identity in wanted and identity not in found:
          reason = clip(reason_of(document, op), 80)
          found[identity] = f"removed by {record['stage']}/{op}: {reason}"
  return found


def _share(op: Json | None) -> str:
  return f"{op['kept'] / op['in']:.2%}" if op and op["in"] else "–"


def _change(a: Json | None, b: Json | None) -> str:
  if not (a and b and a["in"] and b["in"]):
    return ""
  points = 100 * (b["kept"] / b["in"] - a["kept"] / a["in"])
  return f"{points:+.2f}" if abs(points) >= 0.005 else "="


def _rows(values: Json) -> list[tuple[str, ...]]:
  marks = {"both": "", "removed": "only a", "added": "only b"}
  rows: list[tuple[str, ...]] = []
  for row in values["ops"]:
    a, b = row["a"], row["b"]
    rows.append(
      (
        row["op"],
        marks[row["state"]],
        f"{a['in']:,}" if a else "–",
        f"{a['kept']:,}" if a else "–",
        _share(a),
        f"{b['in']:,}" if b else "–",
        f"{b['kept']:,}" if b else "–",
        _share(b),
        _change(a, b),
      )
    )
  total_a, total_b = values["documents"]
  rows.append(
    (
      "all stages",
      "",
      f"{total_a['in']:,}",
      f"{total_a['kept']:,}",
      _share(total_a),
      f"{total_b['in']:,}",
      f"{total_b['kept']:,}",
      _share(total_b),
      _change(total_a, total_b),
    )
  )
  return rows


_HEAD = ("op", "", "a: in", "a: kept", "a: share", "b: in", "b: kept", "b: share", "points")


def lines_of(values: Json) -> list[str]:
  """`compare`'s values as text."""
  table = [_HEAD, *_rows(values)]
  widths = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
  lines = [f"a: {values['a']}", f"b: {values['b']}", ""]
  for row in table:
    cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
    lines.append("  ".join(cells).rstrip())
  for side in ("a", "b"):
    only = values[f"only_{side}"]
    about = "" if only["exact"] else "about "
    lines += ["", f"kept only in {side}: {about}{only['count']:,} documents"]
    lines += [f"  {d['id']}: {d['other']}" for d in only["documents"]]
  for name in ("config", "versions"):
    lines += ["", f"{name}: {'' if values[name] else 'the same'}".rstrip()]
    lines += [f"  {line}" for line in values[name]]
  return lines


def render(values: Json) -> str:
  """`compare`'s values as one HTML file."""
  h = charts.Html
  rows = []
  for cells, row in zip(_rows(values), [*values["ops"], None], strict=True):
    totals = (row["a"], row["b"]) if row else values["documents"]
    bars = charts.join(
      *(
        charts.bar([(kind, op["kept"])], op["in"], f"{side}: {op['kept']:,} of {op['in']:,}")
        for kind, side, op in zip(("before", "after"), "ab", totals)
        if op
      )
    )
    rows.append((*cells, bars))
  parts = [
    charts.section(
      "Funnels",
      charts.table((*_HEAD, "share kept"), rows, left=2),
      note="points: change of the share kept, from a to b. Bars: a grey, b blue.",
    )
  ]
  for side in ("a", "b"):
    only = values[f"only_{side}"]
    about = "" if only["exact"] else "about "
    parts.append(
      charts.section(
        f"Kept only in {side}",
        charts.table(
          ("document", "in the other run"),
          [(d["id"], d["other"]) for d in only["documents"]],
          left=2,
        ),
        note=f"{about}{only['count']:,} documents",
      )
    )
  for name in ("config", "versions"):
    text = "\n".join(values[name]) or "the same"
    parts.append(charts.section(name.capitalize(), h("<pre>"), text, h("</pre>")))
  head = charts.join(
    h("<header><h1>Two runs</h1><p class=note>a: "),
    values["a"],
    h("<br>b: "),
    values["b"],
    h("</p></header>"),
  )
  return charts.page("Two runs of the data stages", head, *parts)

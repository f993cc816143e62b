"""The page of `report`: its numbers as one HTML file."""

import json
from typing import Any

from jaxlm.data.stages import card_documents, charts
from jaxlm.data.stages.card_limits import MAX_REASONS, TOP

Json = dict[str, Any]


def render(values: Json) -> str:
  """The HTML of `collect`'s values."""
  parts = [
    _head(values),
    _funnel(values),
    _data_section(values),
    _sweep(values),
    _lengths_section(values),
  ]
  parts += [
    _languages(values),
    _domains(values),
    _source_section(values),
    _licences(values),
    _years(values),
  ]
  parts += [
    card_documents.duplicates(values),
    _contamination(values),
    card_documents.flags(values),
    card_documents.near(values),
    card_documents.examples(values),
    _made(values),
  ]
  return charts.page(f"{values['name']}: data report", *parts)


def _head(values: Json) -> charts.Html:
  h, n = charts.Html, charts.number
  tiles = [
    (n(values["documents_in"]), "documents in"),
    (n(values["documents_kept"]), "documents kept"),
    (charts.percent(values["documents_kept"], values["documents_in"]), "of the documents"),
    (charts.size(values["bytes_kept"]), "of text kept"),
    (_duration(values["seconds"]), "of work in all"),
  ]
  if values["dataset"]:
    tokens = sum(s["tokens"] for s in values["dataset"]["splits"].values())
    tiles.append((n(tokens), "tokens"))
  names = " → ".join(s["stage"] for s in values["stages"])
  return charts.join(
    h("<header><h1>"),
    values["name"],
    h('</h1><p class="note">'),
    f"{names}; finished {values['stages'][-1]['finished'][:16].replace('T', ' ')} UTC",
    h('</p></header><div class="tiles">'),
    *(
      charts.join(h("<div><b>"), v, h("</b><span>"), label, h("</span></div>"))
      for v, label in tiles
    ),
    h("</div>"),
  )


def _funnel(values: Json) -> charts.Html:
  h, n = charts.Html, charts.number
  whole = max((op["in"] for s in values["funnel"] for op in s["ops"]), default=0)
  parts: list[charts.Html] = []
  for stage in values["funnel"]:
    parts += [h("<h3>"), charts.text(stage["stage"]), h("</h3>")]
    for op in stage["ops"]:
      bars = [("kept", op["kept"]), ("dropped", op["dropped"]), ("errored", op["errored"])]
      facts = f"{op['in']:,} in · {op['kept']:,} kept · {op['dropped']:,} dropped"
      if op["errored"]:
        facts += f" · {op['errored']:,} errored"
      size = charts.join(
        charts.size(op.get("bytes_in", 0)), " → ", charts.size(op.get("bytes_kept", 0))
      )
      parts += [
        h('<div class="op"><div class="row"><b>'),
        charts.text(op["name"]),
        h("</b><span>"),
        charts.join(facts, " (", charts.percent(op["dropped"], op["in"]), ") · ", size),
        h("</span></div>"),
        charts.bar(bars, whole, f"{op['name']}: {facts}"),
      ]
      if op.get("reasons"):
        ranked = sorted(op["reasons"].items(), key=lambda item: -item[1])
        rows = [(r, n(c), charts.percent(c, op["dropped"])) for r, c in ranked[: 2 * MAX_REASONS]]
        parts.append(
          charts.details(
            "1 reason" if len(op["reasons"]) == 1 else f"{len(op['reasons'])} reasons",
            charts.table(("reason", "documents", "of dropped"), rows),
          )
        )
      more = {"error": op.get("errors") or {}, "count": op.get("extra") or {}}
      for what, found in more.items():
        # Counts by language or domain have tables of their own.
        counted = [(k, n(v)) for k, v in found.items() if ":" not in k]
        if counted:
          label = f"{len(counted)} kinds of errors" if what == "error" else "what it counted"
          parts.append(charts.details(label, charts.table((what, "number"), counted)))
      parts.append(h("</div>"))
  key = h(
    '<p class="note"><span class="key"><i class="kept"></i>kept </span>'
    '<span class="key"><i class="dropped"></i>dropped </span>'
    '<span class="key"><i class="errored"></i>errored</span></p>'
  )
  return charts.section("Funnel", key, *parts)


def _data_section(values: Json) -> charts.Html:
  data = values["dataset"]
  if not data:
    return charts.Html("")
  n = charts.number
  rows = [
    (
      name,
      n(s["tokens"]),
      n(s["documents"]),
      f"{s['bytes_per_token']:.2f}" if s["bytes_per_token"] else "–",
      n(s["rows"]),
      f"{s['documents_a_row']:.2f}" if s["documents_a_row"] else "–",
      n(s["documents_longer_than_a_row"]),
      charts.percent(s["tokens_beyond_a_row"], s["tokens"]),
    )
    for name, s in data["splits"].items()
  ]
  head: tuple[str, ...] = (
    "split",
    "tokens",
    "documents",
    "bytes a token",
    f"rows of {data['seq_len']}",
  )
  head += ("documents a row", "longer than a row", "tokens beyond")
  whole = sum(data["tokens_by_source"].values())
  sources = [
    (name, n(round(t)), charts.percent(t, whole), charts.bar([("after", t)], whole, name))
    for name, t in data["tokens_by_source"].items()
  ]
  plan = "epochs: give the tokens of the training (report --tokens_planned=N)"
  if data["epochs_planned"] is not None:
    plan = f"{data['tokens_planned']:,.0f} tokens planned: {data['epochs_planned']:.2f} epochs"
  exact = "" if data["tokens_by_source_exact"] else " (estimated from bytes)"
  return charts.section(
    "Tokens and packing",
    charts.table(head, rows),
    charts.Html("<h3>"),
    f"Training tokens by source{exact}",
    charts.Html("</h3>"),
    charts.table(("source", "tokens", "share", ""), sources),
    note=f"{plan}. Rows are cut from one stream of documents: nothing is padded.",
  )


def _sweep(values: Json) -> charts.Html:
  found = values["sweep"]
  if not found or not found.get("sizes"):
    return charts.Html("")
  sizes = found["sizes"]
  groups = [(kind, name) for kind in ("by_source", "by_language") for name in sizes[0][kind]]
  head = ("vocabulary", "bytes a token", "tokens a word", "MB/s", *(name for _, name in groups))
  rows = [
    (
      f"{one['size']:,}" + (" (chosen)" if one["size"] == found["chosen"] else ""),
      f"{one['bytes_per_token']:.3f}",
      f"{one['fertility']:.2f}",
      f"{one['encode_mb_per_s']:.1f}",
      *(f"{one[kind][name]:.2f}" if name in one[kind] else "–" for kind, name in groups),
    )
    for one in sizes
  ]
  note = f"on {sizes[0]['documents']:,} documents that no size was trained on; chosen: "
  return charts.section("Tokenizer", charts.table(head, rows), note=note + str(found.get("why")))


def _lengths_section(values: Json) -> charts.Html:
  rows = values["lengths"]
  series = [
    ("before", values["lengths_before"], [r["before"] for r in rows]),
    ("after", "kept at the end", [r["after"] for r in rows]),
  ]
  return charts.section(
    "Lengths",
    charts.histogram([f"{r['from']}" for r in rows], series),
    note="documents by number of characters; each column starts at the number below it",
  )


def _languages(values: Json) -> charts.Html:
  rows = values["languages"]
  before = sum(r["documents_before"] for r in rows)
  after = sum(r["documents_after"] for r in rows)
  cells = [
    (
      r["language"],
      charts.number(r["documents_before"]),
      charts.percent(r["documents_before"], before),
      charts.number(r["documents_after"]),
      charts.percent(r["documents_after"], after),
      charts.percent(r["documents_after"], r["documents_before"]),
      charts.join(
        charts.bar([("before", r["documents_before"])], before, "before"),
        charts.bar([("after", r["documents_after"])], after, "after"),
      ),
    )
    for r in rows
  ]
  head = ("language", "before", "share", "after", "share", "kept", "")
  return charts.section(
    "Languages", charts.table(head, cells), note=f"before: {values['languages_before']}"
  )


def _domains(values: Json) -> charts.Html:
  def listing(rows: list[Json]) -> charts.Html:
    top = max((r["documents"] for r in rows), default=0)
    return charts.table(
      ("domain", "documents", "text", ""),
      [
        (
          r["name"],
          charts.number(r["documents"]),
          charts.size(r["bytes"]),
          charts.bar([(kind, r["documents"])], top, r["name"]),
        )
        for r in rows
      ],
    )

  h = charts.Html
  kind = "before"
  left = listing(values["domains_before"])
  kind = "after"
  right = listing(values["domains_after"])
  note = "" if values["domains_exact"] else "very many domains: counts of rare ones are too low"
  return charts.section(
    "Top domains",
    h('<div class="pair"><div><h3>Before</h3>'),
    left,
    h("</div><div><h3>After</h3>"),
    right,
    h("</div></div>"),
    note=note,
  )


def _source_section(values: Json) -> charts.Html:
  rows = [
    (
      r["name"],
      "–" if r["documents_in"] is None else charts.number(r["documents_in"]),
      charts.number(r["documents_kept"]),
      charts.size(r["bytes_kept"]),
      charts.percent(r["bytes_kept"], values["bytes_kept"]),
    )
    for r in values["sources"]
  ]
  head = ("source", "documents in", "kept at the end", "text", "share of text")
  return charts.section("Sources", charts.table(head, rows))


def _licences(values: Json) -> charts.Html:
  whole = sum(r["bytes"] for r in values["licences"])
  rows = [
    (
      r["name"],
      charts.number(r["documents"]),
      charts.size(r["bytes"]),
      charts.percent(r["bytes"], whole),
    )
    for r in values["licences"][: 5 * TOP]
  ]
  return charts.section(
    "Licences",
    charts.table(("licence", "documents", "text", "share"), rows),
    note="of the documents kept at the end, as their sources state them",
  )


def _years(values: Json) -> charts.Html:
  totals: dict[str, int] = {}
  for years in values["years"].values():
    for year, documents in years.items():
      totals[year] = totals.get(year, 0) + documents
  known = sorted(year for year in totals if year.isdigit())
  if not known:
    return charts.Html("")
  series = [("before", "documents of the sources", [totals[year] for year in known])]
  return charts.section(
    "Years",
    charts.histogram(known, series),
    note=f"of the documents whose source says one; {totals.get('unknown', 0):,} without",
  )


def _contamination(values: Json) -> charts.Html:
  keys = ("items", "n_grams", "documents_hit", "n_gram_hits")
  rows = [
    (t.get("name", "?"), *(charts.number(t[k]) if k in t else "–" for k in keys))
    for t in values["contamination"]
  ]
  if not rows:
    return charts.Html("")
  head = ("evaluation set", "items", "n-grams", "documents hit", "n-grams hit")
  return charts.section("Overlap with evaluation sets", charts.table(head, rows))


def _made(values: Json) -> charts.Html:
  rows = [
    (
      s["stage"],
      s["finished"],
      charts.Html(f"<code>{charts.text(s['fingerprint'])}</code>"),
      _duration(s["seconds"] or 0),
    )
    for s in values["stages"]
  ]
  versions: dict[str, set[str]] = {}
  for stage in values["stages"]:
    for package, version in (stage["versions"] or {}).items():
      versions.setdefault(package, set()).add(str(version))
  configs = [
    charts.details(
      f"config of {s['stage']}",
      charts.Html("<pre>"),
      json.dumps(s["config"], indent=2, ensure_ascii=False),
      charts.Html("</pre>"),
    )
    for s in values["stages"]
  ]
  models = [
    (f"{stage}/{op}", file, charts.Html(f"<code>{charts.text(sha)}</code>"))
    for stage, found in values["models"].items()
    for op, files in found.items()
    for file, sha in files.items()
  ]
  if models:
    head = ("op", "model or list", "sha256")
    configs.insert(0, charts.details("models and lists", charts.table(head, models, left=3)))
  return charts.section(
    "How it was made",
    charts.table(("stage", "finished", "fingerprint", "time"), rows, left=3),
    charts.table(
      ("package", "version"),
      [(p, ", ".join(sorted(v))) for p, v in sorted(versions.items())],
      left=2,
    ),
    *configs,
  )


def _duration(seconds: float) -> str:
  if seconds < 100:
    return f"{seconds:.1f} s"
  return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

"""The parts of the report's page that show documents and pairs of them."""

from typing import Any

from jaxlm.data.stages import charts
from jaxlm.data.stages.card_limits import EXAMPLES

Json = dict[str, Any]


def duplicates(values: Json) -> charts.Html:
  h = charts.Html
  parts: list[charts.Html] = []
  for found in values["duplicates"]:
    about = "" if found["exact"] else "about "
    parts += [
      h("<h3>"),
      charts.text(found["op"]),
      h('</h3><p class="note">'),
      charts.text(
        f"{found['removed']:,} copies were removed from {about}{found['clusters']:,} clusters;"
        f" the largest has {found['largest']:,}"
      ),
      h("</p>"),
      charts.histogram(
        list(found["sizes"]), [("dropped", "clusters by size", list(found["sizes"].values()))]
      ),
    ]
    for i, pair in enumerate(found["pairs"]):
      kept = pair["kept"]
      if kept is None:
        left, right = charts.text(pair["removed"]["text"]), charts.text("(not among the documents)")
      else:
        left, right = charts.marked_pair(pair["removed"]["text"], kept["text"])
      parts.append(
        charts.details(
          f"{pair['removed']['id']} beside {pair['kept_id']}" + _similar(pair["removed"]),
          h('<div class="pair"><div><b>removed</b><pre>'),
          left,
          h("</pre></div><div><b>kept</b><pre>"),
          right,
          h("</pre></div></div>"),
          is_open=i == 0,
        )
      )
  if not parts:
    return h("")
  return charts.section("Duplicates", *parts)


def _similar(document: Json) -> str:
  jaccard = document["numbers"].get("jaccard")
  return "" if jaccard is None else f" (Jaccard {jaccard:.2f})"


def flags(values: Json) -> charts.Html:
  parts: list[charts.Html] = []
  rows = [
    (
      r["field"],
      f"{r['by']}: {r['value']}",
      charts.number(r["documents"]),
      charts.percent(r["flagged"], r["documents"]),
      charts.percent(r["flagged_removed"], r["flagged"]),
      charts.percent(r["removed"] - r["flagged_removed"], r["documents"] - r["flagged"]),
    )
    for r in values["flags"]
    if r["flagged"]
  ]
  if rows:
    head = ("field", "of", "documents", "flagged", "flagged removed", "others removed")
    parts.append(charts.table(head, rows, left=2))
  else:
    parts.append(charts.Html('<p class="note">no document was flagged</p>'))
  over = [
    (
      f"{r['stage']}/{r['op']}",
      f"{r['by']}: {r['value']}",
      charts.number(r["documents"]),
      charts.number(r["removed"]),
      charts.percent(r["removed"], r["documents"]),
      f"{r['times_average']:.1f} ×",
    )
    for r in values["over_removal"]
  ]
  harm = [
    (
      f"clean/{op}",
      f"{r['by']}: {r['value']}",
      charts.number(r["documents"]),
      charts.number(r["flagged"]),
      charts.percent(r["flagged"], r["documents"]),
      f"{r['times_average']:.1f} ×",
    )
    for op, found in values["harm"].items()
    for r in found
    if r["flagged"]
  ]
  if harm:
    harm_head = ("op", "of", "documents", "flagged", "share", "of the average")
    parts += [charts.Html("<h3>Flagged as harmful, by the op's own threshold</h3>")]
    parts += [charts.table(harm_head, harm, left=2)]
  over_head = ("op", "of", "documents", "removed", "share", "of the average")
  return charts.section(
    "Harm and personal data, over-removal",
    *parts,
    charts.Html("<h3>Removed more often than the average document</h3>"),
    charts.table(over_head, over, left=2),
    note="Fields of the metadata that begin with harm_ or pii_. A filter that removes one language"
    " or domain far more than others may judge its style and not its quality: look at examples.",
  )


def _document(document: Json, extra: str = "") -> charts.Html:
  h = charts.Html
  numbers = ", ".join(f"{k}={v:.4g}" for k, v in document["numbers"].items())
  facts = [extra, document["url"], f"{document['characters']:,} characters", numbers]
  return charts.join(
    h('<div class="row"><b>'),
    document["id"],
    h("</b><span>"),
    " · ".join(f for f in facts if f),
    h("</span></div><pre>"),
    document["text"],
    h("</pre>"),
  )


def near(values: Json) -> charts.Html:
  h = charts.Html
  parts = []
  for group in values["near_threshold"]:
    field = group["field"]
    parts.append(
      charts.details(
        f"{group['stage']}/{group['op']}: {group['reason']} ({field})",
        h('<div class="pair"><div><h3>just removed</h3>'),
        *(_document(d, f"{field}={d['value']:.4g}") for d in group["removed"]),
        h("</div><div><h3>just kept</h3>"),
        *(_document(d, f"{field}={d['value']:.4g}") for d in group["kept"]),
        h("</div></div>"),
      )
    )
  if not parts:
    return h("")
  return charts.section("Near a threshold", *parts)


def examples(values: Json) -> charts.Html:
  parts = [
    charts.details(
      f"{e['stage']}/{e['op']}: {e['reason']} ({e['count']:,})",
      *(_document(d) for d in e["documents"]),
    )
    for e in values["examples"]
  ]
  return charts.section(
    "Removed documents", *parts, note=f"{EXAMPLES} drawn at random of each op and reason"
  )

"""Small stage directories in the format of the stages, made by hand."""

import gzip
import json

from jaxlm.data.stages import base


def document(identity, text, **metadata):
  values = {"source": "web", "url": f"https://www.{metadata.pop('host', 'a.org')}/{identity}"}
  values |= {"licence": "CC-BY-4.0", "language": "en"} | metadata
  return {"id": identity, "text": text, "metadata": values}


def write_lines(file, documents):
  file.parent.mkdir(parents=True, exist_ok=True)
  with gzip.GzipFile(file, "wb", mtime=0) as out:
    for values in documents:
      out.write(json.dumps(values).encode() + b"\n")


def _size(documents):
  return sum(len(d["text"].encode()) for d in documents)


def write_stage(output, stage, kept, removed, *, upstream=(), config=None, **overrides):
  """removed: op → its removed documents, in order. upstream: directories. Returns the directory."""
  config = config or {}
  before = [base.read_stage(d) for d in upstream]
  fingerprint = base.fingerprint(stage, config, [r["fingerprint"] for r in before])
  directory = base.stage_dir(output, stage, fingerprint)
  half = -(-len(kept) // 2)
  write_lines(directory / "documents/00000.jsonl.gz", kept[:half])
  write_lines(directory / "documents/00001.jsonl.gz", kept[half:])
  everything = [*kept, *(d for documents in removed.values() for d in documents)]
  ops, left, left_bytes = [], len(everything), _size(everything)
  for name, documents in removed.items():
    if documents:
      write_lines(directory / f"removed/{name}/00000.jsonl.gz", documents)
    reasons = {}
    for d in documents:
      reason = d["metadata"]["reason"]
      reasons[reason] = reasons.get(reason, 0) + 1
    ops.append(
      {
        "name": name,
        "in": left,
        "kept": left - len(documents),
        "dropped": len(documents),
        "errored": 0,
        "reasons": reasons,
        "bytes_in": left_bytes,
        "bytes_kept": left_bytes - _size(documents),
        "seconds": 0.5,
      }
    )
    left, left_bytes = left - len(documents), left_bytes - _size(documents)
  sources = {}
  for d in everything:
    counts = sources.setdefault(d["metadata"]["source"], {"in": 0, "kept": 0})
    counts["in"] += 1
    counts["kept"] += d in kept
  record = {
    "stage": stage,
    "fingerprint": fingerprint,
    "upstream": [
      {"stage": r["stage"], "fingerprint": r["fingerprint"], "path": str(d)}
      for r, d in zip(before, upstream)
    ],
    "config": config,
    "versions": {"datatrove": "0.10.0"},
    "ops": ops,
    "in": len(everything),
    "kept": len(kept),
    "dropped": len(everything) - len(kept),
    "errored": 0,
    "bytes_in": _size(everything),
    "bytes_out": _size(kept),
    "by_source": sources,
    "by_language": {},
    "seconds": 1.5,
  }
  base.write_stage_json(directory, record | overrides)
  return directory


def rewrite_record(directory, **changes):
  """Changes the record of a stage without touching its files."""
  file = directory / base.RECORD
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_run(output, *, min_words=5, extra_op=False):
  """collect → clean → dedup of 12 documents; returns the three directories.

  10 English pages of a.org and 2 German ones of b.de; clean drops short ones (fewer than min_words
  words) and low scores; dedup drops one copy.
  """
  texts = {f"d{i}": f"page number {i} has words enough to be kept " + "word " * i for i in range(6)}
  texts |= {"s0": "too short", "s1": "short <script>alert(1)</script> one"}
  texts |= {"low": "a page with a low score and words enough", "code": "x" * 700 + " y z w v"}
  docs = [document(k, t, language_score=0.9) for k, t in texts.items()]
  for d in docs:
    d["metadata"]["language_score"] = {"low": 0.6, "d0": 0.66}.get(d["id"], 0.9)
    d["metadata"]["pii_emails"] = 2 if d["id"] == "d1" else 0
  copy = document("copy", texts["d5"].replace("enough", "plenty"), language_score=0.95)
  german = [
    document(
      f"g{i}",
      f"eine deutsche Seite mit genug Wörtern {i}",
      language="de",
      host="b.de",
      source="wiki",
      licence="CC0",
      language_score=0.8,
    )
    for i in range(2)
  ]
  everything = [*docs, copy, *german]
  collect = write_stage(output, "collect", everything, {"read": []}, config={"name": "demo"})

  def drop(d, reason, **more):
    return {**d, "metadata": {**d["metadata"], "reason": reason, **more}}

  removed = {
    "words": [drop(d, "too few words") for d in everything if len(d["text"].split()) < min_words],
    "language": [drop(d, "language score") for d in everything if d["id"] == "low"],
  }
  if extra_op:
    removed["german"] = [drop(d, "german") for d in german]
  gone = {d["id"] for documents in removed.values() for d in documents}
  kept = [d for d in everything if d["id"] not in gone]
  kept = [{**d, "text": d["text"].strip()} for d in kept]
  clean = write_stage(
    output,
    "clean",
    kept,
    removed,
    upstream=[collect],
    config={"name": "demo", "min_words": min_words},
  )
  copies = [drop(d, "near duplicate", duplicate_of="d5") for d in kept if d["id"] == "copy"]
  final = [d for d in kept if d["id"] != "copy"]
  dedup = write_stage(output, "dedup", final, {"minhash": copies}, upstream=[clean])
  return collect, clean, dedup

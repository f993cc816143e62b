"""Recall, false merges and speed of the stage dedup, on generated text.

  python benchmarks/dedup.py --out=DIR [--documents=N] [--pairs=FILE.jsonl]

Text: sentences of made-up words with Zipf frequencies; copies of some documents, edited to Jaccard
similarities (of word 5-grams) from 0.5 to 0.95, which are then measured. Writes DIR/recall.md and
DIR/recall.svg: the share of pairs of which one document was removed, beside 1-(1-s^8)^14.

--pairs: JSON lines, each a list or a record of texts that are versions of one another (such as
evals/registry/data/schelling_point/wikipedia_5.jsonl of the package evals): pairs are made of them.
"""

import argparse
import gzip
import itertools
import json
import math
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base, dedup
from jaxlm.data.stages.dedup_config import DedupConfig, MinhashConfig
from jaxlm.data.stages.minhash import catch_probability

LEVELS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class Language:
  """Documents of made-up words: the word of rank r is drawn with a weight of 1/(r + 2.7)."""

  def __init__(self, seed: int, size: int = 20_000):
    self.random = random.Random(seed)
    parts = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < size:
      found["".join(self.random.choices(parts, k=self.random.randint(1, 4)))] = None
    self.words = list(found)
    self.weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(size)))

  def some(self, n: int) -> list[str]:
    return self.random.choices(self.words, cum_weights=self.weights, k=n)

  def document(self) -> list[str]:
    return self.some(self.random.randint(150, 700))

  def edit(self, words: list[str], similarity: float, n_grams: int = 5) -> list[str]:
    """A copy of about that Jaccard similarity: single words replaced, spread at random."""
    total = len(words) - n_grams + 1
    broken = round(total * (1 - similarity) / (1 + similarity))  # (T - b) / (T + b) = s
    copy, touched = list(words), set()
    while len(touched) < broken:
      place = self.random.randrange(len(words))
      copy[place] = self.some(1)[0]
      touched.update(range(max(0, place - n_grams + 1), min(total, place + 1)))
    return copy


def text_of(words: list[str]) -> str:
  """Sentences of twelve words, paragraphs of five sentences."""
  sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
  return "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))


def shingles(words: list[str], n: int = 5) -> set[tuple[str, ...]]:
  lower = [word.lower() for word in words]
  return set(zip(*(lower[i:] for i in range(n)), strict=False))


def jaccard(a: list[str], b: list[str]) -> float:
  one, two = shingles(a), shingles(b)
  return len(one & two) / max(1, len(one | two))


def external(path: str) -> tuple[dict[str, str], dict[str, float]]:
  """The first text of each record and one of its others, by turns."""
  texts: dict[str, str] = {}
  truth: dict[str, float] = {}
  with Path(path).open(encoding="utf-8") as lines:
    for i, line in enumerate(lines):
      value = json.loads(line)
      if isinstance(value, dict):
        value = list(value.values())
      first, *others = (text for text in value if isinstance(text, str))
      texts[f"o-{i}"], texts[f"c-{i}"] = first, others[i % len(others)]
      words = [re.findall(r"\w+", texts[f"{kind}-{i}"]) for kind in "oc"]
      truth[f"c-{i}"] = jaccard(*words)
  return texts, truth


def make(documents: int, seed: int, pairs: str | None) -> tuple[dict[str, str], dict[str, float]]:
  """Texts by id, and the Jaccard similarity of each injected copy: "c<level>-<original>"."""
  if pairs:
    return external(pairs)
  language = Language(seed)
  texts: dict[str, str] = {}
  truth: dict[str, float] = {}
  for i in range(documents):
    words = language.document()
    texts[f"o-{i}"] = text_of(words)
    if i % 3 == 0:
      level = LEVELS[(i // 3) % len(LEVELS)]
      copy = language.edit(words, level)
      texts[f"c-{i}"] = text_of(copy)
      truth[f"c-{i}"] = jaccard(words, copy)
    elif i % 3 == 1 and i % 2:
      texts[f"x-{i}"] = "  " + text_of(words).replace(" ", "  ").upper()
  return texts, truth


def write(folder: Path, texts: dict[str, str], files: int = 4) -> Path:
  folder = folder / "clean-00000000"
  (folder / "documents").mkdir(parents=True)
  names = sorted(texts)
  random.Random(0).shuffle(names)
  for i in range(files):
    with gzip.open(folder / "documents" / f"{i:05d}.jsonl.gz", "wt", encoding="utf-8") as out:
      for name in names[i::files]:
        out.write(json.dumps({"id": name, "text": texts[name], "metadata": {}}) + "\n")
  base.write_stage_json(folder, {"stage": "clean", "fingerprint": "made", "kept": len(texts)})
  return folder


def signature_speed(texts: list[str]) -> tuple[float, float]:
  """MB of text per second of process time, files and all: datatrove's step, and ours."""
  from datatrove.data import Document
  from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

  from jaxlm.data.stages import minhash

  lsh = minhash.lsh_config(MinhashConfig(), 0)
  speeds = []
  documents = [Document(text=text, id="") for text in texts]
  size = sum(len(text.encode()) for text in texts) / 1e6
  for ours in (False, True):
    best = math.inf
    for _ in range(3):
      with tempfile.TemporaryDirectory() as folder:
        step: Any = (
          minhash.Signatures(folder, lsh, word_tokenizer="regex", by_source=False)
          if ours
          else MinhashDedupSignature(folder, config=lsh, language=minhash.RegexTokenizer())
        )
        started = time.process_time()
        step.run(documents)
        best = min(best, time.process_time() - started)
    speeds.append(size / best)
  return speeds[0], speeds[1]


def svg(rows: list[tuple[float, int, float, float]]) -> str:
  """The measured points over the curve of theory."""

  def x(s: float) -> float:
    return 60 + (s - 0.4) / 0.6 * 520

  def y(p: float) -> float:
    return 330 - p * 290

  grid = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
  lines = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 390" font-family="sans-serif"'
    ' font-size="13"><rect width="620" height="390" fill="#fff"/>'
  ]
  for s in grid:
    lines.append(f'<path d="M{x(s):.1f} 40V330" stroke="#ddd"/>')
    lines.append(f'<text x="{x(s):.1f}" y="350" text-anchor="middle">{s:.1f}</text>')
  for p in (0, 0.25, 0.5, 0.75, 1):
    lines.append(f'<path d="M60 {y(p):.1f}H580" stroke="#ddd"/>')
    lines.append(f'<text x="52" y="{y(p) + 4:.1f}" text-anchor="end">{p:.0%}</text>')
  curve = [(0.4 + 0.6 * i / 120) for i in range(121)]
  path = " ".join(f"{x(s):.1f},{y(catch_probability(s)):.1f}" for s in curve)
  lines.append(f'<polyline points="{path}" fill="none" stroke="#888" stroke-width="2"/>')
  for s, n, share, _ in rows:
    half = 1.96 * math.sqrt(max(share * (1 - share), 1e-9) / n)
    low, high = y(max(0, share - half)), y(min(1, share + half))
    lines.append(f'<path d="M{x(s):.1f} {low:.1f}V{high:.1f}" stroke="#1565c0"/>')
    lines.append(f'<circle cx="{x(s):.1f}" cy="{y(share):.1f}" r="4" fill="#1565c0"/>')
  lines.append('<text x="320" y="376" text-anchor="middle">Jaccard similarity (5-grams)</text>')
  lines.append(
    '<text x="60" y="24">Share of pairs that lost one: measured (95 %), theory grey</text>'
  )
  return "\n".join(lines) + "\n</svg>\n"


def measure(
  texts: dict[str, str], truth: dict[str, float], tasks: int, min_jaccard: float
) -> dict[str, Any]:
  """Runs the stage. Returns what it removed, compared with what was injected."""
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    upstream = write(folder, texts)
    started = time.perf_counter()
    config = DedupConfig(minhash=MinhashConfig(min_jaccard=min_jaccard))
    directory = dedup.run(upstream, folder, config, tasks=tasks, workers=tasks)
    seconds = time.perf_counter() - started
    record = base.read_stage(directory)
    removed = {
      one["id"]: one["metadata"]["duplicate_of"]
      for op in ("exact", "url", "minhash")
      for one in base.iter_documents(directory, op)
    }
  number = {name: name.split("-")[1] for name in texts}
  alike = {
    name: jaccard(*(re.findall(r"\w+", texts[one]) for one in (name, of)))
    for name, of in removed.items()
  }
  stray = [name for name, of in removed.items() if number[name] != number[of]]
  gone = {number[name] for name in removed if name not in stray}
  exact = [name for name in texts if name.startswith("x-")]
  levels = sorted((s, number[name] in gone) for name, s in truth.items())
  rows = []
  for start in (i / 20 for i in range(8, 20)):
    here = [(s, hit) for s, hit in levels if start <= s < start + 0.05]
    if here:
      mean = sum(s for s, _ in here) / len(here)
      theory = sum(catch_probability(s) for s, _ in here) / len(here)
      rows.append((mean, len(here), sum(hit for _, hit in here) / len(here), theory))
  near = [hit for s, hit in levels if s >= 0.8]
  return {
    "rows": rows,
    "documents": len(texts),
    "mb": sum(len(text.encode()) for text in texts.values()) / 1e6,
    "seconds": seconds,
    "exact": (sum(number[name] in gone for name in exact), len(exact)),
    "near": (sum(near), len(near)),
    "stray": len(stray),
    "false": sum(alike[name] < 0.5 for name in stray),
    "low": sum(s < 0.5 for s in alike.values()),
    "ops": {op["name"]: op["dropped"] for op in record["ops"]},
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument("--out", required=True)
  parser.add_argument("--documents", type=int, default=9000)
  parser.add_argument("--pairs")
  parser.add_argument("--tasks", type=int, default=1)
  parser.add_argument("--min_jaccard", type=float, default=MinhashConfig().min_jaccard)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  from loguru import logger

  logger.remove()
  texts, truth = make(args.documents, args.seed, args.pairs)
  found = measure(texts, truth, args.tasks, args.min_jaccard)
  stock, ours = signature_speed([texts[name] for name in sorted(texts)[:4000]])
  lines = [
    f"# Dedup: {found['documents']} documents, {found['mb']:.1f} MB, seed {args.seed}"
    f", min_jaccard {args.min_jaccard}",
    "",
    "| Jaccard (mean) | pairs | removed | theory |",
    "|---|---|---|---|",
    *(f"| {s:.3f} | {n} | {share:.1%} | {theory:.1%} |" for s, n, share, theory in found["rows"]),
    "",
    f"- exact duplicates removed: {found['exact'][0]} of {found['exact'][1]}",
    f"- near duplicates of Jaccard >= 0.8 removed: {found['near'][0]} of {found['near'][1]}"
    f" ({found['near'][0] / max(1, found['near'][1]):.1%})",
    f"- removed for a document that it was not made of: {found['stray']}; of these false merges"
    f" (true Jaccard < 0.5): {found['false']} ({found['false'] / found['documents']:.3%} of all)",
    f"- removed in all at a true Jaccard < 0.5: {found['low']}"
    f" ({found['low'] / found['documents']:.3%} of all)",
    f"- dropped by op: {found['ops']}",
    f"- signatures: {ours:.2f} MB/s of process time (the same by datatrove's step: {stock:.2f})",
    f"- whole stage, {args.tasks} task(s) at once: {found['mb'] / found['seconds']:.2f} MB/s"
    f" of wall time ({found['mb'] / found['seconds'] / args.tasks:.2f} per task)",
  ]
  out = Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  (out / "recall.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
  (out / "recall.svg").write_text(svg(found["rows"]), encoding="utf-8")
  sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
  main()

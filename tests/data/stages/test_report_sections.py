"""The report of real stages: tokenizer sweep, years, models and their scores, harm.

The stages run on made-up text, and what the page shows is compared with counts made here.
"""

import hashlib
import html.parser
import json
import random
from collections import Counter

import pytest

from jaxlm.data.prep.config import TextSourceConfig, TokenizeConfig, TokenizerTrainConfig
from jaxlm.data.stages import base, clean, collect, ops, quality, report, tokenize, train_tokenizer
from jaxlm.data.stages.clean_config import CleanConfig
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.ops.base import Action
from tests.data.stages.ops.conftest import prose

SIZES = (300, 320, 400)
JUNK = ("buy", "now", "cheap", "offer", "click", "free", "prize", "winner")


def junk(seed):
  rng = random.Random(seed)
  return " ".join(rng.choice(JUNK) for _ in range(60))


def rows():
  """40 good texts and 10 bad ones; of two domains, languages and years, some without a year.

  Each fifth good text of b.org, and none of a.org, holds the listed word.
  """
  made = []
  for i in range(40):
    where = "a.org" if i % 2 else "b.org"
    text = prose(i) + (" wickedword." if i % 10 == 0 else "")
    date = {0: "2019-03-01", 1: "2021-01-05"}.get(i % 3)
    made.append({"text": text, "url": f"https://www.{where}/{i}", "language": "en", "date": date})
  for i in range(10):
    made.append({"text": junk(i), "url": f"https://a.org/j{i}", "language": "de", "date": "2021"})
  return made


class Tables(html.parser.HTMLParser):
  """The cells of a page's tables, by the heading before them."""

  def __init__(self, page):
    super().__init__()
    self.found = {}
    self._heading, self._into = "", None
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    if tag in ("h2", "h3", "summary"):
      self._heading, self._into = "", "heading"
    elif tag == "tr":
      self.found.setdefault(self._heading, []).append([])
    elif tag in ("td", "th"):
      self.found[self._heading][-1].append("")
      self._into = "cell"

  def handle_endtag(self, tag):
    if tag in ("h2", "h3", "summary", "td", "th"):
      self._into = None

  def handle_data(self, data):
    if self._into == "heading":
      self._heading += data
    elif self._into == "cell":
      self.found[self._heading][-1][-1] += data


class Made:
  pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  root = tmp_path_factory.mktemp("report")
  (root / "in").mkdir()
  lines = [json.dumps({k: v for k, v in row.items() if v}) for row in rows()]
  (root / "in/a.jsonl").write_text("\n".join(lines))
  for name, make in (("good", prose), ("bad", junk)):
    texts = (json.dumps({"text": make(1000 + i)}) for i in range(60))
    (root / f"{name}.jsonl").write_text("\n".join(texts))
  good, bad = str(root / "good.jsonl"), str(root / "bad.jsonl")
  quality.train_classifier(good, bad, root / "model.bin", dim=8, buckets=500)
  (root / "words.txt").write_text("wickedword\n")
  config = CurationConfig(
    name="made <up>",
    output=str(root / "out"),
    sources={"text": TextSourceConfig(paths=(str(root / "in"),))},
    clean=CleanConfig(
      ops={
        "harm": ops.HarmConfig(word_lists=(str(root / "words.txt"),), action=Action.TAG),
        "quality": ops.QualityConfig(model=str(root / "model.bin")),
      }
    ),
    tokenizer=TokenizerTrainConfig(sweep=SIZES, choose=320, heldout_bytes=20_000),
    tokenize=TokenizeConfig(heldout_fraction=0.1),
  )
  collected = collect.run(config)
  out = Made()
  out.root = root
  out.clean = clean.run(collected, config.output, config.clean, max_drop_ratio=1.0)
  say = dict(say=lambda _: None)
  tokenizer = train_tokenizer.run(out.clean, config.output, config.tokenizer, **say)
  dataset = tokenize.run(out.clean, config.output, config.tokenize, tokenizer, **say)
  out.sweep = json.loads((tokenizer.parent / "sweep.json").read_text())
  page, data = report.report(config.output, dataset=dataset)
  out.values = json.loads(data.read_text())
  out.tables = Tables(page.read_text()).found
  out.page, out.dataset, out.config = page.read_text(), dataset, config
  return out


def test_the_sweep_is_that_of_the_datasets_tokenizer(made):
  """Breaks if the sizes, the chosen one or a column were another's."""
  assert made.values["sweep"] == made.sweep
  head, *table = made.tables["Tokenizer"]
  assert head == ["vocabulary", "bytes a token", "tokens a word", "MB/s", "text", "en"]
  assert [row[0] for row in table] == ["300", "320 (chosen)", "400"]
  for row, one in zip(table, made.sweep["sizes"], strict=True):
    assert float(row[1]) == pytest.approx(one["bytes"] / one["tokens"], abs=0.0011)
    assert float(row[4]) == pytest.approx(one["bytes"] / one["tokens"], abs=0.006)
  ratios = [float(row[1]) for row in table]
  assert ratios == sorted(ratios) and ratios[0] < ratios[-1]


def test_a_sweep_of_another_tokenizer_is_not_shown(made, tmp_path):
  """Breaks if any sweep that lies there were taken: it would explain a choice that was not made."""
  config = TokenizerTrainConfig(vocab_size=300, heldout_bytes=20_000)
  quiet = dict(say=lambda _: None)
  other = train_tokenizer.run(made.clean, tmp_path, config, **quiet)
  dataset = tokenize.run(made.clean, tmp_path, made.config.tokenize, other, **quiet)
  values = report.collect(made.config.output, dataset=dataset)
  assert values["sweep"]["chosen"] == 300  # the one that lies beside the dataset
  (other.parent / "sweep.json").unlink()
  assert report.collect(made.config.output, dataset=dataset)["sweep"] is None
  assert "Tokenizer</h2>" not in report.render(values | {"sweep": None})


def test_years_are_those_of_the_documents(made):
  """Breaks if documents without a year vanish, or if kept ones alone are counted."""
  years = Counter((row["date"] or "unknown")[:4] for row in rows())
  years["unknown"] = years.pop("unkn")
  assert made.values["years"] == {"text": dict(years)}
  assert years == {"2019": 14, "2021": 13 + 10, "unknown": 13}
  section = made.page.partition("<h2>Years</h2>")[2].partition("</section>")[0]
  assert "13 without" in section
  assert section.find("2019") < section.find("2021") and "2020" not in section
  assert "Years</h2>" not in report.render(made.values | {"years": {"text": {"unknown": 3}}})


def test_models_and_lists_are_named_with_their_hashes(made):
  (head, *table) = made.tables["models and lists"]
  assert head == ["op", "model or list", "sha256"]
  expected = [
    [f"clean/{op}", str(made.root / name), hashlib.sha256(data).hexdigest()]
    for op, name in (("harm", "words.txt"), ("quality", "model.bin"))
    for data in [(made.root / name).read_bytes()]
  ]
  assert sorted(table) == expected


def test_the_classifiers_scores_are_counted(made):
  """The histogram in tenths against the documents' own scores; junk is dropped and shown."""
  documents = [*base.iter_documents(made.clean), *base.iter_documents(made.clean, "quality")]
  scores = [d["metadata"]["quality_score"] for d in documents]
  assert len(scores) == 50
  (op,) = (o for s in made.values["funnel"] for o in s["ops"] if o["name"] == "quality")
  counted = {k: n for k, n in op["extra"].items() if k.startswith("score_")}
  assert sum(counted.values()) == 50
  # Scores are rounded in the metadata: one on the edge of a tenth may stand on its other side.
  tenths = Counter(f"score_{int(min(s, 0.999) * 10) / 10:.1f}" for s in scores)
  assert sum((tenths - Counter(counted)).values()) <= 1
  assert op["reasons"] == {"low_quality_score": 10}
  shown = [row for row in made.tables["what it counted"] if row[0].startswith("score_")]
  assert {key: int(n) for key, n in shown} == counted
  (near,) = (n for n in made.values["near_threshold"] if n["field"] == "quality_score")
  assert max(d["value"] for d in near["removed"]) < 0.5 < min(d["value"] for d in near["kept"])


def test_harm_by_language_and_domain(made):
  """Breaks if tagged documents, of which none is removed, are not shown; or another average is."""
  found = {(r["by"], r["value"]): r for r in made.values["harm"]["harm"]}
  domains = {
    key[1]: (r["documents"], r["flagged"]) for key, r in found.items() if key[0] == "domain"
  }
  # The domain is the host as it stands in the url.
  assert domains == {"www.b.org": (20, 4), "www.a.org": (20, 0), "a.org": (10, 0)}
  languages = {k[1]: (r["documents"], r["flagged"]) for k, r in found.items() if k[0] == "language"}
  assert languages == {"en": (40, 4), "de": (10, 0)}
  assert found["domain", "www.b.org"]["times_average"] == pytest.approx((4 / 20) / (4 / 50))
  head, *table = made.tables["Flagged as harmful, by the op's own threshold"]
  assert head[:4] == ["op", "of", "documents", "flagged"]
  assert [row[:4] for row in table] == [
    ["clean/harm", "language: en", "40", "4"],
    ["clean/harm", "domain: www.b.org", "20", "4"],
  ]
  assert table[1][5] == "2.5 ×"
  (op,) = (o for s in made.values["funnel"] for o in s["ops"] if o["name"] == "harm")
  assert op["dropped"] == 0
  flags = {(r["by"], r["value"]): r for r in made.values["flags"] if r["field"] == "harm_words"}
  assert (flags["language", "en"]["documents"], flags["language", "en"]["flagged"]) == (40, 4)

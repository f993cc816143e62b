"""The report: its numbers are those counted by hand, and no text of a document becomes HTML."""

import html.parser
import json

import pytest

from jaxlm.data.stages import base, card, charts, report
from jaxlm.data.stages.chain import HashSample, Reservoir
from jaxlm.data.testing import write_dataset
from jaxlm.errors import UserError
from tests.data.stages.made_up import document, write_lines, write_run, write_stage


@pytest.fixture
def values(tmp_path):
  write_run(tmp_path)
  page, data = report.report(tmp_path)
  return json.loads(data.read_text()) | {"html": page.read_text()}


def test_funnel_is_the_one_counted_by_hand(values):
  funnel = {
    f"{s['stage']}/{op['name']}": (op["in"], op["kept"], op["dropped"], op["reasons"])
    for s in values["funnel"]
    for op in s["ops"]
  }
  assert funnel == {
    "collect/read": (13, 13, 0, {}),
    "clean/words": (13, 11, 2, {"too few words": 2}),
    "clean/language": (11, 10, 1, {"language score": 1}),
    "dedup/minhash": (10, 9, 1, {"near duplicate": 1}),
  }
  assert (values["documents_in"], values["documents_kept"], values["seconds"]) == (13, 9, 4.5)
  assert values["name"] == "demo" and values["last_stage"] == "dedup"


def test_shares_lengths_domains_licences(values):
  languages = {
    r["language"]: (r["documents_before"], r["documents_after"]) for r in values["languages"]
  }
  assert languages == {"en": (11, 7), "de": (2, 2)}
  # 9, 10–31, 32–99, 100–316, 317–999 characters
  lengths = {r["from"]: (r["before"], r["after"]) for r in values["lengths"]}
  assert lengths == {"4": (1, 0), "10": (0, 0), "32": (11, 8), "100": (0, 0), "317": (1, 1)}
  assert [(r["name"], r["documents"]) for r in values["domains_before"]] == [
    ("a.org", 11),
    ("b.de", 2),
  ]
  assert [(r["name"], r["documents"]) for r in values["domains_after"]] == [
    ("a.org", 7),
    ("b.de", 2),
  ]
  assert {r["name"]: r["documents"] for r in values["licences"]} == {"CC-BY-4.0": 7, "CC0": 2}
  sources = {r["name"]: (r["documents_in"], r["documents_kept"]) for r in values["sources"]}
  assert sources == {"web": (11, 7), "wiki": (2, 2)}


def test_examples_thresholds_and_pairs(values):
  examples = {(e["op"], e["reason"]): {d["id"] for d in e["documents"]} for e in values["examples"]}
  assert examples == {
    ("words", "too few words"): {"s0", "s1"},
    ("language", "language score"): {"low"},
    ("minhash", "near duplicate"): {"copy"},
  }
  (near,) = values["near_threshold"]
  assert [(d["id"], d["value"]) for d in near["removed"]] == [("low", 0.6)]
  assert [(d["id"], d["value"]) for d in near["kept"]][:2] == [("d0", 0.66), ("g0", 0.8)]
  (found,) = values["duplicates"]
  assert (found["clusters"], found["removed"], found["largest"]) == (1, 1, 2)
  (pair,) = found["pairs"]
  assert (pair["removed"]["id"], pair["kept"]["id"]) == ("copy", "d5")
  assert "<mark>plenty</mark>" in values["html"] and "<mark>enough</mark>" in values["html"]


def test_flags_by_language(values):
  rows = {(r["by"], r["value"]): r for r in values["flags"] if r["field"] == "pii_emails"}
  # 10 English documents carry the field (the copy does not), d1 is flagged, 3 are removed.
  english = rows["language", "en"]
  assert (english["documents"], english["flagged"], english["removed"]) == (10, 1, 3)
  assert rows["domain", "a.org"]["flagged"] == 1


def test_over_removal_is_named(tmp_path):
  def make(i, language):
    return document(f"{language}{i}", f"text {i}", language=language)

  bad = [make(i, "de") for i in range(6)]
  for d in bad:
    d["metadata"]["reason"] = "harm"
  write_stage(
    tmp_path, "clean", [make(i, "en") for i in range(30)] + [make(9, "de")], {"harm": bad}
  )
  rows = report.collect(tmp_path)["over_removal"]
  (row,) = [r for r in rows if r["by"] == "language"]
  assert (row["value"], row["documents"], row["removed"]) == ("de", 7, 6)
  assert row["times_average"] == pytest.approx((6 / 7) / (6 / 37))


def test_text_is_escaped_and_the_page_is_whole(tmp_path):
  evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x00'
  docs = [
    document(f"{evil}{i}", evil * 30, host=evil, source=evil, licence=evil, language=evil)
    for i in range(3)
  ]
  bad = [
    {**d, "metadata": d["metadata"] | {"reason": evil, "duplicate_of": docs[1]["id"]}}
    for d in docs[:1]
  ]
  write_stage(
    tmp_path, "clean", docs[1:], {evil.replace("/", "_")[:20]: bad}, config={"name": evil}
  )
  page, _ = report.report(tmp_path)
  text = page.read_text()

  class Check(html.parser.HTMLParser):
    depth = 0

    def handle_starttag(self, tag, attributes):
      assert tag not in ("script", "img", "link", "iframe"), tag
      assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attributes)
      self.depth += tag not in ("meta", "br")

    def handle_startendtag(self, tag, attributes):
      pass

    def handle_endtag(self, tag):
      self.depth -= 1

  check = Check()
  check.feed(text)
  assert check.depth == 0
  assert "&lt;script&gt;" in text and "http" not in text.replace("http-equiv", "").replace(
    "https://www.", ""
  )


def test_a_dataset_says_which_stage_it_was_made_from(tmp_path):
  """Broken by the stage that was written last: of another config, it has nothing to do with it."""
  first = write_run(tmp_path / "out")[-1]
  write_run(tmp_path / "out", min_words=3)  # later
  write_dataset(tmp_path / "set", [[5] * 9])
  file = tmp_path / "set/manifest.json"
  values = json.loads(file.read_text())
  record = base.read_stage(first)
  entry = {"stage": record["stage"], "fingerprint": record["fingerprint"], "path": "../gone"}
  values["source"]["upstream"] = [entry]
  file.write_text(json.dumps(values))
  kept = report.collect(tmp_path / "out", dataset=tmp_path / "set")["documents_kept"]
  assert kept == record["kept"] != report.collect(tmp_path / "out")["documents_kept"]
  entry["fingerprint"] = "0" * 64
  file.write_text(json.dumps(values))
  with pytest.raises(UserError, match="made from dedup-00000000, which is neither"):
    report.collect(tmp_path / "out", dataset=tmp_path / "set")


def test_tokens_packing_and_epochs(tmp_path):
  write_run(tmp_path / "out")
  write_dataset(tmp_path / "set", [[5] * 9, [6] * 29, [7] * 59])  # 10 + 30 + 60 tokens
  values = report.collect(
    tmp_path / "out", dataset=tmp_path / "set", tokens_planned=250, seq_len=20
  )
  data = values["dataset"]
  train = data["splits"]["train"]
  assert (train["tokens"], train["documents"], train["rows"]) == (100, 3, 4)
  assert (train["documents_longer_than_a_row"], train["tokens_beyond_a_row"]) == (2, 50)
  assert data["epochs_planned"] == 2.5
  assert not data["tokens_by_source_exact"]
  assert sum(data["tokens_by_source"].values()) == pytest.approx(100)
  assert "2.50 epochs" in card.render(values)


def test_tokens_by_source_are_exact_with_a_list_of_documents(tmp_path):
  write_run(tmp_path / "out")
  write_dataset(tmp_path / "set", [[5] * 9, [6] * 29, [7] * 59], shard_tokens=10**6)
  lines = [{"id": str(i), "source": s} for i, s in enumerate(("web", "wiki", "web"))]
  write_lines(tmp_path / "set/train/shard-00000.ids.jsonl.gz", lines)
  data = report.collect(tmp_path / "out", dataset=tmp_path / "set", seq_len=20)["dataset"]
  assert data["tokens_by_source"] == {"web": 70, "wiki": 30}
  assert data["tokens_by_source_exact"]


def test_overlap_with_evaluation_sets(tmp_path):
  task = {"name": "quiz <b>", "items": 7, "n_grams": 90, "documents_hit": 2, "n_gram_hits": 5}
  write_stage(tmp_path, "decontaminate", [document("a", "text")], {"ngrams": []}, tasks=[task])
  page, _ = report.report(tmp_path)
  assert "quiz &lt;b&gt;" in page.read_text()


def test_reports_are_the_same_again(tmp_path):
  write_run(tmp_path)
  assert report.collect(tmp_path, seed=3) == report.collect(tmp_path, seed=3)


def test_nothing_to_report(tmp_path):
  with pytest.raises(UserError, match="no finished stage"):
    report.report(tmp_path)


def test_samples_are_bounded_and_fair():
  reservoir = Reservoir(3, "seed")
  for i in range(1000):
    reservoir.add(i)
  assert len(reservoir.items) == 3 and reservoir.seen == 1000 and max(reservoir.items) > 10
  counts = HashSample(100)
  for i in range(20_000):
    counts.add(f"k{i % 4000}")
  assert len(counts.counts) <= 100 and set(counts.counts.values()) == {5}
  assert 2000 < len(counts.counts) * counts.scale < 8000


def test_words_that_differ_are_marked():
  a, b = charts.marked_pair("one two <b>", "one three <b>")
  assert (a, b) == ("one <mark>two</mark> &lt;b&gt;", "one <mark>three</mark> &lt;b&gt;")

"""Word lists and classifiers of harm: what they flag, whom they flag more than others."""

import json

import pytest

from jaxlm.data.stages import ops, quality
from jaxlm.errors import UserError


@pytest.fixture
def lists(tmp_path):
  """Harmless stand-ins: an English list, a German one as JSON, a Japanese one, one for all."""
  (tmp_path / "en.txt").write_text("# comment\nBadWord\nvery bad phrase\n")
  (tmp_path / "de.json").write_text(json.dumps(["schlimm"]))
  (tmp_path / "ja.txt").write_text("悪い\n")
  (tmp_path / "everywhere.txt").write_text("verboten\n")
  return tuple(str(tmp_path / name) for name in ("en.txt", "de.json", "ja.txt", "everywhere.txt"))


DOCUMENTS = [
  ("A badword, a BADWORD and a very\nbad  phrase.", {"language": "en", "url": "https://a.org/1"}),
  ("Badwords and abadword hold it inside.", {"language": "en", "url": "https://a.org/2"}),
  ("Schlimm, aber kein badword.", {"language": "de", "url": "https://b.de/1"}),
  ("これは悪いです", {"language": "ja"}),
  ("verboten here too", {"language": "fr", "url": "https://a.org/3"}),
  ("schlimm or badword: language not known", {}),
  ("Nothing at all.", {"language": "en", "url": "https://a.org/4"}),
]
HITS = [3, 0, 1, 1, 1, 2, 0]


def test_words_are_counted_by_the_lists_of_the_language_and_nothing_is_dropped(run, lists):
  made = run({"harm": ops.HarmConfig(word_lists=lists)}, DOCUMENTS)
  assert [made.kept[i]["metadata"]["harm_words"] for i in range(len(DOCUMENTS))] == HITS
  assert made.ops["harm"]["extra"] == {"flagged": 5}


def test_drop_is_an_option(run, lists):
  op = ops.HarmConfig(word_lists=lists, action=ops.Action.DROP, min_words=2)
  made = run({"harm": op}, DOCUMENTS)
  assert made.reasons("harm") == {0: "harm_words", 5: "harm_words"}


@pytest.mark.parametrize("tasks", [1, 2])
def test_over_removal_by_language_and_domain_is_on_record(run, lists, tasks):
  made = run({"harm": ops.HarmConfig(word_lists=lists)}, DOCUMENTS, tasks=tasks, files=2)
  rows = {(row["by"], row["value"]): row for row in made.record["harm"]["harm"]}
  assert rows["language", "en"]["documents"] == 3 and rows["language", "en"]["flagged"] == 1
  assert rows["language", "de"]["share"] == 1
  assert rows["language", "de"]["times_average"] == pytest.approx(7 / 5, abs=0.01)
  assert rows["domain", "a.org"]["share"] == 0.5 and rows["domain", "b.de"]["share"] == 1
  assert sum(row["documents"] for key, row in rows.items() if key[0] == "language") == 7


def test_a_classifier_tags_and_drops(run, tmp_path):
  for name, word in (("harm", "awful"), ("fine", "pleasant")):
    lines = [json.dumps({"text": f"{word} words of {i} {word} things"}) for i in range(60)]
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
  model = tmp_path / "harm.bin"
  good, bad = (str(tmp_path / f"{name}.jsonl") for name in ("harm", "fine"))
  quality.train_classifier(good, bad, model, label="harm", dim=16, buckets=1000, epochs=20)
  texts = ["awful words of awful things", "pleasant words of pleasant things"]
  made = run({"harm": ops.HarmConfig(model=str(model))}, texts)
  scores = [made.kept[i]["metadata"]["harm_score"] for i in range(2)]
  assert scores[0] > 0.5 > scores[1] and "harm_words" not in made.kept[0]["metadata"]
  op = ops.HarmConfig(model=str(model), action=ops.Action.DROP)
  assert run({"harm": op}, texts).reasons("harm") == {0: "harm_score"}


def test_lists_that_can_not_be_read_are_named(run, tmp_path):
  with pytest.raises(UserError, match="set word_lists or model"):
    run({"harm": ops.HarmConfig()}, ["text"])
  for name, text, message in (
    ("en.json", "{", "not JSON"),
    ("en.json", '{"a": 1}', "JSON list"),
    ("e.txt", "# a\n", "no words"),
  ):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}: .*{message}"):
      run({"harm": ops.HarmConfig(word_lists=(str(tmp_path / name),))}, ["text"])

"""diff shows the difference that was planted, and no other."""

from jaxlm.data.stages.diff import compare, diff
from tests.data.stages.made_up import write_run


def test_the_planted_difference(tmp_path):
  write_run(tmp_path / "a")
  write_run(tmp_path / "b", min_words=4, extra_op=True)
  values = compare(tmp_path / "a", tmp_path / "b")
  assert [(r["op"], r["state"]) for r in values["ops"]] == [
    ("collect/read", "both"),
    ("clean/words", "both"),
    ("clean/language", "both"),
    ("clean/german", "added"),
    ("dedup/minhash", "both"),
  ]
  assert values["config"] == ["clean: min_words: 5 → 4"]
  assert values["versions"] == []
  assert values["only_a"] == {
    "count": 2,
    "exact": True,
    "documents": [{"id": i, "other": "removed by clean/german: german"} for i in ("g0", "g1")],
  }
  assert values["only_b"]["count"] == 0


def test_text_and_html(tmp_path):
  write_run(tmp_path / "a")
  write_run(tmp_path / "b", extra_op=True)
  lines = diff(tmp_path / "b", tmp_path / "a", out=tmp_path / "diff.html")
  (german,) = [line for line in lines if line.startswith("clean/german")]
  assert german.split() == ["clean/german", "only", "a", "10", "8", "80.00%", "–", "–", "–"]
  assert "kept only in b: 2 documents" in lines
  assert "clean/german" in (tmp_path / "diff.html").read_text()


def test_a_run_and_itself(tmp_path):
  write_run(tmp_path)
  values = compare(tmp_path, tmp_path)
  assert not values["config"] and not values["only_a"]["count"] and not values["only_b"]["count"]
  assert all(r["state"] == "both" and r["a"] == r["b"] for r in values["ops"])

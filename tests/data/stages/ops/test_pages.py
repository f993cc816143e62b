"""Extraction and repair of text."""

import time

import pytest

from jaxlm.data.stages import ops
from jaxlm.data.stages.ops import pages_steps
from jaxlm.errors import UserError

HTML = {"format": "html"}


def page(text):
  menu = "".join(f'<li><a href="/{i}">Section {i}</a></li>' for i in range(20))
  body = f"<nav><ul>{menu}</ul></nav><article><p>{text}</p></article><footer>Imprint</footer>"
  return f"<html><head><title>T</title></head><body>{body}</body></html>"


LONG = "The main text of the page has words enough to be taken for what it is. " * 5


@pytest.mark.parametrize("engine", list(ops.Extractor))
def test_extraction_keeps_the_text_and_drops_pages_without_one(run, engine):
  """Broken by a missing lxml_html_clean, for which trafilatura lost every page as a timeout."""
  config = ops.ExtractConfig(engine=engine)
  documents = [
    (page(LONG), HTML),
    ("<html><body><script>1</script></body></html>", HTML),
    ("plain", {}),
  ]
  made = run({"extract": config}, documents)
  assert LONG.strip()[:60] in made.kept[0]["text"]
  assert "Section 3" not in made.kept[0]["text"] and "<p>" not in made.kept[0]["text"]
  assert "format" not in made.kept[0]["metadata"]  # a second extraction would pass it
  assert made.kept[2]["text"] == "plain"  # no page: passes as it is
  assert made.reasons("extract") == {1: "no text"}


def slow(text):
  if "slow" in text:
    time.sleep(60)
  if "dies" in text:
    import os

    os._exit(1)
  if "raises" in text:
    return ValueError("no tree")
  return text.upper()


def test_a_page_that_takes_too_long_or_kills_the_child_is_errored_not_lost(run, monkeypatch):
  """Broken by datatrove's sandbox as it is: such pages leave with no trace but a log line."""
  monkeypatch.setattr(pages_steps, "_Trafilatura", lambda precision: slow)
  config = ops.ExtractConfig(engine=ops.Extractor.TRAFILATURA, timeout_s=0.5)
  documents = [(text, HTML) for text in ("one", "slow", "two", "dies", "three", "raises", "four")]
  made = run({"extract": config}, documents, max_error_ratio=0.5)
  assert {n: d["text"] for n, d in made.kept.items()} == {0: "ONE", 2: "TWO", 4: "THREE", 6: "FOUR"}
  op = made.ops["extract"]
  assert op["errors"] == {"ChildProcessError": 1, "TimeoutError": 1, "ValueError": 1}
  assert (op["in"], op["kept"], op["dropped"], op["errored"]) == (7, 4, 0, 3)
  gone = made.removed("extract")
  assert gone[1]["text"] == "slow" and gone[1]["metadata"]["reason"] == "error: TimeoutError"
  assert gone[5]["metadata"]["error"] == "ValueError: no tree"
  with pytest.raises(UserError, match=r"3 of 7 documents failed .* most of them in extract"):
    run({"extract": config}, documents, max_error_ratio=0.4)


def start_slowly(text):
  if not text:
    time.sleep(1.5)
  return text


def test_the_start_of_the_child_does_not_count_against_a_page(run, monkeypatch):
  """Broken by a timeout that includes start-up: the first page of each task was lost."""
  monkeypatch.setattr(pages_steps, "_Trafilatura", lambda precision: start_slowly)
  config = ops.ExtractConfig(engine=ops.Extractor.TRAFILATURA, timeout_s=0.5)
  assert run({"extract": config}, [("one", HTML)]).kept[0]["text"] == "one"


def test_a_child_that_can_not_start_stops_the_stage(run, monkeypatch):
  def no_start(text):
    raise ImportError("no lxml_html_clean")

  monkeypatch.setattr(pages_steps, "_Trafilatura", lambda precision: no_start)
  with pytest.raises(UserError, match=r"trafilatura's process did not start .* pip install"):
    run({"e": ops.ExtractConfig(engine=ops.Extractor.TRAFILATURA)}, [("one", HTML)])


def test_fix_text_repairs_and_counts(run):
  documents = [
    "schÃ¶n und gut",  # UTF-8 read as Latin-1
    "plain ASCII, \"quotes\" &amp; 'all'",
    "cafe\u0301",  # two characters for one
    "a\x00b\x1b[31mred\r\nnext",
    "“curled” — Ｆｕｌｌ，width",
    "\x00\x01",
  ]
  made = run({"fix_text": ops.FixTextConfig()}, documents)
  assert {n: d["text"] for n, d in made.kept.items()} == {
    0: "schön und gut",
    1: documents[1],
    2: "café",
    3: "abred\nnext",
    4: documents[4],
  }
  assert made.reasons("fix_text") == {5: "empty"}
  assert made.ops["fix_text"]["extra"] == {"changed": 4}

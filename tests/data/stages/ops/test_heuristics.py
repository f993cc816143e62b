"""The published rules: what each keeps, and a document for every reason to drop one."""

import pytest

from jaxlm.data.stages import ops
from tests.data.stages.ops.conftest import prose

LINE = "The {0} of the house and {1} that have to be with {2}."


def lines(number, text="Line {0} of the text has some words and it ends with a mark."):
  return "\n".join(text.format(i) for i in range(number))


def test_gopher_repetition(run):
  paragraphs = "\n\n".join(["Again the same words are said here."] * 4 + [prose(1, 9)])
  half = "\n".join(["And this line is said more often than once."] * 10 + [prose(2, 9)])
  pair = " ".join(f"of the w{i}x{i}" if i % 2 else "of the" for i in range(120))
  phrase = "one two three four five six seven eight nine ten eleven twelve "
  documents = [prose(0), paragraphs, half, pair, phrase * 2 + prose(3, 3), "  \n "]
  reasons = run({"r": ops.GopherRepetitionConfig()}, documents[:5]).reasons("r")
  assert set(reasons) == {1, 2, 3, 4}
  assert reasons[1] == "dup_para_frac" and reasons[2].startswith("dup_line")
  assert reasons[3].startswith("top_") and reasons[4].startswith("duplicated_")
  loose = ops.GopherRepetitionConfig(
    duplicate_lines=None,
    duplicate_paragraphs=None,
    duplicate_line_characters=None,
    duplicate_paragraph_characters=None,
    top_n_grams=(),
    duplicate_n_grams=(),
  )
  assert len(run({"r": loose}, documents[:5]).kept) == 5


GOOD = prose(4)
SENTENCES = GOOD.replace("\n", " ").split(". ")
GOPHER = {
  "gopher_short_doc": "the and of " * 10,
  "gopher_long_doc": prose(5, 90),
  "gopher_below_avg_threshold": "a of to be it is we " * 20,
  "gopher_above_avg_threshold": "extraordinarily uncharacteristically the and " * 30,
  "gopher_too_many_hashes": GOOD + " #" * 200,
  "gopher_too_many_ellipsis": GOOD.replace(".", " ... ") + " ... the" * 60,
  "gopher_too_many_bullets": "\n".join(f"- {line}" for line in SENTENCES),
  "gopher_too_many_end_ellipsis": "\n".join(f"{line} words..." for line in SENTENCES),
  "gopher_below_alpha_threshold": GOOD + " 123456" * 200,
  "gopher_enough_stop_words": "house garden street window corner people letter " * 20,
}


@pytest.mark.parametrize("reason", GOPHER)
def test_gopher_quality(run, reason):
  op = ops.GopherQualityConfig(max_doc_words=900)
  made = run({"q": op}, [GOOD, GOPHER[reason]])
  assert made.reasons("q") == {1: reason}


def test_documents_near_a_threshold_have_their_value(run):
  """Broken by values on one side alone: the report finds a threshold between both sides."""

  def words(number):
    return " ".join(["the and house"] * number)[: 6 * 1000]

  op = ops.GopherQualityConfig(min_doc_words=60, min_mean_word_length=None)
  made = run({"gopher": op}, [words(19), words(20), words(60)])
  field = "near_gopher_short_doc"
  assert made.removed("gopher")[0]["metadata"][field] == 57
  assert made.kept[1]["metadata"][field] == 60
  assert field not in made.kept[2]["metadata"]


C4 = {
  "too_few_sentences": "One line of words alone.\nAnd one line more.",
  "lorem_ipsum": prose(6) + "\nlorem ipsum dolor sit amet",
  "curly_bracket": prose(7) + "\nif (a) { return b; }",
  "empty": "   \n",
}


@pytest.mark.parametrize("reason", [one for one in C4 if one != "empty"])
def test_c4_drops(run, reason):
  made = run({"c4": ops.C4Config(curly_bracket=True)}, [prose(8), C4[reason]])
  assert made.reasons("c4") == {1: reason}


def test_c4_cuts_lines_and_counts_them(run):
  extra = "\n".join(
    [
      "two words",
      "Enable JavaScript to read on here.",
      "We value your privacy policy choices.",
      "x" * 1001,
    ]
  )
  cut = run({"c4": ops.C4Config()}, [f"{prose(9)}\n{extra}\nText [1] with a note."]).kept[0]["text"]
  assert "JavaScript" not in cut and "two words" not in cut and "privacy" not in cut
  assert "xxx" not in cut and "Text  with a note." in cut
  ends = run({"c4": ops.C4Config(terminal_punctuation=True)}, [f"{prose(9)}\nno mark at the end"])
  assert "no mark" not in ends.kept[0]["text"] and ends.ops["c4"]["extra"] == {"lines_removed": 1}
  none = ops.C4Config(min_sentences=None, min_words_per_line=50)
  assert run({"c4": none}, [prose(9)]).reasons("c4") == {0: "no_lines_left"}


FINEWEB = {
  "line_punct_ratio": lines(20, "a line {0} that is long enough but has no mark at its end"),
  "short_line_ratio": lines(20, "short {0}."),
  "char_dup_ratio": prose(10) + "\n" + prose(10).split("\n")[0],
  "list_ratio": lines(30, "extraordinarilyunbrokensequence{0}x."),
}


@pytest.mark.parametrize("reason", FINEWEB)
def test_fineweb(run, reason):
  made = run({"fineweb": ops.FineWebConfig()}, [prose(11), FINEWEB[reason]])
  assert made.reasons("fineweb") == {1: reason}


def test_refinedweb_cuts_lines_and_drops_what_loses_much(run):
  leftovers = ["MENU AND MORE", "1234", "3 likes", "word", "Sign-in to the club now", "Read more…"]
  text = prose(12)
  much = "\n".join([*leftovers * 20, prose(13, 3)])
  made = run({"lines": ops.RefinedWebLinesConfig()}, [text + "\n" + "\n".join(leftovers), much])
  assert made.reasons("lines") == {1: "removed_words"}
  assert made.kept[0]["text"] == text + "\n to the club now"
  assert made.removed("lines")[1]["text"] == much  # as it came
  assert made.ops["lines"]["extra"] == {"lines_removed": 5}
  assert run({"lines": ops.RefinedWebLinesConfig()}, ["12\n13"]).reasons("lines") == {
    0: "no_lines_left"
  }

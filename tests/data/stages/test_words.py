"""Words: as they were where there are spaces, one character each where there are none."""

import re
from pathlib import Path

import pytest

from jaxlm.data.stages import words

PLAIN = {
  words.LETTERS: r"\w+",
  words.LETTERS_AND_MARKS: r"\w+|[^\w\s]+",
  words.BETWEEN_SPACES: r"\S+",
}


@pytest.mark.parametrize("pattern", PLAIN)
def test_texts_with_spaces_are_cut_as_before(pattern):
  """Broken by a pattern that changes what duplicates are in every other language."""
  here = Path(__file__).parents[3]
  texts = [file.read_text(encoding="utf-8") for file in sorted(here.glob("docs/*.md"))]
  texts += [
    "Élan vital, naïve café: 3,14 € x_y!",
    "слово за слово; это",
    "한국어 문장은 띄어 쓴다.",
    "ไทย",
  ]
  assert len(texts) > 5
  for text in texts:
    if not re.search("[\u3040-\u30ff\u4e00-\u9fff]", text):
      assert pattern.of(text).findall(text) == re.findall(PLAIN[pattern], text)


@pytest.mark.parametrize(
  ("text", "letters"),
  [
    ("我们x2学习，abc中文。", ["我", "们", "x2", "学", "习", "abc", "中", "文"]),
    ("ラーメンを食べる・人々", [*"ラーメンを食べる", *"人々"]),
    ("𠮷野家", ["𠮷", "野", "家"]),
    ("no such", ["no", "such"]),
  ],
)
def test_ideographs_and_kana_are_words(text, letters):
  assert words.LETTERS.of(text).findall(text) == letters
  marks = words.LETTERS_AND_MARKS.of(text).findall(text)
  assert [one for one in marks if re.match(r"\w", one)] == letters
  between = words.BETWEEN_SPACES.of(text).findall(text)
  assert "".join(between) == text.replace(" ", "")
  assert [one for one in letters if not one.isascii()] == [
    c for c in between if c in letters and not c.isascii()
  ]


def test_a_word_does_not_depend_on_the_text_around_it():
  """Broken by a pattern for mixed texts that cuts their other words elsewhere."""
  english = "Don't stop-me_now: 3.5% of naïve users (v2)!"
  for pattern in PLAIN:
    both = english + " 中 " + english
    once = pattern.of(english).findall(english)
    assert pattern.of(both).findall(both) == [*once, "中", *once]

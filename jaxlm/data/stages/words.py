"""What a word is, where texts are compared by runs of words.

Chinese and Japanese are written without spaces: a run of letters is a clause, and clauses rarely
repeat. There each ideograph and each kana is a word. (Thai, Lao, Khmer and Burmese have no spaces
either, but no characters that are words: there a run of letters stays one word.)
"""

import re

# Ideographs and kana, without the punctuation that stands between them in Unicode.
_ALONE = (
  "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
  "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_ANY_ALONE = re.compile(f"[{_ALONE}]")


class Pattern:
  """Finds words, ideographs and kana each alone.

  Args:
    plain: the pattern for texts without such characters, most of which it does at its own speed.
    mixed: the same without them; {not_alone} is to stand in its character class.
  """

  def __init__(self, plain: str, mixed: str):
    self._plain = re.compile(plain)
    self._mixed = re.compile(f"[{_ALONE}]|" + mixed.format(not_alone=_ALONE))

  def of(self, text: str) -> re.Pattern[str]:
    """The pattern for this text."""
    return self._plain if text.isascii() or not _ANY_ALONE.search(text) else self._mixed


LETTERS = Pattern(r"\w+", r"[^\W{not_alone}]+")
LETTERS_AND_MARKS = Pattern(r"\w+|[^\w\s]+", r"[^\W{not_alone}]+|[^\w\s]+")
BETWEEN_SPACES = Pattern(r"\S+", r"[^\s{not_alone}]+")

"""Wikitext to plain text: what readers read, with its headings, without templates and tables."""

import re
from collections.abc import Collection
from typing import Any

_TAGS = (
  "ref references gallery timeline imagemap score graph mapframe maplink templatestyles"
  " categorytree inputbox indicator noinclude table style script section"
)
_DROPPED = frozenset(_TAGS.split())
_ENDS_LINE = frozenset(["br", "hr", "p", "div", "li", "dd", "dt", "blockquote", "center"])
_BLANK = re.compile(r"[ \t]*\n[ \t]*(?:\n[ \t]*)+")
_SPACES = re.compile(r"[ \t\u00a0]{2,}")
_EMPTY_PARENTHESES = re.compile(r" ?\((?:[\s,;:–-]|&nbsp;)*\)")  # what is left of {{lang|…}}
_INDENT = re.compile(r"^ (?=\S)", re.MULTILINE)  # the mark of a preformatted line, or behind a mark
_EMPTY_ITEM = re.compile(r"^[ \t]*(?:- ?)+[ \t]*(?:\n|\Z)", re.MULTILINE)  # it was a template
_NESTED_ITEM = re.compile(r"^(?:- )+(?=- )", re.MULTILINE)
_SWITCH = re.compile(r"__[A-Z]{4,}__")
_KEPT = "\x01"  # stands on both sides of a number
_KEPT_PLACE = re.compile("\x01([0-9]+)\x01")
_HEADING = "\x00"  # marks a heading's line; no wikitext holds it


def to_text(wikitext: str, namespaces: Collection[str]) -> str:
  """The text of an article.

  namespaces: lower-case names whose links show no text (file, category, …). Headings stand on lines
  of their own; those with nothing below them (References, when all of it was templates) go.
  """
  import mwparserfromhell

  wikitext = wikitext.replace(_HEADING, "").replace(_KEPT, "")
  code = mwparserfromhell.parse(wikitext, skip_style_tags=True)
  out = _Out()
  _render(code, out, namespaces)
  text = _SWITCH.sub("", "".join(out).replace("'''", "").replace("''", ""))
  text = _NESTED_ITEM.sub("", _EMPTY_ITEM.sub("", _INDENT.sub("", text)))
  text = _EMPTY_PARENTHESES.sub("", text)
  text = _BLANK.sub("\n\n", _SPACES.sub(" ", text))
  text = _headings(text.strip())
  return _KEPT_PLACE.sub(lambda match: out.verbatim[int(match.group(1))], text)


class _Out(list[str]):
  """Pieces of text. verbatim: those that are no prose, of which a mark holds the place."""

  def __init__(self, verbatim: list[str] | None = None):
    super().__init__()
    self.verbatim = [] if verbatim is None else verbatim

  def keep(self, text: str) -> None:
    self.append(f"{_KEPT}{len(self.verbatim)}{_KEPT}")
    self.verbatim.append(text)


def _render(code: Any, out: _Out, namespaces: Collection[str]) -> None:
  from mwparserfromhell import nodes

  for node in code.nodes:
    if isinstance(node, nodes.Text):
      out.append(node.value)
    elif isinstance(node, nodes.Wikilink):
      _link(node, out, namespaces)
    elif isinstance(node, nodes.ExternalLink):
      if node.title is not None:
        _render(node.title, out, namespaces)
      elif not node.brackets:
        out.append(str(node.url))
    elif isinstance(node, nodes.Heading):
      inner = _Out(out.verbatim)
      _render(node.title, inner, namespaces)
      title = " ".join("".join(inner).split())
      if title:
        out.append(f"\n\n{_HEADING}{node.level}{title}\n\n")
    elif isinstance(node, nodes.Tag):
      _tag(node, out, namespaces)
    elif isinstance(node, nodes.HTMLEntity):
      try:
        out.append(node.normalize())
      except (ValueError, OverflowError):  # a number that is no character
        continue
    # Templates, their arguments and comments show nothing.


def _link(node: Any, out: _Out, namespaces: Collection[str]) -> None:
  title = str(node.title).strip()
  if title.startswith(":"):
    title = title[1:]
  elif title.partition(":")[0].strip().lower() in namespaces and ":" in title:
    return
  if node.text is not None and str(node.text).strip():
    _render(node.text, out, namespaces)
  else:
    out.append(title)


def _tag(node: Any, out: _Out, namespaces: Collection[str]) -> None:
  name = str(node.tag).strip().lower()
  if name in _DROPPED:
    return
  if node.wiki_markup and name in ("li", "dt", "dd"):
    at_start = not out or not out[-1] or out[-1].endswith("\n")
    out.append("- " if name == "li" else ":" if name == "dd" and not at_start else "")
    return
  if name == "math" and node.contents is not None:
    out.keep(f"${str(node.contents).strip()}$")
    return
  if node.contents is not None:
    if name in ("nowiki", "pre", "code", "syntaxhighlight", "source"):
      out.keep(str(node.contents).strip("\n"))
    else:
      _render(node.contents, out, namespaces)
  if name in _ENDS_LINE:
    out.append("\n")


def _headings(text: str) -> str:
  """Without the marks, and without headings below which nothing stands."""
  lines = text.split("\n")
  kept: list[str] = []
  below = 0  # the level of the heading that follows with text under it; 7: text itself
  for line in reversed(lines):
    if line.startswith(_HEADING):
      level = int(line[1])
      if below > level:
        kept.append(line[2:])
        below = level
    else:
      kept.append(line)
      if line.strip():
        below = 7
  return _BLANK.sub("\n\n", "\n".join(reversed(kept))).strip()

"""LaTeX to text: one paper's files to the words of its body, formulas kept as LaTeX."""

import functools
import posixpath
import re
from collections.abc import Mapping
from typing import Any

_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*?(?:\n[ \t]*|\Z)")
_INPUT = re.compile(
  r"\\(?:input|include|subfile)\s*\{([^{}]*)\}|\\(?:sub)?import\*?\s*\{([^{}]*)\}\s*\{([^{}]*)\}"
  r"|\\input\s+([^\s{}\\]+)"
)
_BODY = re.compile(r"\\begin\s*\{document\}(.*?)(?:\\end\s*\{document\}|\Z)", re.DOTALL)
_TITLE = re.compile(r"\\title\s*(?:\[[^\]]*\])?\s*\{")
_BEGIN_MACRO = re.compile(
  r"\\(?:(?:re|provide)?newcommand\*?|DeclareRobustCommand\*?)\s*\{?\\([A-Za-z]+)\}?\s*\{"
  r"|\\def\s*\\([A-Za-z]+)\s*\{"
)
_DROPPED = (
  "thebibliography comment tikzpicture pgfpicture filecontents CCSXML tabular tabularx tabular*"
)
_DROP = re.compile(
  r"\\begin\s*\{(" + "|".join(map(re.escape, _DROPPED.split())) + r")\}.*?\\end\s*\{\1\}", re.DOTALL
)
_MAX_CHARACTERS = 20_000_000  # of an expanded paper: files that include each other would not end
_MAX_DEPTH = 20
# Macros that show nothing here, with what they take: * a star, [ an option, { an argument.
_SILENT = {
  **dict.fromkeys(
    ["cite", "citep", "citet", "citealp", "citealt", "citeauthor", "citeyear", "nocite"], "*[[{"
  ),
  **dict.fromkeys(
    ["label", "bibliography", "bibliographystyle", "pagestyle", "thispagestyle", "index"], "{"
  ),
  **dict.fromkeys(
    ["maketitle", "centering", "tableofcontents", "newpage", "clearpage", "appendix"], ""
  ),
  **dict.fromkeys(["author", "thanks", "affiliation", "email", "date", "jaxlmdrop"], "[{"),
  **dict.fromkeys(["vspace", "hspace", "includegraphics"], "*[{"),
  "footnotemark": "[",
}
_BLANK = re.compile(r"[ \t]*\n[ \t]*(?:\n[ \t]*)+")
_SPACES = re.compile(r"(?<=\S)[ \t]{2,}")
_BEFORE_MARK = re.compile(r"[ ~\u00a0]+([.,;:)])")
_MARKER = re.compile(r"\\documentclass|\\documentstyle")


def is_whole(source: str) -> bool:
  """Whether a file is a document of its own."""
  return bool(_MARKER.search(source)) and "{document}" in source


def main_file(sources: Mapping[str, str], hint: str = "") -> str | None:
  """Which file of a paper is the one to begin with.

  Of those that hold a whole document, not one that another includes; by its name, then nearest to
  the root, then the longest.
  """
  whole = {n: s for n, s in sources.items() if is_whole(without_comments(s))}
  included = {
    found
    for name, source in whole.items()
    for found in _included(without_comments(source), name, sources)
    if found != name
  }
  choice = [name for name in whole if name not in included] or list(whole)
  usual = ("main", "ms", "paper", "article", "manuscript", hint.lower())

  def rank(name: str) -> tuple[bool, int, int, str]:
    stem = posixpath.splitext(posixpath.basename(name))[0].lower()
    return stem not in usual, name.count("/"), -len(sources[name]), name

  return min(choice, key=rank, default=None)


def without_comments(source: str) -> str:
  """Comments, with the line end and indentation that TeX drops with them."""
  return _COMMENT.sub(r"\1", source)


def expand(name: str, sources: Mapping[str, str]) -> tuple[str, int]:
  """(the file with all it includes, without comments; how many included files are missing)."""
  missing = 0
  size = 0
  root = posixpath.dirname(name)

  def one(name: str, depth: int) -> str:
    nonlocal missing, size
    source = without_comments(sources[name])
    size += len(source)
    if depth and is_whole(source):  # a subfile has a preamble of its own
      body = _BODY.search(source)
      source = body.group(1) if body else ""

    def include(match: re.Match[str]) -> str:
      nonlocal missing
      found = _resolve(match, posixpath.dirname(name), root, sources)
      if found is None:
        missing += 1
        return ""
      if depth >= _MAX_DEPTH or size > _MAX_CHARACTERS:
        return ""
      return one(found, depth + 1)

    return _INPUT.sub(include, source)

  return one(name, 0), missing


def _included(source: str, name: str, sources: Mapping[str, str]) -> list[str]:
  here = posixpath.dirname(name)
  found = (_resolve(match, here, here, sources) for match in _INPUT.finditer(source))
  return [one for one in found if one]


def _resolve(match: re.Match[str], here: str, root: str, sources: Mapping[str, str]) -> str | None:
  plain, folder, file, bare = match.groups()
  target = (plain or bare or posixpath.join(folder or "", file or "")).strip().strip('"')
  for base in dict.fromkeys((root, here)):
    path = posixpath.normpath(posixpath.join(base, target))
    for candidate in (path, path + ".tex"):
      if candidate in sources:
        return candidate
  return None


def to_text(source: str) -> tuple[str, str]:
  """(title, text) of an expanded document. Raises whatever pylatexenc raises."""
  found = _BODY.search(source)
  body = found.group(1) if found else source
  macros = _macros(source)
  title = ""
  start = _TITLE.search(source)
  if start:
    title = " ".join(_convert(_with(_braces(source, start.end()), macros)).split())
  body = re.sub(r"\\title\s*(\[[^\]]*\])?\s*\{", r"\\jaxlmdrop{", _DROP.sub("", body))
  text = _convert(_with(body, macros))
  text = _SPACES.sub(" ", _BEFORE_MARK.sub(r"\1", text))
  return title, _BLANK.sub("\n\n", text).strip()


def _macros(source: str) -> dict[str, str]:
  """Macros without arguments."""
  found: dict[str, str] = {}
  for match in _BEGIN_MACRO.finditer(source):
    body = _braces(source, match.end())
    if len(body) < 500 and "#" not in body:
      found[match.group(1) or match.group(2)] = body
  return found


def _with(text: str, macros: dict[str, str]) -> str:
  """The text with macros replaced, also those in macros, three deep."""
  if not macros:
    return text
  pattern = re.compile(r"\\(" + "|".join(sorted(macros, key=len, reverse=True)) + r")(?![A-Za-z])")
  for _ in range(3):
    fresh = pattern.sub(lambda match: macros[match.group(1)], text)
    if fresh == text or len(fresh) > _MAX_CHARACTERS:
      break
    text = fresh
  return text


def _braces(text: str, start: int) -> str:
  """From behind an opening brace to the closing one."""
  depth = 1
  for at in range(start, min(len(text), start + 5000)):
    if text[at] in "{}" and text[at - 1] != "\\":
      depth += 1 if text[at] == "{" else -1
      if not depth:
        return text[start:at]
  return ""


def _convert(source: str) -> str:
  from pylatexenc.latexwalker import LatexWalker

  walker = LatexWalker(source, latex_context=_grammar(), tolerant_parsing=True)
  nodes, _, _ = walker.get_latex_nodes()
  text: str = _converter().nodelist_to_text(nodes)
  return text


@functools.cache
def _grammar() -> Any:
  from pylatexenc.latexwalker import get_default_latex_context_db
  from pylatexenc.macrospec import MacroSpec

  db = get_default_latex_context_db()
  db.add_context_category(
    "jaxlm", prepend=True, macros=[MacroSpec(name, spec) for name, spec in _SILENT.items()]
  )
  return db


@functools.cache
def _converter() -> Any:
  import logging

  from pylatexenc.latex2text import (
    EnvironmentTextSpec,
    LatexNodes2Text,
    MacroTextSpec,
    get_default_latex_context_db,
  )

  logging.getLogger("pylatexenc").setLevel(logging.ERROR)

  def heading(node: Any, l2tobj: Any) -> str:  # pylatexenc looks at the argument's name
    arguments = [a for a in node.nodeargd.argnlist if a is not None] if node.nodeargd else []
    text = l2tobj.nodelist_to_text(arguments[-1:])
    return f"\n\n{' '.join(text.split())}\n\n"

  def last(node: Any, l2tobj: Any) -> str:
    return str(l2tobj.nodelist_to_text([a for a in node.nodeargd.argnlist if a is not None][-1:]))

  headings = [
    "part",
    "chapter",
    "section",
    "subsection",
    "subsubsection",
    "paragraph",
    "subparagraph",
  ]
  db = get_default_latex_context_db()
  macros = [MacroTextSpec(name, simplify_repl=heading) for name in headings]
  macros.append(MacroTextSpec("href", simplify_repl=last))
  macros += [MacroTextSpec(name, discard=True) for name in _SILENT]
  macros += [
    MacroTextSpec(name, simplify_repl="[ref]") for name in ("ref", "eqref", "cref", "autoref")
  ]
  environments = [EnvironmentTextSpec(name, discard=True) for name in _DROPPED.split()]
  db.add_context_category("jaxlm", prepend=True, macros=macros, environments=environments)
  return LatexNodes2Text(latex_context=db, math_mode="verbatim", strict_latex_spaces=False)

"""Which licence a text states, as an SPDX identifier: by identifier lines and key phrases."""

import re
from collections.abc import Collection

_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+ ()-]+)")
_WORD = re.compile(r"[()]|[A-Za-z0-9][A-Za-z0-9.+-]*")
_FIELDS = (
  re.compile(r'"license"\s*:\s*"([^"\n]{2,80})"'),  # package.json, composer.json
  re.compile(r'^\s*license\s*=\s*"([^"\n]{2,80})"', re.MULTILINE),  # Cargo.toml, pyproject.toml
  re.compile(r'^\s*license\s*=\s*\{\s*text\s*=\s*"([^"\n]{2,80})"', re.MULTILINE),
  re.compile(r"^License(?:-Expression)?:\s*(\S.{1,80}?)\s*$", re.MULTILINE),  # PKG-INFO
)
_GNU = re.compile(
  r"under the terms of (?:version (?P<before>[0-9.]+) of )?(?:either )?the gnu "
  r"(?P<kind>affero |lesser |library )?general public licen[sc]e(?P<rest>.{0,200})"
)
_TITLES = (
  (re.compile(r"gnu affero general public license version (3)"), "AGPL-{}.0-only"),
  (re.compile(r"gnu lesser general public license version (2\.1)"), "LGPL-{}-only"),
  (re.compile(r"gnu lesser general public license version (3)"), "LGPL-{}.0-only"),
  (re.compile(r"gnu library general public license version (2)"), "LGPL-{}.0-only"),
  (re.compile(r"gnu general public license,? version ([123])"), "GPL-{}.0-only"),
  (re.compile(r"mozilla public license,? version ([12]\.[01])"), "MPL-{}"),
  (re.compile(r"apache license,? version (2\.0)"), "Apache-{}"),
  (re.compile(r"boost software license - version (1\.0)"), "BSL-{}"),
  (re.compile(r"eclipse public license -? ?v(?:ersion)? ?([12]\.0)"), "EPL-{}"),
  (re.compile(r"(?:cc0|creative commons(?: legal code)? cc0) (1\.0) universal"), "CC0-{}"),
  (re.compile(r"the artistic license (2\.0)"), "Artistic-{}"),
  (re.compile(r"python software foundation license version (2)"), "PSF-{}.0"),
)
_SHARED = "permission is hereby granted, free of charge, to any person obtaining a copy"
_ISC = re.compile(
  r"permission to use, copy, modify,? (?:and/or |and )?distribute this software(?: and its"
  r" documentation)? for any purpose with or without fee is hereby granted"
)
_BSD = re.compile(
  r"redistribution and use (?:in|of) (?:this software in )?source and binary forms,?"
  r" with or without"
)
_SPACE = re.compile(r"[\s#*/;\"'`<>|]+|--+|==+")
_ALIASES = {
  "mit license": "MIT",
  "the mit license": "MIT",
  "expat": "MIT",
  "apache 2.0": "Apache-2.0",
  "apache 2": "Apache-2.0",
  "apache license 2.0": "Apache-2.0",
  "apache license, version 2.0": "Apache-2.0",
  "apache software license": "Apache-2.0",
  "bsd 3-clause": "BSD-3-Clause",
  "bsd-3": "BSD-3-Clause",
  "bsd 2-clause": "BSD-2-Clause",
  "isc license": "ISC",
  "the unlicense": "Unlicense",
  "public domain": "LicenseRef-public-domain",
}


def spdx_line(head: str) -> str:
  """What a SPDX-License-Identifier line says, without what follows the expression, or ""."""
  found = _SPDX.search(head)
  kept: list[str] = []
  for word in _WORD.findall(found.group(1)) if found else ():
    joins = word in ("OR", "AND", "WITH", ")")
    if kept and joins is not (kept[-1] not in ("OR", "AND", "WITH", "(")):
      break
    kept.append(word)
  while kept and kept[-1] in ("OR", "AND", "WITH", "("):
    kept.pop()
  text = " ".join(kept).replace("( ", "(").replace(" )", ")")
  return text[1:-1] if text.startswith("(") and _balanced(text[1:-1]) else text


def of_metadata(text: str) -> str:
  """The licence that a package's metadata names (package.json, Cargo.toml, PKG-INFO …), or ""."""
  for field in _FIELDS:
    found = field.search(text)
    if found:
      said = found.group(1).strip()
      return _ALIASES.get(said.lower(), said.replace("/", " OR "))
  return ""


def of_text(text: str) -> str:
  """The licence that a licence file or the head of a source file states, or "".

  Several in one text are joined with AND: all of them bind.
  """
  said = spdx_line(text)
  if said:
    return said
  plain = _SPACE.sub(" ", text[:60_000].lower())
  for title, name in _TITLES:
    found = title.search(plain, 0, 500)
    if found:
      return name.format(found.group(1))
  return " AND ".join(_phrases(plain))


def _phrases(plain: str) -> list[str]:
  found = []
  gnu = _GNU.search(plain)
  if gnu:
    found.append(_gnu(gnu))
  if "licensed under the apache license, version 2.0" in plain:
    found.append("Apache-2.0")
  if re.search(r"terms of the mozilla public license,? v\. ?2\.0", plain):
    found.append("MPL-2.0")
  if _SHARED in plain:
    found.append("MIT" if "permission notice shall be included" in plain else "MIT-0")
  if _ISC.search(plain):
    found.append("ISC" if "provided that the above copyright notice" in plain else "0BSD")
  if _BSD.search(plain):
    found.append(_bsd(plain))
  if "psf license agreement for python" in plain or "python software foundation license v" in plain:
    found.append("PSF-2.0")
  if "altered source versions must be plainly marked" in plain:
    found.append("Zlib")
  if "this is free and unencumbered software released into the public domain" in plain:
    found.append("Unlicense")
  if "boost software license, version 1.0" in plain:
    found.append("BSL-1.0")
  return found


def _gnu(found: re.Match[str]) -> str:
  kind = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL"}.get(found["kind"] or "", "GPL")
  rest = found["rest"] or ""
  version = found["before"] or ""
  if not version:
    named = re.search(r"version ([0-9](?:\.[0-9])?)|\bv([0-9](?:\.[0-9])?)", rest)
    version = (named.group(1) or named.group(2)) if named else "1"
  version = version.rstrip(".")
  later = "any later version" in rest or "or later" in rest
  return f"{kind}-{version if '.' in version else version + '.0'}-{'or-later' if later else 'only'}"


def _bsd(plain: str) -> str:
  if "all advertising materials mentioning" in plain:
    return "BSD-4-Clause"
  if re.search(r"neither the names? |may not be used to endorse", plain):
    return "BSD-3-Clause"
  return "BSD-2-Clause" if "redistributions in binary form must" in plain else "BSD-1-Clause"


def is_allowed(expression: str, allowed: Collection[str]) -> bool:
  """Whether an SPDX expression can be met with the licences of a list: one of OR, all of AND."""
  names = {name.lower() for name in allowed}
  text = re.sub(r"\s+WITH\s+[\w.-]+", "", expression.strip())
  while (flat := re.sub(r"^\((.*)\)$", r"\1", text)) != text and _balanced(flat):
    text = flat.strip()
  for word, combine in ((" OR ", any), (" AND ", all)):
    parts = _split(text, word)
    if len(parts) > 1:
      return combine(is_allowed(part, allowed) for part in parts)
  return text.strip().lower() in names


def _balanced(text: str) -> bool:
  depth = 0
  for character in text:
    depth += (character == "(") - (character == ")")
    if depth < 0:
      return False
  return depth == 0


def _split(text: str, word: str) -> list[str]:
  """At a word that stands outside of parentheses."""
  parts, depth, start, i = [], 0, 0, 0
  while i < len(text):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0 and text.startswith(word, i):
      parts.append(text[start:i])
      i = start = i + len(word)
      continue
    i += 1
  return [*parts, text[start:]]

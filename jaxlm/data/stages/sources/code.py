"""Code of folders, archives and git repositories, with the licence that each file is under."""

import hashlib
import posixpath
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep.documents import Counts, Document
from jaxlm.data.stages.sources import archives, code_files, licences
from jaxlm.data.stages.sources.archives import Entry, GitTree
from jaxlm.data.stages.sources.base import Source
from jaxlm.data.stages.sources.config import CodeSourceConfig, Secrets
from jaxlm.data.stages.sources.secrets import SecretFinder
from jaxlm.errors import UserError

_HEAD = 4096  # characters in which a file states its licence


class CodeSource(Source[CodeSourceConfig]):
  """Each of config.paths is a tree; each of its files a document or counted by reason."""

  def files(self, counts: Counts | None = None) -> Iterator[Path]:
    yield from dict.fromkeys(Path(name).expanduser() for name in self.config.paths)

  def fingerprint(self) -> str:
    """Of the files' names, sizes and times; of a git tree, its commit."""
    digest = hashlib.sha256()
    for root in self.files():
      tree = self._git(root)
      if tree is not None:
        digest.update(f"{root}\0{tree.commit}\n".encode())
      elif root.is_dir():
        for entry in archives.folder_entries(root, self._exclude, Counts()):
          time = (root / entry.name).stat().st_mtime_ns
          line = f"{root}\0{entry.name}\0{entry.size}\0{time}\n"
          digest.update(line.encode(errors="replace"))
      else:
        info = root.stat()
        digest.update(f"{root}\0{info.st_size}\0{info.st_mtime_ns}\n".encode())
    return digest.hexdigest()

  def _git(self, root: Path) -> GitTree | None:
    if not root.is_dir():
      return None
    bare = archives.is_bare(root)
    if not bare and self.config.revision is None:
      return None
    if not bare and not (root / ".git").exists():
      raise UserError(f"{root}: no git repository, but revision={self.config.revision!r} is set")
    return GitTree(root, self.config.revision or "HEAD")

  def _tree(self, root: Path) -> tuple[Callable[[Counts], Iterator[Entry]], dict[str, Any]]:
    """(what lists the files, what all documents of it have in common)."""
    tree = self._git(root)
    if tree is not None:
      common = {"repository_url": tree.url, "date": tree.date, "revision": tree.commit}
      return tree.entries, common
    if root.is_dir():
      return lambda counts: archives.folder_entries(root, self._exclude, counts), {}
    if archives.is_archive(root):
      return lambda counts: archives.entries(root, counts), {}
    raise UserError(f"{root}: no folder, archive or git repository; correct the source's paths")

  def read(self, file: Path) -> Iterator[Document]:
    listed, common = self._tree(file)
    # Twice through the tree: an archive may hold its licence at the end.
    near = _Licences(listed)
    finder = SecretFinder(self.config.secret_keywords)
    number = 0
    for entry in listed(self.counts):
      number += 1
      self.counts.meet()
      where = f"{file}#{entry.name}"
      reason, text = self._text(entry)
      if reason:
        self.counts.skip(reason, where)
        if reason == "extension":
          extension = posixpath.splitext(entry.name)[1].lower()
          self.counts.unknown_extensions[extension or "(none)"] += 1
        continue
      licence = licences.of_text(text[:_HEAD]) or near.of(entry.name) or self.config.licence
      if not licence and not self.config.keep_unlicensed:
        self.counts.skip("no licence", where)
        continue
      allowed = self.config.licences
      if licence and allowed and not licences.is_allowed(licence, allowed):
        self.counts.skip(f"licence {licence[:60]}", where)
        continue
      origin = {
        **common,
        "url": _url(common, entry.name),
        "id": f"{file.name}/{entry.name}",
        "path": entry.name,
        "repository": file.name,
        "licence": licence,
        "format": "code",
        "code_language": code_files.language(entry.name),
      }
      found = finder.find(text)
      if found:
        origin["secrets"] = len(found)
        if self.config.secrets is Secrets.DROP:
          self.counts.skip("secrets", where)
          continue
        if self.config.secrets is Secrets.REPLACE:
          text = finder.replace(text, found)
      yield Document(where, text, origin)
    if not number:
      self.counts.meet()
      self.counts.skip("empty tree", str(file))

  def _text(self, entry: Entry) -> tuple[str, str]:
    """(why a file is not kept or "", its text)."""
    language = code_files.language(entry.name)
    if code_files.is_vendored(entry.name):
      return "vendored", ""
    if code_files.is_lock(entry.name):
      return "lock file", ""
    if language is None:
      return "extension", ""
    if self.config.languages and language not in self.config.languages:
      return "language", ""
    if entry.size > self.config.max_file_bytes:
      return "too large", ""
    data = entry.read()
    if b"\0" in data[:8192]:
      return "binary", ""
    try:
      text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      if self.strict:
        raise UserError(f"{entry.name}: not UTF-8 at byte {error.start}") from None
      return "undecodable", ""
    if not text.strip():
      return "empty", ""
    if code_files.is_generated(entry.name, text):
      return "generated", ""
    if code_files.is_minified(text, self.config.max_line_length, self.config.max_mean_line):
      return "minified", ""
    return "", text


def _url(common: dict[str, Any], name: str) -> str:
  """The file's own address, "" where the repository has none: dedup takes equal ones for copies."""
  repository = common.get("repository_url")
  if not repository:
    return ""
  path = urllib.parse.quote(name, errors="surrogateescape")
  root = repository.rstrip("/").removesuffix(".git")
  return f"{root}/blob/{common['revision']}/{path}"


class _Licences:
  """The licence of each folder of a tree: by its licence files, else by package metadata."""

  def __init__(self, listed: Callable[[Counts], Iterator[Entry]]):
    stated: dict[str, list[tuple[str, str]]] = {}
    metadata: dict[str, str] = {}
    for entry in listed(Counts()):
      if entry.size > 1 << 20:
        continue
      folder = posixpath.dirname(entry.name)
      if posixpath.basename(folder).upper() == "LICENSES":  # as reuse.software lays them out
        folder = posixpath.dirname(folder)
      if code_files.is_licence_file(entry.name):
        name = licences.of_text(entry.read().decode(errors="replace")) or "unrecognised"
        stated.setdefault(folder, []).append((posixpath.basename(entry.name), name))
      elif code_files.is_package_metadata(entry.name) and folder not in metadata:
        name = licences.of_metadata(entry.read().decode(errors="replace"))
        if name:
          metadata[folder] = name
    self._of = {**metadata, **{folder: _joined(found) for folder, found in stated.items()}}

  def of(self, name: str) -> str:
    """The licence of the nearest folder above a file that states one, or ""."""
    folder = posixpath.dirname(name)
    while folder and folder not in self._of:
      folder = posixpath.dirname(folder)
    return self._of.get(folder, "")


def _joined(found: list[tuple[str, str]]) -> str:
  """LICENSE-MIT beside LICENSE-APACHE is a choice; licence files otherwise all bind."""
  names = list(dict.fromkeys(name for _, name in sorted(found)))
  if len(names) == 1:
    return names[0]
  choice = all("-" in file or "_" in file for file, _ in found)
  # COPYING.LESSER adds permissions to the GPL in COPYING.
  lesser = [name for name in names if name.startswith("LGPL")]
  if lesser and all(name.startswith(("LGPL", "GPL")) for name in names):
    return lesser[0]
  return (" OR " if choice else " AND ").join(f"({n})" if " " in n else n for n in names)

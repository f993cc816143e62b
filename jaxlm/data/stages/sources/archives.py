"""The files inside folders, tar and zip archives and git repositories, read without unpacking."""

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import os
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.prep import files
from jaxlm.data.prep.documents import Counts
from jaxlm.data.stages.sources.base import damaged
from jaxlm.errors import UserError

TAR = (".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".txz")
ARCHIVES = (*TAR, ".zip")
BROKEN = (*files.BROKEN_STREAM, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error)


@dataclasses.dataclass
class Entry:
  """A file of a tree. name: its path below the root. read: its bytes, callable until the next."""

  name: str
  size: int
  read: Callable[[], bytes]


def is_archive(file: Path) -> bool:
  return file.name.lower().endswith(ARCHIVES)


def entries(file: Path, counts: Counts) -> Iterator[Entry]:
  """The files of an archive. Damaged ones, also those cut short, are a UserError."""
  try:
    if file.name.lower().endswith(".zip"):
      yield from _zip(file, counts)
    else:
      yield from _tar(file, counts)
  except UserError:
    raise
  except BROKEN as error:
    raise damaged(file, error) from None


def _tar(file: Path, counts: Counts) -> Iterator[Entry]:
  openers: dict[str, Any] = {".tgz": gzip.open, ".tbz2": bz2.open, ".txz": lzma.open}
  opener = openers.get(file.suffix.lower())
  with contextlib.ExitStack() as stack:
    opened = files.open_stream(file) if opener is None else opener(file, "rb")
    stream = stack.enter_context(opened)
    with tarfile.open(fileobj=stream, mode="r|") as archive:
      while (member := archive.next()) is not None:
        name = member.name.removeprefix("./")
        if member.isreg():
          yield Entry(name, member.size, lambda m=member: archive.extractfile(m).read())  # type: ignore
        elif not member.isdir():
          counts.meet()
          counts.skip("not a regular file", f"{file}#{name}")
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
    # tarfile takes an archive that ends inside a header for whole: whole ones end in zeros.
    tail: bytes = getattr(archive.fileobj, "buf", b"")[-512:]
    while block := stream.read(1 << 20):
      tail = (tail + block)[-512:]
    if tail.strip(b"\0") or not tail:
      raise damaged(file, "cut short: the end mark is missing")


def _zip(file: Path, counts: Counts) -> Iterator[Entry]:
  with zipfile.ZipFile(file) as archive:
    for member in sorted(archive.infolist(), key=lambda m: m.filename):
      if member.is_dir():
        continue
      if member.flag_bits & 1:
        counts.meet()
        counts.skip("encrypted", f"{file}#{member.filename}")
        continue
      yield Entry(member.filename, member.file_size, lambda m=member: archive.read(m))  # type: ignore


def folder_entries(root: Path, exclude: Path, counts: Counts) -> Iterator[Entry]:
  """The files below a folder; hidden and cache directories are counted, not entered."""
  walked = Counts()
  for file in files.walk(root, exclude, walked):
    yield Entry(str(file.relative_to(root)), file.stat().st_size, file.read_bytes)
  walked.meet(sum(walked.skipped.values()))
  counts.add(walked)


class GitTree:
  """The files of one commit, read from the repository's objects: no checkout, no network."""

  def __init__(self, root: Path, revision: str):
    self.root = root
    said = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}")
    self.commit = said.strip()
    if not self.commit:
      raise UserError(f"{root}: no commit {revision!r}; correct the source's revision")
    self.date = self._git("show", "-s", "--format=%cI", self.commit).strip()
    url = self._git("config", "--get", "remote.origin.url").strip()
    scheme, found, rest = url.partition("://")
    # A password in the address is nobody's business.
    self.url = f"{scheme}://{rest.rpartition('@')[2]}" if found else ""

  def entries(self, counts: Counts) -> Iterator[Entry]:
    listing = self._git("ls-tree", "-r", "-z", "-l", "--full-tree", self.commit)
    with subprocess.Popen(
      [*self._command(), "cat-file", "--batch"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=_environment(),
    ) as process:
      for line in listing.split("\0"):
        if not line:
          continue
        about, _, name = line.partition("\t")
        mode, kind, oid, size = about.split()
        if kind != "blob" or mode == "120000":
          counts.meet()
          reason = "not a regular file" if kind == "blob" else "submodule"
          counts.skip(reason, f"{self.root}#{name}")
          continue
        yield Entry(name, int(size), lambda o=oid, p=process: _blob(p, o, self.root))  # type: ignore

  def _command(self) -> list[str]:
    return ["git", "-c", "safe.directory=*", "-c", "protocol.allow=never", "-C", str(self.root)]

  def _git(self, *words: str) -> str:
    try:
      done = subprocess.run(
        [*self._command(), *words], capture_output=True, env=_environment(), check=False
      )
    except FileNotFoundError:
      raise UserError(f"{self.root}: a git repository, but git is not installed") from None
    if done.returncode and words[0] not in ("rev-parse", "config"):
      said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
      raise UserError(f"{self.root}: git {words[0]}: {said[:200]}")
    return done.stdout.decode(errors="surrogateescape")


def is_bare(root: Path) -> bool:
  """Whether a folder is a git repository without working files."""
  return (root / "HEAD").is_file() and (root / "objects").is_dir() and (root / "refs").is_dir()


def _environment() -> dict[str, str]:
  return {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


def _blob(process: "subprocess.Popen[bytes]", oid: str, root: Path) -> bytes:
  assert process.stdin is not None and process.stdout is not None
  process.stdin.write(oid.encode() + b"\n")
  process.stdin.flush()
  head = process.stdout.readline().split()
  if len(head) != 3:
    raise damaged(root, f"object {oid} is missing")
  data = process.stdout.read(int(head[2]) + 1)
  if len(data) != int(head[2]) + 1:
    raise damaged(root, f"object {oid} is cut short")
  return data[:-1]

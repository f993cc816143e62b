"""What all sources share: which files they read, and books that balance."""

import abc
import hashlib
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxlm.data.prep import files
from jaxlm.data.prep.documents import Counts, Document
from jaxlm.errors import UserError

if typing.TYPE_CHECKING:
  from jaxlm.data.stages.sources.config import SourceConfig

_C = TypeVar("_C", bound="SourceConfig")


class Source(abc.ABC, Generic[_C]):
  """A corpus that reads its files one by one, each without knowing of the others.

  A subclass has `extensions` and `read`, which calls `counts.meet()` once for each record before
  it decides about it, and then either yields a document or calls `counts.skip`.

  Args:
    strict: what can not be decoded is a UserError, not a counted skip.
    exclude: a directory that is not read.
  """

  extensions: tuple[str, ...] = ()  # of files in folders; () takes all

  def __init__(self, config: _C, *, strict: bool, exclude: str):
    self.config = config
    self.strict = strict
    self.counts = Counts()
    self._exclude = Path(exclude).resolve() if exclude else Path("/dev/null")
    for name in getattr(config, "paths", ()):
      if not Path(name).expanduser().exists():
        raise UserError(f"{name}: no such file or folder; correct the source's paths")

  @abc.abstractmethod
  def read(self, file: Path) -> Iterator[Document]:
    """The documents of one file. UserError names the file where it is damaged."""

  def takes(self, file: Path) -> bool:
    """Whether a file of a folder is read."""
    name = file.name.lower()
    return not self.extensions or name.endswith(self.extensions)

  def files(self, counts: Counts | None = None) -> Iterator[Path]:
    """All files to read, each once: paths in the order given, the files of a folder sorted."""
    counts = Counts() if counts is None else counts
    seen: set[Path] = set()
    for name in getattr(self.config, "paths", ()):
      root = Path(name).expanduser()
      if not root.is_dir():
        found: Iterator[Path] = iter([root])
      else:
        found = self._folder(root, counts)
      for file in found:
        if file not in seen:
          seen.add(file)
          yield file

  def _folder(self, root: Path, counts: Counts) -> Iterator[Path]:
    walked = Counts()
    for file in files.walk(root, self._exclude, walked):
      if self.takes(file):
        yield file
      else:
        walked.skip("extension", str(file))
        walked.unknown_extensions[file.suffix.lower() or "(none)"] += 1
    walked.meet(sum(walked.skipped.values()))
    counts.add(walked)

  def fingerprint(self) -> str:
    """Of the files' names, sizes and times (their content is not read)."""
    digest = hashlib.sha256()
    for file in self.files():
      info = file.stat()
      line = f"{file}\0{info.st_size}\0{info.st_mtime_ns}\n"
      digest.update(line.encode(errors="replace"))
    return digest.hexdigest()

  def of_file(self, file: Path) -> Iterator[Document]:
    """The documents of one file that are not too small."""
    used = False
    for document in self.read(file):
      if len(document.text.encode("utf-8", "replace")) < self.config.min_doc_bytes:
        self.counts.skip("too small" if document.text.strip() else "empty", document.id)
        continue
      used = True
      yield self._complete(document)
    self.counts.files_read += used

  def documents(self) -> Iterator[Document]:
    """All documents, in the order of the files, up to config.max_bytes."""
    left = self.config.max_bytes
    for file in self.files(self.counts):
      for document in self.of_file(file):
        yield document
        if left is not None:
          left -= len(document.text.encode("utf-8", "replace"))
          if left <= 0:
            return

  def _complete(self, document: Document) -> Document:
    """With what the config says of the whole source, where the record said nothing."""
    said = {"licence": self.config.licence, "language": self.config.language}
    missing = {k: v for k, v in said.items() if v and not document.origin.get(k)}
    known = {k: v for k, v in document.origin.items() if v not in ("", None)}
    return Document(document.id, document.text, {**known, **missing})

  def undecodable(self, where: str, why: str) -> None:
    """Counts a record that is no text."""
    if self.strict:
      raise UserError(f"{where}: {why}; convert it to UTF-8, or set strict=false to skip it")
    self.counts.skip("undecodable", where)


def open_bytes(file: Path) -> Any:
  """files.open_stream, its errors one line that names the file."""
  return _Named(file)


class _Named:
  def __init__(self, file: Path):
    self._file = file
    self._inner = files.open_stream(file)

  def __enter__(self) -> typing.BinaryIO:
    try:
      return self._inner.__enter__()
    except OSError as error:
      raise UserError(f"{self._file}: {error.strerror or error}") from None

  def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
    self._inner.__exit__(None, None, None)
    if isinstance(error, files.BROKEN_STREAM) and not isinstance(error, UserError):
      raise damaged(self._file, error) from None


def damaged(file: str | os.PathLike[str], error: object) -> UserError:
  """The error of a file that can not be read to its end."""
  said = " ".join(str(error).split()) or type(error).__name__
  return UserError(f"{file}: damaged ({said[:200]}); fetch it again")

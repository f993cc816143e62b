"""A run's directory.

config.json    the resolved config; every other command reads this, never a Python file
tokenizer/     a copy of the tokenizer, so that the run can be used without its dataset
checkpoints/   see checkpoint
metrics.jsonl  one line of numbers a step: the source of truth
tensorboard/   the same for TensorBoard
"""

import fcntl
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import IO

from jaxlm.errors import UserError


class Workdir:
  """Paths of a run's directory, and the lock that keeps two runs out of it."""

  def __init__(self, path: str | Path):
    self.path = Path(path).absolute()
    self.config = self.path / "config.json"
    self.tokenizer = self.path / "tokenizer"
    self.checkpoints = self.path / "checkpoints"
    self.metrics = self.path / "metrics.jsonl"

  def exists(self) -> bool:
    """Whether a run was started here."""
    return self.config.is_file()

  def require(self) -> "Workdir":
    """Itself. Raises UserError where no run was started."""
    if not self.path.is_dir():
      raise UserError(f"--workdir={self.path}: no such directory; train first, or check the path")
    if not self.exists():
      raise UserError(f"--workdir={self.path}: no run here (config.json is missing); train first")
    return self

  def lock(self) -> "Lock":
    """Makes the directory and locks it. Raises UserError if it can't be made or is in use."""
    if self.path.exists() and not self.path.is_dir():
      raise UserError(f"--workdir={self.path}: is a file; choose another directory")
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise UserError(f"--workdir={self.path}: can't be made ({error.strerror})") from error
    # A first start that ended while it compiled leaves an empty checkpoints/.
    strangers = [p.name for p in self.path.iterdir() if p.name != Lock.NAME and not self._empty(p)]
    if strangers and not self.exists():
      raise UserError(
        f"--workdir={self.path}: holds other files ({sorted(strangers)[0]}) and no run; choose an"
        " empty or a new directory"
      )
    return Lock(self.path)

  def _empty(self, path: Path) -> bool:
    return path == self.checkpoints and path.is_dir() and not any(path.iterdir())

  def copy_tokenizer(self, source: Path) -> None:
    """Copies a tokenizer's directory here, if there is none yet."""
    if not self.tokenizer.is_dir():
      temporary = self.path / ".tokenizer.tmp"
      shutil.rmtree(temporary, ignore_errors=True)
      shutil.copytree(source, temporary)
      temporary.rename(self.tokenizer)


class Lock:
  """Held while a run writes to a directory; the system lets go of it when the process ends."""

  NAME = ".lock"

  def __init__(self, directory: Path):
    self._file: IO[str] = (directory / self.NAME).open("a+")
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._file.seek(0)
      owner = self._file.read().strip() or "another process"
      self._file.close()
      raise UserError(
        f"--workdir={directory}: in use by {owner}; wait for it or stop it, or choose another"
      ) from error
    self._file.truncate(0)
    self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    self._file.flush()

  def __enter__(self) -> "Lock":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._file.close()

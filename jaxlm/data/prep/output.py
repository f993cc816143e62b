"""The directory of a dataset: made whole beside its place, or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
  """A directory to build in; at the end it becomes `output`, on an error it is removed."""
  output.parent.mkdir(parents=True, exist_ok=True)
  building = output.parent / f".{output.name}.tmp-{os.getpid()}"
  old = output.parent / f".{output.name}.tmp-{os.getpid()}-old"
  building.mkdir()
  try:
    yield building
    if output.exists():
      output.rename(old)
    try:
      building.rename(output)
    except BaseException:
      if old.exists():
        old.rename(output)
      raise
  finally:
    shutil.rmtree(building, ignore_errors=True)
    if output.exists():
      shutil.rmtree(old, ignore_errors=True)


def remove_abandoned(output: Path) -> None:
  """Removes what killed runs left behind: their directories carry the ids of dead processes."""
  prefix = f".{output.name}.tmp-"
  if not output.parent.is_dir():
    return
  for path in output.parent.iterdir():
    pid = path.name.removeprefix(prefix).partition("-")[0]
    if not path.name.startswith(prefix) or not pid.isdigit() or int(pid) == os.getpid():
      continue
    try:
      os.kill(int(pid), 0)
    except ProcessLookupError:
      if path.name.endswith("-old") and not output.exists():
        path.rename(output)  # killed between the two renames: the old dataset was complete
      else:
        shutil.rmtree(path, ignore_errors=True)
    except PermissionError:  # alive, another user's
      continue

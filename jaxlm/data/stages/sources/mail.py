"""Mails: mbox files, .eml files and folders of one mail a file."""

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any, BinaryIO

from jaxlm.data.prep.documents import Document
from jaxlm.data.stages.sources.base import Source, open_bytes
from jaxlm.data.stages.sources.config import MailSourceConfig

_HEADER = re.compile(rb"^[A-Za-z][A-Za-z0-9-]{1,60}:[ \t]?\S?")
_FROM = re.compile(rb"^From \S+.*\d{4}")
_MAX_MAIL = 1 << 26  # bytes; a file of other things that begins like an mbox ends here


class MailSource(Source[MailSourceConfig]):
  """A document for each mail: subject and text. Who wrote and got it is not kept."""

  def read(self, file: Path) -> Iterator[Document]:
    with open_bytes(file) as stream:
      first = stream.readline(1 << 16)
      if not first:
        self.counts.meet()
        self.counts.skip("empty file", str(file))
      elif _FROM.match(first):
        yield from self._mbox(stream, file)
      elif _HEADER.match(first):
        yield from self._mail(first + stream.read(_MAX_MAIL), str(file))
      else:
        self.counts.meet()
        self.counts.skip("not a mail", str(file))

  def _mbox(self, stream: BinaryIO, file: Path) -> Iterator[Document]:
    """A mail begins at a line "From …" behind an empty one; ">From" in a text was "From"."""
    lines: list[bytes] = []
    size = number = 0
    blank = False
    for line in stream:
      if blank and _FROM.match(line):
        number += 1
        yield from self._mail(b"".join(lines), f"{file}#{number}")
        lines, size = [], 0
      else:
        size += len(line)
        if size <= _MAX_MAIL:
          lines.append(line[1:] if line.startswith(b">From ") else line)
      blank = line in (b"\n", b"\r\n")
    yield from self._mail(b"".join(lines), f"{file}#{number + 1}")

  def _mail(self, data: bytes, where: str) -> Iterator[Document]:
    self.counts.meet()
    try:
      message = email.message_from_bytes(data, policy=email.policy.default)
      assert isinstance(message, EmailMessage)
      self._count_attachments(message)
      kind, body = _body(message)
      about = _about(message)
    except Exception as error:  # the module raises many kinds on mails that break the rules
      self.counts.skip(f"unparseable ({type(error).__name__})", where)
      return
    if not body.strip():
      self.counts.skip("no text", where)
      return
    origin = {**about, "id": where}
    if kind == "html":
      yield Document(where, body, {**origin, "format": "html"})
    else:
      subject = about["title"]
      yield Document(where, f"{subject}\n\n{body.strip()}" if subject else body.strip(), origin)

  def _count_attachments(self, message: EmailMessage) -> None:
    for part in message.walk():
      if part.get_content_disposition() == "attachment":
        self.counts.other["attachment"] += 1


def _body(message: EmailMessage) -> tuple[str, str]:
  """("plain" or "html", the text that a reader would see)."""
  part = message.get_body(("plain", "html"))
  if part is None:
    return "plain", ""
  return part.get_content_subtype(), _decode(part)


def _decode(part: Any) -> str:
  """By the character set that the mail names, else UTF-8, else Latin-1: old mails name none."""
  data = part.get_payload(decode=True) or b""
  for charset in (part.get_content_charset(), "utf-8"):
    try:
      if charset:
        return data.decode(charset)
    except (LookupError, UnicodeDecodeError):
      continue
  return data.decode("latin-1")


def _about(message: EmailMessage) -> dict[str, str]:
  subject = message.get("Subject", "")
  found = {"title": " ".join(str(subject).encode("utf-8", "replace").decode().split())}
  try:
    date = message["Date"]
    when = date.datetime if date is not None else None
    if when and when.year < 1000:  # of three digits: 1900 is to be added (RFC 5322, 4.3)
      when = when.replace(year=when.year + 1900)
    found["date"] = when.isoformat() if when else ""
  except (ValueError, AttributeError, TypeError, IndexError):
    pass
  return found

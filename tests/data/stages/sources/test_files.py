"""Tables, books, pages and mails of folders."""

import gzip
import io
import zipfile

import pytest

from jaxlm.data.stages.sources.config import (
  EpubSourceConfig,
  HtmlSourceConfig,
  MailSourceConfig,
  TableSourceConfig,
)
from jaxlm.errors import UserError
from tests.data.stages.sources.made import read


def _put(tmp_path, files):
  for name, data in files.items():
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
  return (str(tmp_path),)


def test_tables(tmp_path):
  """Broken by fields over 128 KiB, the limit of Python's own reader."""
  long = "word " * 50_000
  files = {
    "a.csv": f'\ufeffbody,link,head\n"Two\nlines",http://a,Title\n,x,\n{long},,\n"bad",row\n',
    "b.tsv": b'head\tlink\tbody\nh\tu\tGr\xfc\xdfe\n\tv\t"gut"\n',
    "c.csv.gz": gzip.compress(b"body,link,head\nx,,y\n"),
    "d.csv": b"",
  }
  config = TableSourceConfig(
    paths=_put(tmp_path, files), text_columns=("head", "body"), columns={"url": "link"}
  )
  found, counts = read(config)
  assert [d.text for d in found] == ["Title\n\nTwo\nlines", long, "gut", "y\n\nx"]
  assert [d.origin.get("url") for d in found] == ["http://a", None, "v", None]
  assert counts.skipped == {
    "empty": 1,
    "another number of fields": 1,
    "undecodable": 1,
    "empty file": 1,
  }


@pytest.mark.parametrize(
  "name, data, message",
  [
    ("a.csv", b"id,txt\n1,x\n", r"a\.csv: no column 'text' \(it has: id, txt\)"),
    ("a.csv", b'text\n"never closed\n', r"a\.csv: damaged \(line 2: unexpected end"),
    ("a.csv", b"text\nab\0c\n", r"a\.csv: binary"),
    ("a.csv.gz", gzip.compress(b"text\n" + b"x\n" * 999)[:-9], r"a\.csv\.gz: damaged"),
  ],
  ids=["column", "quote", "binary", "gzip"],
)
def test_broken_tables_are_one_line(tmp_path, name, data, message):
  with pytest.raises(UserError, match=message) as error:
    read(TableSourceConfig(paths=_put(tmp_path, {name: data})))
  assert "\n" not in str(error.value)


def epub_bytes(chapters, extra=()):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as book:
    book.writestr("mimetype", "application/epub+zip")
    book.writestr(
      "META-INF/container.xml",
      '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
      '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
    )
    items = "".join(
      f'<item id="c{i}" href="text/c%20{i}.xhtml" media-type="application/xhtml+xml"/>'
      for i in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in reversed(range(len(chapters))))
    book.writestr(
      "OEBPS/book.opf",
      '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
      "<metadata><dc:title>A Book</dc:title><dc:language>en-GB</dc:language>"
      "<dc:identifier>urn:x</dc:identifier><dc:date>1890</dc:date>"
      "<dc:rights>Public domain</dc:rights>"
      f'</metadata><manifest>{items}<item id="i" href="i.png" media-type="image/png"/></manifest>'
      f"<spine>{spine}</spine></package>",
    )
    for i, text in enumerate(chapters):
      book.writestr(f"OEBPS/text/c {i}.xhtml", f"<html><body><p>{text}</p></body></html>")
    for name, data in extra:
      book.writestr(name, data)
  return out.getvalue()


DRM = (
  "META-INF/encryption.xml",
  '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>'
  '<enc:EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc"/>'
  "</enc:EncryptedData></encryption>",
)


def test_books_are_read_in_the_order_of_their_spine(tmp_path):
  """Broken by the order of the archive, in which the last chapter may come first."""
  whole = epub_bytes(["the end", "the beginning &amp; more"])
  files = {
    "a.epub": whole,
    "b.epub": epub_bytes(["x"], extra=[DRM]),
    "c.epub": whole[:-200],
    "d.epub": b"",
    "e.epub": epub_bytes([""]),
  }
  (found,), counts = read(EpubSourceConfig(paths=_put(tmp_path, files)))
  assert found.text == "the beginning & more\n\nthe end"
  assert found.origin == {
    "id": "urn:x",
    "title": "A Book",
    "date": "1890",
    "licence": "Public domain",
    "language": "en",
  }
  assert counts.skipped == {"encrypted": 1, "damaged EPUB": 2, "no text": 1}


def test_pages_of_a_folder(tmp_path):
  files = {
    "a.html": '<html lang="de-AT"><head><meta charset="latin-1">'
    '<link rel="canonical" href="https://a.at/x"><p>Größe'.encode("latin-1"),
    "b.htm.gz": gzip.compress(b"<p>b"),
    "c.html": b"\0\1",
    "d.html": b" \n",
    "e.txt": b"not read",
  }
  config = HtmlSourceConfig(paths=_put(tmp_path, files))
  found, counts = read(config)
  assert "Größe" in found[0].text
  assert found[0].origin == {"format": "html", "language": "de", "url": "https://a.at/x"}
  assert counts.skipped == {"binary": 1, "empty": 1, "extension": 1}
  config.base_url = "https://docs.org/"
  assert [d.origin["url"][-6:] for d in read(config)[0]] == ["a.html", "htm.gz"]


PLAIN = (
  "From: a@b.c\nTo: d@e.f\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nMessage-ID: <1@b>\n"
  "Date: Mon, 01 Jan 2024 10:00:00 +0000\nContent-Type: text/plain; charset=iso-8859-1\n"
  "Content-Transfer-Encoding: quoted-printable\n\nk=F6nnen\n\n>From here on\n"
)
HTML = "From: a@b.c\nSubject: s\nContent-Type: text/html\n\n<p>hello\n"
BOTH = (
  'Subject: two\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="X"\n\n--X\n'
  'Content-Type: multipart/alternative; boundary="Y"\n\n--Y\n'
  "Content-Type: text/html\n\n<b>rich</b>\n"
  "--Y\nContent-Type: text/plain\n\nplain\n--Y--\n--X\nContent-Type: image/png\n"
  "Content-Disposition: attachment\nContent-Transfer-Encoding: base64\n\niVBORw==\n--X--\n"
)


def test_mails(tmp_path):
  """Broken by decoding with what Python guesses, and by a line "From" that ends a mail early."""
  mbox = "".join(f"From a@b Mon Jan  1 10:00:00 2024\n{m}\n" for m in (PLAIN, HTML, BOTH))
  files = {
    "all.mbox": mbox,
    "empty.eml": "Subject: nothing\n\n",
    "notes.txt": "just a line\n",
    "raw": b"Subject: old\nContent-Type: text/plain; charset=unknown-8bit\n\n" + b"\xe9t\xe9",
    "void": "",
  }
  found, counts = read(MailSourceConfig(paths=_put(tmp_path, files)))
  assert found[0].text == "Grüße\n\nkönnen\n\nFrom here on"
  assert found[0].origin["date"] == "2024-01-01T10:00:00+00:00"
  assert found[1].origin["format"] == "html" and found[1].text.startswith("<p>hello")
  assert found[2].text == "two\n\nplain"
  assert found[3].text == "old\n\nété"
  assert not any("a@b.c" in str(d.origin) + d.text for d in found)
  assert counts.skipped == {"no text": 1, "not a mail": 1, "empty file": 1}
  assert counts.other == {"attachment": 1}

"""Articles in JATS XML and in PDF."""

import io
import zipfile

import pytest

from jaxlm.data.stages.sources.config import JatsSourceConfig, PdfSourceConfig
from tests.data.stages.sources.made import read

ARTICLE = """<?xml version="1.0"?>
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "JATS-archivearticle1.dtd">
<article xmlns:xlink="http://www.w3.org/1999/xlink" xml:lang="en"><front><article-meta>
<article-id pub-id-type="pmc">123</article-id><article-id pub-id-type="doi">10.1/x</article-id>
<title-group><article-title>A <italic>short</italic> title</article-title></title-group>
<contrib-group><contrib><name><surname>Writer</surname></name></contrib></contrib-group>
<pub-date pub-type="epub"><day>7</day><month>3</month><year>2021</year></pub-date>
<pub-date pub-type="ppub"><year>2022</year></pub-date>
<permissions><license LICENCE</license></permissions>
<abstract><p>We show&nbsp;it<xref ref-type="bibr" rid="r1">[1]</xref>.</p></abstract>
</article-meta></front>
<body><sec><label>1</label><title>Methods</title><p>Of H<sub>2</sub>O, <inline-formula>
<alternatives><tex-math>\\documentclass{x}\\begin{document}$a+b$\\end{document}</tex-math>
<mml>ab</mml></alternatives></inline-formula> and more.</p><list><list-item><p>one</p></list-item>
<list-item><p>two</p></list-item></list>
<table-wrap><caption><p>Tab</p></caption><table><tr><td>cell</td></tr></table></table-wrap>
<fig><caption><p>What is seen.</p></caption><graphic/></fig></sec></body>
<back><ref-list><ref><mixed-citation>Somebody 1999</mixed-citation>
</ref></ref-list></back></article>
"""
CC = 'xlink:href="https://creativecommons.org/licenses/by-nc/4.0/">'


def _article(licence=CC):
  return ARTICLE.replace("LICENCE", licence).encode()


def test_an_article_without_its_references(tmp_path):
  (tmp_path / "a.nxml").write_bytes(_article())
  (found,), _ = read(JatsSourceConfig(paths=(str(tmp_path),)))
  assert found.text == (
    "A short title\n\nWe show\u00a0it.\n\nMethods\n\nOf H2O, $a+b$ and more.\n\n- one\n- two\n\n"
    "What is seen."
  ).replace("\u00a0", " ")
  assert found.origin == {
    "id": "PMC123",
    "url": "https://doi.org/10.1/x",
    "title": "A short title",
    "date": "2021-03-07",
    "licence": "CC-BY-NC-4.0",
    "language": "en",
  }


@pytest.mark.parametrize(
  "licence, name",
  [
    (
      ">Under the <ext-link xlink:href='http://creativecommons.org/publicdomain/zero/1.0/'/>",
      "CC0-1.0",
    ),
    (
      "><license-p>Creative Commons Attribution-ShareAlike License 3.0.</license-p>",
      "CC-BY-SA-3.0",
    ),
    ("><license-p>the Creative Commons Attribution Non-Commercial License</license-p>", "CC-BY-NC"),
    ('license-type="publisher"><license-p>Ask us.</license-p>', "publisher"),
  ],
)
def test_licences(tmp_path, licence, name):
  (tmp_path / "a.xml").write_bytes(_article(licence))
  (found,), _ = read(JatsSourceConfig(paths=(str(tmp_path),)))
  assert found.origin["licence"] == name


def test_articles_of_an_archive_and_broken_ones(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    archive.writestr("1.xml", _article())
    archive.writestr("2.xml", _article()[:-200])
    archive.writestr("3.xml", b"<html><p>x</p></html>")
    archive.writestr("4.jpg", b"x")
  found, counts = read(JatsSourceConfig(paths=(str(tmp_path),)))
  assert len(found) == 1
  assert counts.skipped == {"broken XML": 1, "not an article": 1}
  assert counts.other == {"other file of an archive": 1}


def pdf_bytes(pages, password=None):
  """A PDF of pages with that text each; "" makes an empty one."""
  from pypdf import PdfWriter
  from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

  writer = PdfWriter()
  font = DictionaryObject()
  for key, value in {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}.items():
    font[NameObject("/" + key)] = NameObject("/" + value)
  for text in pages:
    page = writer.add_blank_page(612, 792)
    lines = "".join(f"({line}) Tj 0 -14 Td " for line in text.split("\n")) if text else ""
    content = DecodedStreamObject()
    content.set_data(f"BT /F1 12 Tf 72 700 Td {lines}ET".encode())
    page[NameObject("/Contents")] = writer._add_object(content)
    page[NameObject("/Resources")] = DictionaryObject(
      {NameObject("/Font"): DictionaryObject({NameObject("/F1"): writer._add_object(font)})}
    )
  writer.add_metadata({"/Title": "The title", "/CreationDate": "D:20200102030405Z"})
  if password is not None:
    writer.encrypt(password, algorithm="RC4-128")
  out = io.BytesIO()
  writer.write(out)
  return out.getvalue()


def test_pdf(tmp_path):
  """Broken by taking a scanned book for an empty one, without a word."""
  whole = pdf_bytes(["First page with a divi-\nded word", "", "Third page"])
  files = {
    "a.pdf": whole,
    "b.pdf": pdf_bytes(["", ""]),
    "c.pdf": pdf_bytes(["locked"], password="x"),
    "d.pdf": whole[: len(whole) // 3],
    "e.pdf": b"",
    "f.pdf": b"no PDF at all",
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  (found,), counts = read(PdfSourceConfig(paths=(str(tmp_path),)))
  assert found.text == "First page with a divided word\n\nThird page"
  assert found.origin["title"] == "The title" and found.origin["date"].startswith("2020-01-02")
  assert found.origin["pages_without_text"] == 1
  assert counts.other["page without text"] == 3
  assert counts.skipped == {"no text layer": 1, "encrypted": 1, "damaged PDF": 2, "empty file": 1}

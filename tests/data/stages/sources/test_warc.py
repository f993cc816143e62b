"""WARC and WET archives: no record lost, none cut short taken for whole."""

import gzip
import zlib

import pytest

from jaxlm.data.stages.sources.config import WarcSourceConfig
from jaxlm.errors import UserError
from tests.data.stages.sources.made import HTML, read, warc_bytes

XHTML = b'<?xml version="1.0"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><p>x</p>'
BODY = b"<html><body>" + b"<p>some words</p>" * 300


def _file(tmp_path, data, name="a.warc"):
  file = tmp_path / name
  file.write_bytes(data)
  return WarcSourceConfig(paths=(str(file),))


def test_every_kind_of_record_is_kept_or_counted(tmp_path):
  """Broken by a list of types without XHTML's: half of the pages of an archive went unseen."""
  pages = [
    ("200 OK", HTML, BODY),
    ("200 OK", [("Content-Type", "text/xml")], XHTML),
    ("200 OK", [("Content-Type", "application/xhtml+xml")], XHTML),
    ("200 OK", [], XHTML),
    ("200 OK", [("Content-Type", "text/xml")], b"<?xml version='1.0'?><rss></rss>"),
    ("200 OK", [("Content-Type", "image/png")], b"\x89PNG"),
    ("404 Not Found", HTML, BODY),
    ("200 OK", HTML, b"  "),
    ("200 OK", [*HTML, ("Content-Encoding", "gzip")], gzip.compress(BODY)),
    ("200 OK", [("Content-Type", "text/html; charset=koi8-r")], "<html>привет".encode("koi8-r")),
  ]
  found, counts = read(_file(tmp_path, warc_bytes(pages, gz=False)))
  assert counts.skipped == {"not HTML": 2, "not status 200": 1, "empty": 1}
  assert counts.other == {"warcinfo record": 1}
  assert [d.origin["url"][-1] for d in found] == list("012389")
  assert found[4].text == BODY.decode()
  assert found[5].text == "<html>привет"
  assert found[0].origin["format"] == "html" and found[0].origin["date"].startswith("20")


def test_bodies_are_decoded_where_they_still_are_encoded(tmp_path):
  """Broken by archives that kept "Transfer-Encoding: chunked" over a body that is not."""
  chunked = b"5;x=y\r\n<html\r\n3\r\n>hi\r\n0\r\n\r\n"
  both = [*HTML, ("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")]
  packed = gzip.compress(BODY)
  pages = [
    ("200 OK", both[:2], chunked),
    ("200 OK", both[:2], b"<!doctype html>hi"),
    ("200 OK", both, b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)),
    ("200 OK", both, BODY),
    ("200 OK", [*HTML, ("Content-Encoding", "deflate")], zlib.compress(BODY)),
    ("200 OK", [*HTML, ("Content-Encoding", "compress")], b"\x1f\x9d"),
  ]
  found, counts = read(_file(tmp_path, warc_bytes(pages, gz=True), "a.warc.gz"))
  whole = BODY.decode()
  assert [d.text for d in found] == ["<html>hi", "<!doctype html>hi", whole, whole, whole]
  assert counts.skipped == {"unknown content encoding": 1}


def test_texts_of_wet_files(tmp_path):
  """Broken by reading responses only: a WET file has none."""
  data = warc_bytes([("", [], "Größe\n".encode())], gz=True, kind="conversion")
  (found,), _ = read(_file(tmp_path, data, "a.warc.wet.gz"))
  assert found.text == "Größe\n"
  assert found.origin["language"] == "de" and "format" not in found.origin


@pytest.mark.parametrize("gz", [False, True])
def test_an_archive_cut_short_anywhere_is_refused(tmp_path, gz):
  """Broken by a reader that takes the end of the file for the end of the archive."""
  pages = [("200 OK", HTML, BODY)] * 4
  whole = warc_bytes(pages, gz=gz)
  # Of these very bytes: ids are random, so that the packed size of a record differs each time.
  record = len(whole) - whole.rindex(b"\x1f\x8b\x08" if gz else b"WARC/1.")
  for lost in (1, 2, 4, 5, 7, record // 3, record // 2, record - 40, record - 3):
    with pytest.raises(UserError, match=r"a\.warc: damaged") as error:
      read(_file(tmp_path, whole[:-lost]))
    assert "\n" not in str(error.value)


def test_what_is_no_archive(tmp_path):
  with pytest.raises(UserError, match=r"a\.warc: damaged"):
    read(_file(tmp_path, b"hello, this is no archive\n" * 50))
  assert read(_file(tmp_path, b""))[1].skipped == {"empty file": 1}


def test_licence_of_the_config_is_set(tmp_path):
  config = _file(tmp_path, warc_bytes([("200 OK", HTML, BODY)], gz=True), "a.warc.gz")
  config.licence = "CC0-1.0"
  (found,), counts = read(config)
  assert found.origin["licence"] == "CC0-1.0" and counts.files_read == 1

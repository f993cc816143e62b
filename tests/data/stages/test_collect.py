"""The stage collect: books that show a loss, ids that are unique, bad input counted or named."""

import dataclasses
import gzip
import hashlib
import json
import os
import sys
import tracemalloc

import numpy as np
import pytest
import zstandard

from jaxlm.data.prep.config import CorpusConfig, TextSourceConfig
from jaxlm.data.prep.documents import Counts, Document
from jaxlm.data.stages import base, collect
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.sources import seen
from jaxlm.data.stages.sources.config import (
  HtmlSourceConfig,
  LatexSourceConfig,
  Long,
  TableSourceConfig,
  WarcSourceConfig,
)
from jaxlm.data.stages.sources.cut import cut
from jaxlm.errors import UserError
from tests.data.stages.sources.made import HTML, warc_bytes


@dataclasses.dataclass(kw_only=True)
class Given(CorpusConfig):
  """A source of given documents. lose: one record of that number is forgotten."""

  documents: list = dataclasses.field(default_factory=list)
  lose: int = -1
  max_doc_bytes: int = 2**20

  def build(self, *, strict, exclude):
    return _Given(self)


class _Given:
  def __init__(self, config):
    self.config = config
    self.counts = Counts()

  def fingerprint(self):
    return "x"

  def documents(self):
    for number, document in enumerate(self.config.documents):
      self.counts.meet()
      if number != self.config.lose:
        # No config can hold a lone surrogate.
        yield dataclasses.replace(document, text=document.text.replace("LONE", "\ud800"))


def _run(tmp_path, sources, **options):
  config = CurationConfig(
    name="c", output=str(tmp_path / "out"), sources=sources, max_drop_ratio=1.0
  )
  directory = collect.run(config, **options)
  return directory, base.read_stage(directory), list(base.iter_documents(directory))


def test_a_record_that_is_neither_kept_nor_counted_stops_the_stage(tmp_path):
  """Broken by books that take what was kept and dropped for what there was."""
  source = Given(documents=[Document(str(i), "text") for i in range(4)], lose=2)
  with pytest.raises(UserError, match="read x: 4 documents went in, but 3 kept"):
    _run(tmp_path, {"x": source})


def test_a_source_of_which_nothing_comes_stops_the_stage(tmp_path):
  """Broken by a sum over all sources, in which the loss of a small one does not show."""
  (tmp_path / "web").mkdir()
  (tmp_path / "web" / "page.png").write_bytes(b"x")
  web = WarcSourceConfig(paths=(str(tmp_path / "web"),))
  sources = {"x": Given(documents=[Document("a", "text")]), "web": web}
  config = CurationConfig(name="c", output=str(tmp_path / "out"), sources=sources)
  with pytest.raises(UserError, match=r"\['web'\]: no document came of 1 records \(extension: 1\)"):
    collect.run(config)
  (tmp_path / "web" / "page.png").unlink()
  with pytest.raises(UserError, match="nothing is there"):
    collect.run(config)


def test_ids_are_unique_and_duplicates_counted(tmp_path):
  documents = [Document("a", "one"), Document("b", "two"), Document("c", "three", {"id": "a"})]
  _, record, found = _run(
    tmp_path, {"x": Given(documents=documents), "y": Given(documents=documents)}
  )
  assert [d["id"] for d in found] == ["a", "b"] * 2
  assert record["by_source"]["x"] == {"in": 3, "kept": 2}
  assert record["sources"]["x"]["named"] == {"duplicate id": ["c"]}


def test_ids_seen_take_eight_bytes(monkeypatch):
  """Broken by a set of strings, of which a billion fit no memory."""
  monkeypatch.setattr(seen, "_RECENT", 1000)
  ids = seen.SeenIds()
  tracemalloc.start()
  assert all(ids.add(f"https://example.org/a/rather/long/path/{i}") for i in range(20_000))
  used, _ = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert used < 20_000 * 8 * 3
  assert not any(ids.add(f"https://example.org/a/rather/long/path/{i}") for i in range(20_000))
  assert np.all(np.diff(ids._old.astype(object)) > 0)


def test_licences_and_years_of_each_source(tmp_path):
  documents = [
    Document("a", "x", {"licence": "MIT", "date": "2020-05-01"}),
    Document("b", "yy", {"licence": "MIT", "date": "2021"}),
    Document("c", "z"),
  ]
  _, record, found = _run(tmp_path, {"x": Given(documents=documents)})
  assert record["by_licence"]["x"] == {
    "MIT": {"documents": 2, "bytes": 3},
    "unknown": {"documents": 1, "bytes": 1},
  }
  assert record["by_year"]["x"] == {"2020": 1, "2021": 1, "unknown": 1}
  assert record["versions"]["pyarrow"]
  assert found[0]["metadata"] == {"licence": "MIT", "date": "2020-05-01", "source": "x"}


def test_long_documents_are_cut_without_losing_a_byte_or_counted(tmp_path):
  text = "a line of words\n" * 100 + "ü" * 5000
  html = Document("h", "<p>" * 2000, {"format": "html"})
  source = Given(documents=[Document("t", text), html], max_doc_bytes=1000)
  _, record, found = _run(tmp_path, {"x": source})
  assert "".join(d["text"] for d in found) == text
  assert all(len(d["text"].encode()) <= 1000 for d in found)
  assert found[0]["text"].endswith("\n")
  assert [d["id"] for d in found[:2]] == ["t", "t#part1"]
  assert record["ops"][0]["reasons"] == {"too long": 1}
  assert record["in"] == record["kept"] + 1


def test_long_rows_are_dropped_where_the_config_says_so(tmp_path):
  (tmp_path / "a.csv").write_text("text\nshort\n" + "x" * 5000 + "\n")
  source = TableSourceConfig(paths=(str(tmp_path / "a.csv"),), max_doc_bytes=1000, long=Long.DROP)
  _, record, found = _run(tmp_path, {"x": source})
  assert [d["text"] for d in found] == ["short"]
  assert record["ops"][0]["reasons"] == {"too long": 1}


def test_the_parts_of_a_cut_text_are_never_blank():
  parts = cut("a" * 60 + " " * 200 + "b" * 60, 64)
  assert "".join(parts) == "a" * 60 + " " * 200 + "b" * 60
  assert all(part.strip() for part in parts)


def test_limit_and_max_bytes_leave_the_books_balanced(tmp_path):
  """Broken by a record that was met, and then not taken."""
  (tmp_path / "a.csv").write_text("text\n" + "word\n" * 50)
  source = TableSourceConfig(paths=(str(tmp_path / "a.csv"),))
  _, record, _ = _run(tmp_path, {"x": source}, limit=7)
  assert record["in"] == record["kept"] == 7
  bounded = dataclasses.replace(source, max_bytes=9)
  _, record, _ = _run(tmp_path, {"x": bounded})
  assert record["kept"] == 3
  assert _run(tmp_path / "two", {"x": bounded}, workers=2)[1]["kept"] == 3


def _digest(directory):
  files = sorted((directory / "documents").iterdir())
  return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def test_workers_change_no_byte(tmp_path):
  """Broken by taking files in the order in which the workers finish them."""
  folder = tmp_path / "in"
  folder.mkdir()
  for i in range(5):
    pages = [("200 OK", HTML, b"<html>%d %d" % (i, j)) for j in range(40 if i == 0 else 3)]
    (folder / f"{i}.warc").write_bytes(warc_bytes([*pages, ("404 No", HTML, b"x")], gz=False))
  sources = {"x": WarcSourceConfig(paths=(str(folder),))}
  one, first, _ = _run(tmp_path / "1", sources)
  two, second, _ = _run(tmp_path / "2", sources, workers=2)
  assert first["kept"] == 52 and first["by_source"] == second["by_source"]
  assert first["ops"][0]["reasons"] == second["ops"][0]["reasons"] == {"not status 200": 5}
  assert _digest(one) == _digest(two)
  assert not (two / "work").exists()
  three, third, _ = _run(tmp_path / "3", sources, workers=2, limit=45)
  four, fourth, _ = _run(tmp_path / "4", sources, limit=45)
  assert third["kept"] == fourth["kept"] == 45
  assert _digest(three) == _digest(four) and not (three / "work").exists()


def test_a_damaged_file_is_named_by_workers_too(tmp_path):
  data = warc_bytes([("200 OK", HTML, b"<html>x" * 100)] * 3, gz=False)
  (tmp_path / "a.warc").write_bytes(data)
  (tmp_path / "b.warc").write_bytes(data[:-20])
  with pytest.raises(UserError, match=r"b\.warc: damaged"):
    _run(tmp_path, {"x": WarcSourceConfig(paths=(str(tmp_path),))}, workers=2)


def test_a_line_of_100_megabytes(tmp_path):
  """Broken by readers with a bound on lines, and by parts that are copied again and again."""
  size = 100_000_000
  (tmp_path / "a.txt").write_bytes(b"word " * (size // 5))
  (tmp_path / "b.jsonl").write_text(json.dumps({"text": "term " * (size // 5)}) + "\n")
  sources = {"x": TextSourceConfig(paths=(str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")))}
  config = CurationConfig(name="c", output=str(tmp_path / "out"), sources=sources)
  directory = collect.run(config)
  record = base.read_stage(directory)
  assert record["bytes_out"] == 2 * size
  longest = max(len(d["text"]) for d in base.iter_documents(directory))
  assert longest <= 2**20


def _parquet(rows):
  import io

  import pyarrow
  import pyarrow.parquet

  out = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.table({"text": rows}), out)
  return out.getvalue()


@pytest.mark.parametrize(
  "name, data",
  [
    ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000, mtime=0)[:-9]),
    ("a.jsonl.zst", zstandard.compress(b'{"text": "x"}\n' * 1000)[:-3]),
    ("a.parquet", _parquet(["x"] * 100)[:-50]),
    ("a.jsonl", b'{"text": "x"}\n{"text": "y'),
  ],
  ids=["gzip", "zstd", "parquet", "jsonl"],
)
def test_truncated_files_are_one_line_with_their_name(tmp_path, name, data):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
    _run(tmp_path, {"x": TextSourceConfig(paths=(str(tmp_path / name),))})
  assert "\n" not in str(error.value)


def test_what_is_no_text_is_counted(tmp_path):
  folder = tmp_path / "in"
  folder.mkdir()
  files = {
    "binary.txt": b"\0\1\2" * 100,
    "cut.txt.gz": gzip.compress(b"text " * 1000)[:-9],
    "empty.txt": b"",
    "good.txt": b"text",
    "latin.txt": "Größe".encode("latin-1"),
  }
  for name, data in files.items():
    (folder / name).write_bytes(data)
  _, record, found = _run(tmp_path, {"x": TextSourceConfig(paths=(str(folder),))})
  assert [d["text"] for d in found] == ["text"]
  assert record["ops"][0]["reasons"] == {"binary": 1, "empty": 1, "undecodable": 2}
  assert record["in"] == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_an_absent_package_is_named(tmp_path, monkeypatch, workers):
  """Broken by counting every document as one that can not be parsed."""
  (tmp_path / "a.tex").write_text("\\documentclass{a}\\begin{document}x\\end{document}")
  sources = {"x": LatexSourceConfig(paths=(str(tmp_path / "a.tex"),))}
  if workers == 2:  # in a fresh process, which nothing was taken from
    assert _run(tmp_path, sources, workers=2)[1]["kept"] == 1
    return
  monkeypatch.setitem(sys.modules, "pylatexenc.latexwalker", None)
  with pytest.raises(UserError, match=r"sources\['x'\]: pylatexenc.* is not installed"):
    _run(tmp_path, sources)


def test_names_of_files_that_are_no_utf_8(tmp_path):
  """Broken by writing them as they are: no line can hold them."""
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / os.fsdecode(b"a\xff.html")).write_text("<p>x")
  _, _, found = _run(tmp_path, {"x": HtmlSourceConfig(paths=(str(folder),))})
  assert found[0]["id"].endswith("a?.html")


def test_lone_surrogates_and_blank_texts_are_counted(tmp_path):
  documents = [Document("a", "x LONE"), Document("b", " \n"), Document("c", "good")]
  _, record, _ = _run(tmp_path, {"x": Given(documents=documents)})
  assert record["ops"][0]["reasons"] == {"empty": 1, "undecodable": 1}


def test_a_reused_stage_is_held_to_the_ratio_of_this_run(tmp_path):
  """Broken by a finished stage that is taken without a look at its books."""
  documents = [Document(str(i), "text" if i < 2 else " ") for i in range(8)]
  sources = {"x": Given(documents=documents), "y": Given(documents=documents[3:])}
  _run(tmp_path, sources)
  config = CurationConfig(name="c", output=str(tmp_path / "out"), sources=sources)
  with pytest.raises(UserError, match=r"config.sources\['y'\]: no document came of 5 records"):
    collect.run(config)
  config.sources = {"x": sources["x"]}
  assert collect.run(config) == collect.run(config)
  config.max_drop_ratio = 0.5
  with pytest.raises(UserError, match=r"collect removed 75\.0% .*max_drop_ratio=0\.5"):
    collect.run(config)

"""Reading: every format gives its text back, and nothing disappears without being counted."""

import bz2
import datetime
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.prep.files import kind_of, pieces
from jaxlm.data.prep.read import TextCorpus
from jaxlm.errors import UserError


def corpus(*paths: Path, strict: bool = False, exclude: str = "/nowhere/out", **values):
  config = TextSourceConfig(paths=tuple(map(str, paths)), **values)
  config.validate("config.source")
  return TextCorpus(config, strict=strict, exclude=exclude)


def texts(*paths: Path, **values) -> list[str]:
  return [d.text for d in corpus(*paths, **values).documents()]


COMPRESSORS = {
  "": bytes,
  ".gz": gzip.compress,
  ".zst": zstandard.compress,
  ".xz": lzma.compress,
  ".bz2": bz2.compress,
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_text_and_jsonl_compressed_or_not(tmp_path, ending):
  """Breaks when a reader changes line ends, drops a line, or ignores a compression."""
  text = "one\r\ntwo\n\nünï 😀\n"
  rows = [{"text": text, "n": 1}, {"text": "second"}, {"text": None}, {"text": ""}]
  lines = "\n".join(map(json.dumps, rows)) + "\n\n"
  (tmp_path / f"a.txt{ending}").write_bytes(COMPRESSORS[ending](text.encode()))
  (tmp_path / f"b.jsonl{ending}").write_bytes(COMPRESSORS[ending](lines.encode()))
  read = corpus(tmp_path)
  assert [d.text for d in read.documents()] == [text, text, "second"]
  assert read.counts.files_read == 2
  assert read.counts.skipped == {"empty": 2}


def test_several_frames_of_zst(tmp_path):
  """Appending to a .zst makes a second frame; a reader of one frame stops after the first."""
  data = zstandard.compress(b"first\n") + zstandard.compress(b"second\n")
  (tmp_path / "a.txt.zst").write_bytes(data)
  assert texts(tmp_path) == ["first\nsecond\n"]


@pytest.mark.parametrize("ending", [".gz", ".zst", ".xz", ".bz2"])
def test_truncated_compressed_file(tmp_path, ending):
  """zstandard's stream_reader returns the first half as if it were all."""
  whole = "".join(f"{i * i}\n" for i in range(50_000)).encode()
  data = COMPRESSORS[ending](whole)
  (tmp_path / f"a.txt{ending}").write_bytes(data[: len(data) // 2])
  (tmp_path / "b.txt").write_text("fine")
  read = corpus(tmp_path)
  assert [d.text for d in read.documents()] == ["fine"]
  assert read.counts.skipped == {"undecodable": 1}
  with pytest.raises(UserError, match=r"a\.txt.*can not be read to its end"):
    texts(tmp_path, strict=True)
  (tmp_path / f"a.jsonl{ending}").write_bytes(
    COMPRESSORS[ending](json.dumps({"text": whole.decode()}).encode())[:-20]
  )
  with pytest.raises(UserError, match=r"a\.jsonl"):
    texts(tmp_path)


def test_parquet(tmp_path):
  table = pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]})
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  read = corpus(tmp_path)
  assert [(d.id[-2:], d.text) for d in read.documents()] == [("#0", "one"), ("#2", "two")]
  assert read.counts.skipped == {"empty": 1}
  with pytest.raises(UserError, match=r"no column 'body' \(it has: text, n\)"):
    texts(tmp_path, text_field="body")
  with pytest.raises(UserError, match="column 'n' is int64"):
    texts(tmp_path, text_field="n")
  (tmp_path / "a.parquet").write_bytes(b"PAR1 broken")
  with pytest.raises(UserError, match="can not be read as Parquet"):
    texts(tmp_path)


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ('{"text": "a"', "not a JSON object"),
    ("[1]", "list, not a JSON object"),
    ('{"body": 1}', r"no field 'text' \(it has: body\)"),
    ('{"text": 5}', "is int, not a text"),
  ],
)
def test_broken_jsonl_names_file_and_line(tmp_path, line, message):
  (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
  with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{message}"):
    texts(tmp_path)


def test_jsonl_that_is_not_utf8_names_its_line(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
  with pytest.raises(UserError, match=r"a\.jsonl:2"):
    texts(tmp_path)


def test_lone_surrogate_in_jsonl_is_counted(tmp_path):
  """Legal JSON, but it can not be written as UTF-8: it would fail much later."""
  (tmp_path / "a.jsonl").write_text('{"text": "\\ud800"}\n{"text": "b"}\n')
  assert texts(tmp_path) == ["b"]
  with pytest.raises(UserError, match="surrogate"):
    texts(tmp_path, strict=True)


def test_folder_skips_and_counts(tmp_path):
  """Every file of the folder is either read or counted under a reason."""
  (tmp_path / "sub/deep").mkdir(parents=True)
  (tmp_path / ".git").mkdir()
  (tmp_path / "__pycache__").mkdir()
  (tmp_path / "__pycache__/x.py").write_text("cached")
  (tmp_path / ".git/config.txt").write_text("hidden")
  (tmp_path / ".hidden.txt").write_text("hidden")
  (tmp_path / "sub/deep/a.py").write_text("code")
  (tmp_path / "README").write_text("readme")
  (tmp_path / "b.md").write_text("tiny")
  (tmp_path / "c.txt").write_bytes(b"\x00\x01binary")
  (tmp_path / "d.txt").write_bytes(b"caf\xe9")
  (tmp_path / "e.txt").write_bytes(b"")
  (tmp_path / "f.txt").write_text(" \n\t\n ")
  (tmp_path / "g.bin").write_bytes(b"data")
  (tmp_path / "h.txt").symlink_to(tmp_path / "gone")
  (tmp_path / "loop").symlink_to(tmp_path)
  os.mkfifo(tmp_path / "pipe.txt")
  read = corpus(tmp_path)
  assert [d.text for d in read.documents()] == ["readme", "tiny", "code"]
  assert read.counts.files_read == 3
  assert read.counts.skipped == {
    "hidden": 2,
    "cache": 1,
    "binary": 1,
    "undecodable": 1,
    "empty": 2,
    "extension": 1,
    "unreadable": 1,
    "linked directory": 1,
    "not a regular file": 1,
  }
  assert read.counts.named["undecodable"] == [str(tmp_path / "d.txt")]
  assert read.counts.unknown_extensions == {".bin": 1}
  with pytest.raises(UserError, match=r"d\.txt: not UTF-8 at byte 3"):
    texts(tmp_path, strict=True)


def test_paths(tmp_path):
  """A named file is read whatever its extension, once, and a missing one is an error at once."""
  odd = tmp_path / "odd.xyz"
  odd.write_text("odd")
  assert texts(odd, odd) == ["odd"]
  assert texts(tmp_path) == []
  assert texts(tmp_path, extra_extensions=(".XYZ",)) == ["odd"]
  with pytest.raises(UserError, match="no such file or folder"):
    corpus(tmp_path / "none")


def test_output_inside_the_source_is_not_read(tmp_path):
  (tmp_path / "data/out").mkdir(parents=True)
  (tmp_path / "data/out/report.txt").write_text("made by us")
  (tmp_path / "a.txt").write_text("source")
  assert texts(tmp_path, exclude=str(tmp_path / "data/out")) == ["source"]


def test_byte_order_marks(tmp_path):
  (tmp_path / "a.txt").write_bytes("\ufeffutf-8".encode())
  (tmp_path / "b.txt").write_bytes("utf-16 ü".encode("utf-16"))
  (tmp_path / "c.txt").write_bytes(b"\xfe\xff" + "big".encode("utf-16-be"))
  assert texts(tmp_path) == ["utf-8", "utf-16 ü", "big"]


def test_size_limits(tmp_path):
  for i in range(6):
    (tmp_path / f"{i}.txt").write_text(str(i) * (10 + 10 * i))
  assert [len(t) for t in texts(tmp_path, min_doc_bytes=30)] == [30, 40, 50, 60]
  assert [len(t) for t in texts(tmp_path, max_bytes=25)] == [10, 20]


def test_order_does_not_depend_on_the_file_system(tmp_path):
  for name in ("b", "a", "c"):
    (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / f"dir_{name}").mkdir()
    (tmp_path / f"dir_{name}/x.txt").write_text("x" + name)
  assert texts(tmp_path) == ["a", "b", "c", "xa", "xb", "xc"]


def test_fingerprint_follows_the_files(tmp_path):
  file = tmp_path / "a.txt"
  file.write_text("a")
  first = corpus(tmp_path).fingerprint()
  assert corpus(tmp_path).fingerprint() == first
  file.write_text("ab")
  assert corpus(tmp_path).fingerprint() != first
  file.unlink()
  assert corpus(tmp_path).fingerprint() != first


TEXT = ("line of text ü\n" * 40 + "日本語" * 100 + "\n" + "tail").encode()


@pytest.mark.parametrize("limit", [64, 100, 1000, 10_000])
def test_pieces_of_one_document_are_the_stream(limit):
  """No byte lost, none twice, no piece over the limit, no character cut."""
  parts = list(pieces(io.BytesIO(TEXT), None, limit))
  assert b"".join(parts) == TEXT
  assert all(len(p) <= limit and p.decode() for p in parts)
  assert len(parts) >= len(TEXT) / limit


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
@pytest.mark.parametrize("limit", [64, 1000])
def test_separator(monkeypatch, block, limit):
  """A separator that lies across two blocks must be found."""
  monkeypatch.setattr("jaxlm.data.prep.files._BLOCK", block)
  documents = ["one", "", "two\nlines", "x" * 60]
  stream = io.BytesIO("<|end|>".join(documents).encode())
  assert [p.decode() for p in pieces(stream, b"<|end|>", limit)] == documents


def test_long_file_becomes_documents_cut_at_lines(tmp_path):
  (tmp_path / "a.txt").write_text("0123456789\n" * 100)
  read = list(corpus(tmp_path, max_doc_bytes=100).documents())
  assert "".join(d.text for d in read) == "0123456789\n" * 100
  assert all(d.text.endswith("\n") and len(d.text) == 99 for d in read[:-1])
  assert len({d.id for d in read}) == len(read)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("a.txt", "text"),
    ("A.TXT", "text"),
    ("a.tar.gz", None),
    ("a.py.zst", "text"),
    ("a.jsonl.gz", "jsonl"),
    ("a.ndjson", "jsonl"),
    ("a.parquet", "parquet"),
    ("a.parquet.gz", None),
    ("Makefile", "text"),
    ("README.pdf", None),
    ("noext", None),
    ("gz", None),
  ],
)
def test_kind_of(name, kind):
  assert kind_of(name) == kind


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_parquet_row_says_of_itself_is_kept(tmp_path, inside):
  """Broken by reading the text column alone; a record of .jsonl keeps the same."""
  day = datetime.datetime(2024, 5, 6, 7, 8, 9, 123456)
  said = {
    "url": ["https://p.org/0", None],
    "license": ["CC0-1.0", "MIT"],
    "language": ["en", ""],
    "score": [0.25, None],
    "date": pyarrow.array([day, None], pyarrow.timestamp("ns")),
  }
  columns = {"text": ["one", "two"], "id": ["a", "b"], "embedding": [[1.0], [2.0]], **said}
  if inside:
    arrays = [pyarrow.array(values) for values in said.values()]
    struct = pyarrow.StructArray.from_arrays(arrays[:4], names=list(said)[:4])
    columns = {"text": ["one", "two"], "id": ["a", "b"], "date": said["date"], "metadata": struct}
  pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
  first, second = corpus(tmp_path).documents()
  assert dict(first.origin) == {
    "id": "a",
    "url": "https://p.org/0",
    "licence": "CC0-1.0",
    "language": "en",
    "date": "2024-05-06T07:08:09.123456",
    "score": 0.25,
  }
  assert dict(second.origin) == {"id": "b", "licence": "MIT"}


def test_a_map_of_a_parquet_row_is_its_metadata(tmp_path):
  pairs = pyarrow.array(
    [[("url", "https://p.org/0")]], pyarrow.map_(pyarrow.string(), pyarrow.string())
  )
  table = pyarrow.table({"text": ["one"], "metadata": pairs})
  pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
  assert [dict(d.origin) for d in corpus(tmp_path).documents()] == [{"url": "https://p.org/0"}]


def test_scores_are_numbers(tmp_path):
  lines = [{"text": "a", "score": 3}, {"text": "b", "metadata": {"score": 0.5}}]
  lines += [{"text": "c", "score": "high"}, {"text": "d", "score": True}]
  (tmp_path / "a.jsonl").write_text(
    "\n".join(map(json.dumps, lines)) + '\n{"text":"e","score":NaN}'
  )
  found = [d.origin.get("score") for d in corpus(tmp_path).documents()]
  assert found == [3, 0.5, None, None, None]

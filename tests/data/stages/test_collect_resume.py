"""A `collect` that was killed goes on at its files: nothing read twice, books and bytes as ever."""

import json
import subprocess
import sys

import pytest

from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.stages import base, collect
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.sources import journal, table
from jaxlm.data.stages.sources.config import HtmlSourceConfig, TableSourceConfig
from jaxlm.errors import UserError

ROWS = 23  # of a file; files of documents hold 10


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
  monkeypatch.setattr(collect, "FILE_DOCUMENTS", 10)


@pytest.fixture
def config(tmp_path):
  """Three sources: tables (with ids twice, empty rows), texts that know no files, pages."""
  folders = [tmp_path / name for name in ("tables", "texts", "pages")]
  for folder in folders:
    folder.mkdir()
  for i in range(4):
    rows = [f"row {i} {j},{i * ROWS + j if j != 5 else 1}" for j in range(ROWS)] + [",7000"]
    (folders[0] / f"{i}.csv").write_text("text,id\n" + "\n".join(rows) + "\n")
  (folders[0] / "notes.doc").write_text("not read")
  lines = [json.dumps({"text": f"line {i}" if i % 6 else " "}) for i in range(35)]
  (folders[1] / "a.jsonl").write_text("\n".join(lines))
  for i in range(3):
    (folders[2] / f"{i}.html").write_text(f"<p>page {i}")
  tables, texts, pages = (str(folder) for folder in folders)
  return CurationConfig(
    name="c",
    output=str(tmp_path / "out"),
    max_drop_ratio=1.0,
    sources={
      "tables": TableSourceConfig(paths=(tables,), columns={"id": "id"}),
      "texts": TextSourceConfig(paths=(texts,)),
      "pages": HtmlSourceConfig(paths=(pages,)),
    },
  )


def outcome(directory):
  """All that must not depend on how often the stage was killed."""
  record = base.read_stage(directory)
  for one in [record, *record["ops"], *record["sources"].values()]:
    one.pop("seconds")
  return record


class Killed(BaseException):
  pass


def fail_at(monkeypatch, count):
  """The stage ends, as if killed, where it would write its count-th file of documents."""
  flush = collect._Writer.flush
  left = count

  def failing(self):
    nonlocal left
    left -= bool(self._batch)
    if left < 0:
      raise Killed
    flush(self)

  monkeypatch.setattr(collect._Writer, "flush", failing)
  return lambda: monkeypatch.setattr(collect._Writer, "flush", flush)


def expected(config, tmp_path, **options):
  config.output = str(tmp_path / "whole")
  found = outcome(collect.run(config, **options))
  config.output = str(tmp_path / "out")
  return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("limit", [None, 34])
def test_killed_at_any_file_the_bytes_and_books_are_the_same(
  config, tmp_path, monkeypatch, workers, limit
):
  """Breaks if ids met before the kill are forgotten, or what was skipped is counted twice."""
  whole = expected(config, tmp_path, limit=limit)
  if not limit:
    reasons = whole["sources"]["tables"]["reasons"]
    assert (reasons["duplicate id"], reasons["extension"], reasons["empty"]) == (4, 1, 4)
  for count in (0, 1, 3, 7) if workers == 1 else (2, 7):
    restore = fail_at(monkeypatch, count)
    with pytest.raises(Killed):
      collect.run(config, limit=limit, workers=workers)
    restore()
    again = collect.run(config, limit=limit, workers=workers)
    assert outcome(again) == whole
    assert not (again / "work").exists()
    for file in sorted(again.rglob("*"), reverse=True):
      file.rmdir() if file.is_dir() else file.unlink()


def test_files_that_are_done_are_not_read_again(config, monkeypatch):
  """Breaks if the stage starts over: then all four tables are read again."""
  restore = fail_at(monkeypatch, 6)  # the seventh file is full in the third table
  with pytest.raises(Killed):
    collect.run(config)
  restore()
  (directory,) = (d for d in (collect.Path(config.output)).iterdir())
  first = directory / "documents/00000.jsonl.gz"
  stamp = first.stat().st_mtime_ns
  read, original = [], table.TableSource.read

  def counted(self, file):
    read.append(file.name)
    return original(self, file)

  monkeypatch.setattr(table.TableSource, "read", counted)
  assert collect.run(config) == directory
  assert read == ["2.csv", "3.csv"]
  assert first.stat().st_mtime_ns == stamp


def test_a_source_that_is_finished_is_not_opened_again(config, monkeypatch):
  restore = fail_at(monkeypatch, 11)
  with pytest.raises(Killed):
    collect.run(config)
  restore()
  monkeypatch.setattr(table.TableSource, "read", lambda self, file: 1 / 0)
  assert base.read_stage(collect.run(config))["by_source"]["pages"] == {"in": 3, "kept": 3}


@pytest.mark.parametrize("damage", ["journal", "ids", "documents"])
def test_what_a_kill_left_damaged_is_made_again(config, tmp_path, monkeypatch, damage):
  """Breaks if a journal is believed whose ids or documents are not there."""
  whole = expected(config, tmp_path)
  restore = fail_at(monkeypatch, 4)
  with pytest.raises(Killed):
    collect.run(config)
  restore()
  (directory,) = (d for d in (collect.Path(config.output)).iterdir())
  if damage == "journal":
    file = directory / "work" / journal.JOURNAL
    file.write_bytes(file.read_bytes()[:-9])
  elif damage == "ids":
    (directory / "work" / journal.IDS).write_bytes(b"12345678")
  else:
    (directory / "documents/00001.jsonl.gz").unlink()
  assert outcome(collect.run(config)) == whole


def test_books_that_are_wrong_are_not_kept(config, tmp_path, monkeypatch):
  """Breaks if a source that lost records is taken for done in the next run."""
  whole = expected(config, tmp_path)
  original = table.TableSource.read

  def losing(self, file):
    for number, document in enumerate(original(self, file)):
      if number != 15:
        yield document

  monkeypatch.setattr(table.TableSource, "read", losing)
  with pytest.raises(UserError, match="documents were lost"):
    collect.run(config)
  monkeypatch.setattr(table.TableSource, "read", original)
  assert outcome(collect.run(config)) == whole


KILL = """
import os, signal, sys
from jaxlm.data.stages import collect
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.sources.config import TableSourceConfig
collect.FILE_DOCUMENTS = 10
flush = collect._Writer.flush
def killing(self):
  if self._number == 5:
    os.kill(os.getpid(), signal.SIGKILL)
  flush(self)
if len(sys.argv) > 3:
  collect._Writer.flush = killing
sources = {"tables": TableSourceConfig(paths=(sys.argv[1],), columns={"id": "id"})}
print(collect.run(CurationConfig(name="c", output=sys.argv[2], sources=sources)))
"""


def test_a_real_kill(config, tmp_path):
  def go(output, *more):
    command = [sys.executable, "-c", KILL, str(tmp_path / "tables"), str(tmp_path / output), *more]
    return subprocess.run(command, capture_output=True, text=True)

  assert go("out", "kill").returncode == -9
  (there,) = (tmp_path / "out").iterdir()
  assert len(list((there / "documents").glob("*.gz"))) == 5
  again, whole = go("out"), go("whole")
  assert again.returncode == whole.returncode == 0, again.stderr
  assert outcome(again.stdout.strip()) == outcome(whole.stdout.strip())

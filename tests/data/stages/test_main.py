"""The stages one after another, on text of our own: pages of a WARC, prose, and rubbish."""

import io
import json
import random
import subprocess
import sys

import pytest

from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.stages import base, clean, collect, runner
from jaxlm.data.stages.config import CurationConfig, WarcSourceConfig, gopher, minimal
from jaxlm.errors import UserError

SYLLABLES = (
  "ba",
  "cor",
  "del",
  "fen",
  "gor",
  "hal",
  "ist",
  "jun",
  "kem",
  "lor",
  "mar",
  "nel",
  "ost",
)
STOP = ("the", "be", "to", "of", "and", "that", "have", "with")


def prose(seed, sentences=36):
  """English enough for the rules: stop words, sentences that end, nothing said twice."""
  rng = random.Random(seed)

  def word():
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3))))

  def sentence():
    words = [rng.choice(STOP) if rng.random() < 0.4 else word() for _ in range(14)]
    return " ".join(words).capitalize() + "."

  return "\n".join(" ".join(sentence() for _ in range(3)) for _ in range(sentences // 3))


def write_warc(path, pages):
  from warcio.statusandheaders import StatusAndHeaders
  from warcio.warcwriter import WARCWriter

  with path.open("wb") as stream:
    writer = WARCWriter(stream, gzip=True)
    for i, (status, headers, body) in enumerate(pages):
      http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
      url = f"https://example.org/{i}"
      record = writer.create_warc_record(
        url, "response", payload=io.BytesIO(body), http_headers=http
      )
      writer.write_record(record)


def page(text):
  paragraphs = "".join(f"<p>{line}</p>" for line in text.splitlines())
  return f"<html><body><nav>Menu</nav><article>{paragraphs}</article></body></html>".encode()


HTML = [("Content-Type", "text/html; charset=utf-8")]


@pytest.fixture
def config(tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  for i in range(8):
    (folder / f"good{i}.txt").write_text(prose(i))
  (folder / "copy.txt").write_text(prose(3))
  (folder / "rubbish.txt").write_text("buy now\n" * 200)
  (folder / "mail.txt").write_text(prose(90) + "\nWrite to jane.roe@somewhere.net for the rest.")
  write_warc(
    tmp_path / "pages.warc.gz",
    [
      ("200 OK", HTML, page(prose(50))),
      ("200 OK", [], b'<?xml version="1.0"?>' + page(prose(51))),  # XHTML, no payload type
      ("200 OK", [("Content-Type", "image/png")], b"\x89PNG"),
      ("200 OK", [("Content-Type", "application/octet-stream")], b"<!-- x -->" + page(prose(53))),
      ("301 Moved", HTML, page(prose(52))),
      ("200 OK", HTML, b""),
    ],
  )
  return CurationConfig(
    name="test",
    output=str(tmp_path / "out"),
    sources={
      "text": TextSourceConfig(paths=(str(folder),)),
      "web": WarcSourceConfig(paths=(str(tmp_path / "pages.warc.gz"),)),
    },
  )


def test_collect_accounts_for_every_record(config):
  """Broken by records that are skipped without a count, as those of unknown payload type were."""
  record = base.read_stage(collect.run(config))
  assert record["by_source"]["web"] == {"in": 6, "kept": 3}
  assert record["ops"][0]["reasons"] == {"empty": 1, "not HTML": 1, "not status 200": 1}
  assert record["in"] == record["kept"] + record["dropped"]
  assert record["kept"] == 14


def test_clean_drops_what_it_should_and_says_why(config):
  directory = clean.run(collect.run(config), config.output, config.clean)
  kept = {d["id"].rsplit("/", 1)[-1]: d for d in base.iter_documents(directory)}
  assert {f"good{i}.txt" for i in range(8)} <= kept.keys()
  assert "rubbish.txt" not in kept
  removed = {
    d["id"].rsplit("/", 1)[-1]: d for d in base.iter_documents(directory, "gopher_repetition")
  }
  assert removed.keys() == {"rubbish.txt"} and removed["rubbish.txt"]["metadata"]["reason"]
  assert "jane.roe" not in kept["mail.txt"]["text"]
  pages = [d for d in kept.values() if d["metadata"]["source"] == "web"]
  assert len(pages) == 3
  assert all("<p>" not in d["text"] and "Menu" not in d["text"] for d in pages)


def test_tasks_change_no_byte_and_settings_make_a_new_directory(config):
  upstream = collect.run(config)
  one = clean.run(upstream, config.output, minimal())
  files = base.read_stage(one)["files"]
  stamp = (one / "stage.json").stat().st_mtime_ns
  assert clean.run(upstream, config.output, minimal()) == one
  assert (one / "stage.json").stat().st_mtime_ns == stamp  # used as it is
  (one / "stage.json").unlink()
  again = clean.run(upstream, config.output, minimal(), tasks=2)
  assert again == one and base.read_stage(again)["files"] == files
  assert clean.run(upstream, config.output, gopher()) != one


def test_too_much_removed_stops_with_the_op(config):
  with pytest.raises(UserError, match=r"clean removed .* most of them by gopher_repetition"):
    clean.run(collect.run(config), config.output, config.clean, max_drop_ratio=0.05)


def test_a_damaged_archive_is_named(config, tmp_path):
  file = tmp_path / "pages.warc.gz"
  file.write_bytes(file.read_bytes()[:-40])
  with pytest.raises(UserError, match=r"pages\.warc\.gz: damaged"):
    collect.run(config)


def test_the_command_from_files_to_report(config, tmp_path):
  """All stages, the report and its check; then nothing is done twice, and a slip is one line."""

  def command(*words):
    text = f"--config.sources['text'].paths={tmp_path / 'texts'}"
    flags = ["--config=configs/data/clean_text.py", text, f"--config.output={tmp_path / 'out'}"]
    return subprocess.run(
      [sys.executable, "-m", "jaxlm.data", *words, *flags], capture_output=True, text=True
    )

  done = command("run")
  assert done.returncode == 0, done.stderr[-2000:]
  assert "dedup: 10 documents in, 9 kept, 1 dropped" in done.stdout
  numbers = json.loads((tmp_path / "out" / "report.json").read_text())
  assert numbers
  assert (tmp_path / "out" / "report.html").stat().st_size > 1000
  assert command("verify").returncode == 0
  # An earlier config again: all is reused, and what is told is its own, not what was written last.
  fewer = "--config.dedup.exact=False", "--config.dedup.minhash.enabled=False"
  assert "dedup: 10 documents in, 10 kept" in command("run", *fewer).stdout
  for words in (("run",), ("report",)):
    assert command(*words).returncode == 0
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["documents_kept"] == numbers["documents_kept"] == 9
  copy = tmp_path / "texts" / "good3.txt"
  assert "removed by exact" in command("inspect", f"--doc={copy}").stdout
  wrong = command("celan")
  assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def die(document):
  import os
  import signal

  os.kill(os.getpid(), signal.SIGKILL)


def fail(document):
  raise ValueError("no such thing")


@pytest.mark.parametrize(
  "judge, message", [(die, "a worker was killed"), (fail, "ValueError: no such thing")]
)
def test_a_worker_that_dies_or_fails_ends_the_stage_in_one_line(tmp_path, judge, message):
  """Broken by a pool that waits for a killed worker forever."""
  from datatrove.data import Document
  from datatrove.pipeline.filters import LambdaFilter

  documents = [Document(text="a", id=str(i)) for i in range(2)]
  with pytest.raises(UserError, match=message):
    runner.Runner(tmp_path, "local", 2, 2)("broken", [documents, LambdaFilter(judge)])

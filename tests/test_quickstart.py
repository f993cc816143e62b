"""Quickstart, as a user starts it: from a folder of mixed files to a table and a sample."""

import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from jaxlm import cli, quickstart

ROOT = Path(__file__).resolve().parent.parent


def run(*flags: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, "-m", "jaxlm.quickstart", *flags],
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


def execute(*flags: str) -> int:
  return cli.execute(quickstart.main, doc=quickstart.__doc__, argv=["quickstart", *flags])


@pytest.fixture
def texts(tmp_path):
  """A nested folder with one file of each kind, and empty, tiny, binary and unknown ones."""
  folder = tmp_path / "my texts"
  (folder / "deep" / "er").mkdir(parents=True)
  sentences = [f"The {a} {b} of {a}s is not a {b}.\n" for a in WORDS for b in WORDS]
  (folder / "a.txt").write_text("".join(sentences[:60]))
  (folder / "empty.txt").write_text("")
  (folder / "blank.md").write_text("\n\n")
  (folder / "deep" / "tiny.md").write_text("x")
  (folder / "deep" / "code.py").write_text("".join(f"def f{i}(): return {i}\n" for i in range(99)))
  (folder / "deep" / "data.bin").write_bytes(bytes(range(256)))
  (folder / "deep" / "er" / "b.jsonl").write_text(
    "".join(json.dumps({"text": "".join(sentences[i : i + 20])}) + "\n" for i in (60, 80, 100))
  )
  table = pyarrow.table({"text": ["".join(sentences[120:]), "", None]})
  pyarrow.parquet.write_table(table, folder / "deep" / "er" / "c.parquet")
  return folder


WORDS = ("time", "river", "stone", "machine", "letter", "garden", "word", "night", "paper", "hand",
         "bird", "road")  # fmt: skip


def test_a_folder_becomes_a_model(texts, tmp_path):
  result = run("--text=my texts", "--workdir=runs/mine", "--minutes=0.05", cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  out = result.stdout
  assert "bits per byte" in out and "gzip -9" in out and "xz -9" in out
  assert "a sample:" in out and "\x1b" not in out  # no colours or cursor movements in a pipe
  assert "step 1/" in result.stderr and "loss" in result.stderr
  workdir = tmp_path / "runs" / "mine"
  values = json.loads((workdir / "evaluation.json").read_text())
  assert 0 < values["bits_per_byte"] < 8  # better than guessing bytes
  commands = out.partition("\nnext:\n")[2].splitlines()
  assert len(commands) == 3
  for command in commands:
    python, m, module, *flags = shlex.split(command)
    assert python in ("python", sys.executable) and m == "-m"
    assert module.removeprefix("jaxlm.") in cli.VERBS
    assert any(flag.startswith("--workdir=runs/mine") for flag in flags)

  # The same again: nothing is made or trained twice.
  step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
  again = run("--text=my texts", "--workdir=runs/mine", "--minutes=9", cwd=tmp_path)
  assert again.returncode == 0, again.stderr
  assert f"already trained to step {step}" in again.stdout and "used as it is" in again.stdout
  assert "bits per byte" in again.stdout and "a sample:" in again.stdout
  # Other text is not taken for the one that the run was trained on.
  (texts / "more.txt").write_text("More.")
  changed = run("--text=my texts", "--workdir=runs/mine", cwd=tmp_path)
  assert changed.returncode == cli.USER_ERROR
  assert "choose another --workdir" in changed.stderr and "--config" not in changed.stderr


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (None, "no such folder or file"),
    ({}, "holds no text"),
    ({"a.txt": "", "b.bin": "xxx"}, "holds no text (1 skipped (empty), 1 skipped (extension))"),
    ({"a.txt": "short", "b.txt": "short", "c.md": "too"}, "only 8 bytes of distinct text"),
    ({"a.jsonl": '{"body": "x"}\n'}, "set --text_field"),
  ],
)
def test_bad_text_is_refused_in_one_line(make, message, tmp_path, capsys):
  folder = tmp_path / "t"
  if make is not None:
    folder.mkdir()
    for name, text in make.items():
      (folder / name).write_text(text)
  assert execute(f"--text={folder}", f"--workdir={tmp_path / 'run'}") == cli.USER_ERROR
  err = capsys.readouterr().err
  assert err.startswith("error: ") and err.count("\n") == 1 and message in err
  assert "--config" not in err
  assert not (tmp_path / "run").exists() and not (tmp_path / "run-data").exists()


def test_bad_flags_and_places_are_refused(texts, tmp_path, capsys):
  stranger = tmp_path / "full"
  stranger.mkdir()
  (stranger / "notes").write_text("mine")
  for flags, message in (
    ((), "give either --text=DIR"),
    ((f"--text={texts}", "--demo"), "give either --text=DIR"),
    (("--demo", "--minutes=1"), "remove it"),
    ((f"--text={texts}", f"--workdir={texts / 'run'}"), "choose a --workdir outside"),
    ((f"--text={texts}", f"--workdir={stranger}"), "holds other files"),
  ):
    assert execute(*flags) == cli.USER_ERROR
    assert message in capsys.readouterr().err
  assert not (tmp_path / "full-data").exists()


def test_a_preempted_run_passes_its_status(texts, tmp_path, monkeypatch, capsys):
  import jaxlm.run

  monkeypatch.setattr(jaxlm.run, "train", lambda config, workdir: False)
  status = execute(f"--text={texts}", f"--workdir={tmp_path / 'run'}", "--minutes=0.05")
  assert status == cli.PREEMPTED
  assert "run the same command again" in capsys.readouterr().out


def test_help_is_quick():
  def spent() -> float:  # of the processor: on a busy machine the clock says nothing
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

  start = spent()
  result = run("--help", cwd=ROOT)
  assert result.returncode == 0 and "--minutes" in result.stdout
  assert spent() - start < 1

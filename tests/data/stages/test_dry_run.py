"""`--dry_run` says beforehand what the stages then do, names what differs, and writes nothing."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.data.prep.config import TextSourceConfig, TokenizeConfig, TokenizerTrainConfig
from jaxlm.data.stages import (
  base,
  clean,
  collect,
  decontaminate,
  dedup,
  dry_run,
  ops,
  tokenize,
  train_tokenizer,
)
from jaxlm.data.stages.clean_config import CleanConfig
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.dedup_config import DecontaminateConfig, EvalSetConfig
from jaxlm.data.stages.sources.config import CommonCrawlConfig
from jaxlm.errors import UserError
from tests.data.stages.ops.conftest import prose


def quiet(_):
  pass


@pytest.fixture
def config(tmp_path):
  folder = tmp_path / "texts"
  folder.mkdir()
  for i in range(12):
    (folder / f"{i}.txt").write_text(prose(i))
  (tmp_path / "quiz.txt").write_text(" ".join(f"word{i}" for i in range(30)))
  (tmp_path / "model.txt").write_text("bad\n")
  return CurationConfig(
    name="test",
    output=str(tmp_path / "out"),
    sources={"text": TextSourceConfig(paths=(str(folder),))},
    clean=CleanConfig(
      ops={
        "gopher_quality": ops.GopherQualityConfig(),
        "harm": ops.HarmConfig(word_lists=(str(tmp_path / "model.txt"),)),
      }
    ),
    decontaminate=DecontaminateConfig(
      eval_sets=[EvalSetConfig(name="quiz", paths=(str(tmp_path / "quiz.txt"),))]
    ),
    tokenizer=TokenizerTrainConfig(vocab_size=320),
    tokenize=TokenizeConfig(heldout_fraction=0.1),
  )


def run_all(config, last="tokenize", tasks=1):
  """The directories that the stages really make."""
  common = dict(tasks=tasks, max_drop_ratio=1.0)
  made = {"collect": collect.run(config)}
  made["clean"] = clean.run(made["collect"], config.output, config.clean, **common)
  if last == "clean":
    return made
  made["dedup"] = dedup.run(made["clean"], config.output, config.dedup, seed=config.seed, **common)
  made["decontaminate"] = decontaminate.run(
    made["dedup"], config.output, config.decontaminate, seed=config.seed, **common
  )
  tokenizer = train_tokenizer.run(
    made["decontaminate"], config.output, config.tokenizer, seed=config.seed, say=quiet
  )
  made["train_tokenizer"] = tokenizer.parent
  made["tokenize"] = tokenize.run(
    made["decontaminate"], config.output, config.tokenize, tokenizer, seed=config.seed, say=quiet
  )
  return made


def states(config, **options):
  return {one.stage: one.state for one in dry_run.plan(config, **options)}


def why(config, stage, **options):
  (one,) = (one for one in dry_run.plan(config, **options) if one.stage == stage)
  return one.why


def tree(root):
  return {
    str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in [root, *sorted(root.rglob("*"))]
  }


def test_the_directories_are_those_that_the_stages_make(config, tmp_path):
  """Breaks if a stage's fingerprint were made of other parts here than where it runs."""
  before = tree(tmp_path)
  planned = dry_run.plan(config)
  assert tree(tmp_path) == before
  assert [one.state for one in planned] == ["RUN"] * 5 + ["UNKNOWN"]
  assert planned[0].why == "there is no output of it yet"
  assert planned[-1].line() == "tokenize: unknown – UNKNOWN: unknown until train_tokenizer has run"
  made = run_all(config)
  assert {one.stage: one.directory for one in planned[:5]} == {
    stage: made[stage] for stage in dry_run.STAGES[:5]
  }
  before = tree(tmp_path)
  again = dry_run.plan(config)
  assert tree(tmp_path) == before
  assert {one.stage: one.directory for one in again} == made
  assert {one.state for one in again} == {"REUSED"}
  for one in again[:4]:
    assert one.fingerprint == base.read_stage(one.directory)["fingerprint"]


def test_what_differs_is_named(config, tmp_path):
  """Breaks if a part of the fingerprint is not recorded, or another one is named."""
  made = run_all(config, "clean")
  last = {"last": "clean"}
  op = config.clean.ops["gopher_quality"]
  old = made["clean"].name

  op.min_doc_words += 3
  assert why(config, "clean", **last) == (
    f"since {old}: config.clean.ops['gopher_quality'].min_doc_words 50 → 53"
  )
  op.min_doc_words -= 3
  op.enabled = False
  assert why(config, "clean", **last) == f"since {old}: config.clean.ops['gopher_quality'] is gone"
  op.enabled = True
  config.clean.ops = dict(reversed(config.clean.ops.items()))
  assert why(config, "clean", **last) == f"since {old}: the order of config.clean.ops"
  config.clean.ops = dict(reversed(config.clean.ops.items()))

  (tmp_path / "model.txt").write_text("worse\n")
  assert why(config, "clean", **last) == f"since {old}: a model file of op 'harm'"
  (tmp_path / "model.txt").write_text("bad\n")
  assert states(config, **last) == {"collect": "REUSED", "clean": "REUSED"}

  (tmp_path / "texts/new.txt").write_text(prose(77))
  assert why(config, "collect", **last) == (
    f"since {made['collect'].name}: files of source 'text' (names, sizes or times)"
  )
  now = dry_run.plan(config, "collect")[0].fingerprint[:8]
  before = made["collect"].name.removeprefix("collect-")
  assert why(config, "clean", **last) == f"since {old}: upstream {before} → {now}"
  assert "--limit None → 3" in why(config, "collect", limit=3)


def test_versions_of_ops_and_stages_are_named(config, monkeypatch):
  run_all(config, "clean")
  monkeypatch.setattr(ops.GopherQualityConfig, "VERSION", 77)
  monkeypatch.setattr(clean, "OPS_VERSION", 99)
  found = why(config, "clean")
  assert "op version of config.clean.ops['gopher_quality'] " in found and " → 77" in found
  assert re.search(r"op version \d+ → 99$", found)


def test_the_stages_behind_a_change_follow_it(config, tmp_path):
  """A change in the middle: what is before is used, what is behind runs, and says so."""
  run_all(config)
  config.dedup.exact = False
  found = dry_run.plan(config)
  assert [one.state for one in found] == ["REUSED"] * 2 + ["RUN"] * 3 + ["UNKNOWN"]
  assert "config.dedup.exact True → False" in found[2].why
  assert found[3].why.partition(": ")[2].startswith("upstream ")
  config.dedup.exact = True
  (tmp_path / "quiz.txt").write_text(" ".join(f"other{i}" for i in range(30)))
  assert "text of the evaluation sets" in why(config, "decontaminate")
  config.tokenizer.path = "/models/any"
  with pytest.raises(UserError, match="/models/any"):
    dry_run.plan(config)


def test_a_stage_that_was_killed_is_resumed(config):
  made = run_all(config, tasks=2)["clean"]
  (made / base.RECORD).unlink()
  (made / "logs/clean/completions/00001").unlink()
  found = {one.stage: one for one in dry_run.plan(config, tasks=2)}
  assert found["clean"].state == "RESUMED" and found["clean"].why == "clean 1 of 2 tasks done"
  # What is behind is there already: its fingerprint does not depend on the run.
  assert found["dedup"].state == "REUSED"
  assert why(config, "clean", tasks=3) == "anew, it was begun with --tasks=2 and not 3"
  assert states(config, tasks=3)["clean"] == "RUN"


def test_collect_and_tokenize_tell_how_far_they_are(config, monkeypatch):
  made = run_all(config)
  (made["tokenize"] / "manifest.json").unlink()
  (made["tokenize"] / "work.tmp/runs").mkdir(parents=True)
  (made["train_tokenizer"] / "card.json").unlink()
  found = dry_run.plan(config)
  assert (found[4].state, found[4].why) == ("RUN", "anew, what was begun of it can not be taken up")
  (made["train_tokenizer"] / "card.json").write_text("{}")
  found = dry_run.plan(config)
  assert (found[5].state, found[5].why) == ("RESUMED", "0 of 1 tasks done")

  class Killed(BaseException):
    pass

  monkeypatch.setattr(collect, "FILE_DOCUMENTS", 5)
  flush, left = collect._Writer.flush, iter(range(2))

  def killed(self):
    if self._batch and next(left, None) is None:
      raise Killed
    flush(self)

  monkeypatch.setattr(collect._Writer, "flush", killed)
  config.sources["more"] = dataclasses.replace(config.sources["text"])
  with pytest.raises(Killed):
    collect.run(config)
  found = dry_run.plan(config, "collect")[0]
  assert found.state == "RESUMED"
  assert found.why == "0 of 2 sources done, 0 files of 'text' (10 documents)"


def test_a_crawl_is_not_asked_for_its_list(config, tmp_path):
  """Breaks if --dry_run opens a connection or makes the cache."""
  config.sources["crawl"] = CommonCrawlConfig(
    crawl="CC-MAIN-2024-10", base_url="http://127.0.0.1:9/", cache=str(tmp_path / "cache")
  )
  before = tree(tmp_path)
  found = dry_run.plan(config)
  assert tree(tmp_path) == before
  assert found[0].why == "the path list of source 'crawl' is to be fetched first"
  assert {one.why for one in found[1:]} == {"unknown until collect has run"}


def test_the_command(tmp_path):
  """As a user types it, twice; a verb that runs no stage is refused."""
  (tmp_path / "texts").mkdir()
  (tmp_path / "texts/a.txt").write_text(prose(1))

  def command(*words):
    text = f"--config.sources['text'].paths={tmp_path / 'texts'}"
    flags = ["--config=configs/data/clean_text.py", text, f"--config.output={tmp_path / 'out'}"]
    return subprocess.run(
      [sys.executable, "-m", "jaxlm.data", *words, *flags],
      capture_output=True,
      text=True,
      cwd=Path(__file__).parents[3],
      env=os.environ,
    )

  before = tree(tmp_path)
  done = command("run", "--dry_run")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert [line.partition(":")[0] for line in lines] == [*dry_run.STAGES, "report"]
  assert tree(tmp_path) == before
  assert command("collect").returncode == 0
  before = tree(tmp_path)
  done = command("dedup", "--dry_run")
  assert [line.split()[3] for line in done.stdout.splitlines()] == ["REUSED", "RUN:", "RUN:"]
  assert tree(tmp_path) == before
  refused = command("verify", "--dry_run")
  assert refused.returncode == 2 and "verify runs no stage" in refused.stderr

"""The stage clean as a whole: order, fingerprint, books, errors, presets, overrides."""

import dataclasses
import json
import sys

import absl.flags
import pytest

from jaxlm import configflag, configlib
from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.stages import base, clean, clean_config, ops, stage_io
from jaxlm.data.stages.config import CleanConfig, CurationConfig
from jaxlm.data.stages.ops import pages_steps
from jaxlm.errors import UserError
from tests.data.stages.ops.conftest import Result, prose, run, write_upstream  # noqa: F401

PRESETS = {
  "default": CleanConfig,
  **{
    name: getattr(clean_config, name)
    for name in ("minimal", "gopher", "fineweb", "dclm_rw", "code")
  },
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_in_their_order(name):
  """Broken by ops that come back as another class, or in the order of the alphabet."""
  config = CurationConfig(name="a", output="b", clean=PRESETS[name]())
  text = json.dumps(configlib.to_dict(config))
  again = configlib.from_dict(json.loads(text))
  assert again == config and list(again.clean.ops) == list(config.clean.ops)
  assert [type(op) for op in again.clean.ops.values()] == [
    type(op) for op in config.clean.ops.values()
  ]
  configlib.check_types(config)


def test_every_field_of_an_op_is_in_the_record_and_in_the_fingerprint(tmp_path):
  """Broken by a field that changes what is kept but not the directory."""
  seen = set()
  for name, op in PRESETS["fineweb"]().ops.items():
    for field in dataclasses.fields(op):
      config = CleanConfig(ops={name: op})
      described = clean.describe(config)["ops"][0]
      assert field.name in described, (name, field.name)
    seen.add(json.dumps(described))
  assert len(seen) == len(PRESETS["fineweb"]().ops)


def test_the_order_of_ops_makes_another_directory(run):  # noqa: F811
  """Broken by a fingerprint of sorted keys: the order of a dict would not count."""
  one = {"fix_text": ops.FixTextConfig(), "gopher": ops.GopherQualityConfig(min_doc_words=5)}
  texts = [prose(1), "too short"]
  first, second = run(one, texts), run(dict(reversed(one.items())), texts)
  assert first.directory != second.directory
  assert [op["name"] for op in second.record["ops"]] == ["gopher", "fix_text"]
  assert [op["name"] for op in second.record["config"]["ops"]] == ["gopher", "fix_text"]


def test_an_op_that_is_off_changes_nothing(run):  # noqa: F811
  without = {"fix_text": ops.FixTextConfig()}
  off = {**without, "c4": ops.C4Config(enabled=False)}
  assert run(without, [prose(1)]).directory == run(off, [prose(1)]).directory


def overridden(tmp_path, monkeypatch, *flags):
  """The config as a main of the project sees it."""
  file = tmp_path / "config.py"
  file.write_text(
    "from jaxlm.data.stages.config import CurationConfig\n"
    "from jaxlm.data.prep.config import TextSourceConfig\n"
    "def get_config():\n"
    "  return CurationConfig(name='a', output='b', sources={'t': TextSourceConfig(paths=('x',))})\n"
  )
  values = absl.flags.FlagValues()
  flag = configflag.ConfigFlag(values, None, "x.py", lambda: CurationConfig)
  monkeypatch.setattr(sys, "argv", ["prog", f"--config={file}", *flags])
  values(sys.argv)
  flag.check()
  return flag.value


def test_overrides_on_the_command_line(tmp_path, monkeypatch):
  config = overridden(
    tmp_path,
    monkeypatch,
    "--config.clean.ops['gopher_quality'].min_doc_words=20",
    "--config.clean.ops['c4'].enabled=false",
    "--config.clean.ops['extract'].engine=trafilatura",
    "--config.clean.ops['gopher_repetition'].top_n_grams=0.3,0.2",
    "--config.clean.ops['private_data'].phone=replace",
    "--config.clean.words=spacy",
  )
  chosen = config.clean.ops
  assert chosen["gopher_quality"].min_doc_words == 20 and "c4" not in config.clean.enabled()
  assert chosen["extract"].engine is ops.Extractor.TRAFILATURA
  assert chosen["gopher_repetition"].top_n_grams == (0.3, 0.2)
  assert chosen["private_data"].phone is ops.Handling.REPLACE
  assert config.clean.words is ops.Words.SPACY
  with pytest.raises(absl.flags.IllegalFlagValueError, match="did you mean 'min_doc_words'"):
    overridden(tmp_path, monkeypatch, "--config.clean.ops['gopher_quality'].min_doc_wrods=20")


@pytest.mark.parametrize(
  "config, message",
  [
    (CleanConfig(ops={}), "name at least one op"),
    (CleanConfig(ops={"a/b": ops.C4Config()}), "'a/b' can not name an op"),
    (CleanConfig(ops={"before": ops.C4Config()}), "'before' can not name an op"),
    (CleanConfig(max_error_ratio=2), "max_error_ratio=2"),
    (
      CleanConfig(ops={"g": ops.GopherQualityConfig(min_doc_words=9, max_doc_words=3)}),
      r"ops\['g'\].min_doc_words=9: above max_doc_words=3",
    ),
    (CleanConfig(ops={"f": ops.FineWebConfig(max_short_lines=67)}), "max_short_lines=67: must be"),
  ],
)
def test_what_can_not_work_is_named(config, message):
  with pytest.raises(UserError, match=message):
    config.validate("config.clean")


def test_an_exception_makes_an_errored_document_in_the_books(run, monkeypatch):  # noqa: F811
  """Broken by an op that ends the stage for one document, or that loses it."""

  def fix(self, text):
    if "explode" in text:
      raise RecursionError("too deep")
    return text + "!"

  monkeypatch.setattr(pages_steps.FixText, "fix", fix)
  texts = [f"explode {i}" if i % 5 == 0 else f"text {i}" for i in range(20)]
  chosen = {"fix_text": ops.FixTextConfig(), "private_data": ops.PrivateDataConfig()}
  made = run(chosen, texts, max_error_ratio=0.2, files=4, tasks=2)
  record = made.record
  assert (record["in"], record["kept"], record["dropped"], record["errored"]) == (20, 16, 0, 4)
  assert made.ops["fix_text"]["errors"] == {"RecursionError": 4}
  assert made.ops["private_data"]["in"] == 16
  gone = made.removed("fix_text")
  assert set(gone) == {0, 5, 10, 15} and gone[5]["text"] == "explode 5"
  with pytest.raises(UserError, match=r"4 of 20 documents .* fix_text \(RecursionError 4\)"):
    run(chosen, texts, max_error_ratio=0.19, files=4)


def test_an_op_that_fails_on_all_stops_early(run, monkeypatch):  # noqa: F811
  monkeypatch.setattr(stage_io, "STOP_AFTER", 10)
  monkeypatch.setattr(pages_steps.FixText, "fix", lambda self, text: 1 / 0)
  with pytest.raises(UserError, match=r"fix_text failed on 10 of the first 10 .*ZeroDivisionError"):
    run({"fix_text": ops.FixTextConfig()}, ["text"] * 50, max_error_ratio=1.0)


def test_all_ops_together_tasks_change_no_byte(tmp_path):
  """Books balance through a long chain, for one task and for three in two processes."""
  words = tmp_path / "en.txt"
  words.write_text("badword\n")
  addresses = tmp_path / "domains.txt"
  addresses.write_text("bad-site.com\n")
  chosen = {
    "url_filter": ops.UrlFilterConfig(integrated=False, domains=(str(addresses),)),
    "extract": ops.ExtractConfig(),
    "extract_well": ops.ExtractConfig(engine=ops.Extractor.TRAFILATURA),
    "fix_text": ops.FixTextConfig(),
    "gopher_repetition": ops.GopherRepetitionConfig(),
    "gopher_quality": ops.GopherQualityConfig(),
    "c4": ops.C4Config(),
    "fineweb": ops.FineWebConfig(),
    "refinedweb_lines": ops.RefinedWebLinesConfig(),
    "code": ops.CodeConfig(max_mean_line_length=None),
    "harm": ops.HarmConfig(word_lists=(str(words),)),
    "private_data": ops.PrivateDataConfig(phone=ops.Handling.REPLACE),
  }
  documents = []
  for i in range(30):
    text = prose(i) + f"\nWrite to a{i}@mail.org or call (202) 555-01{i:02}, badword and all that."
    documents.append((text, {"url": f"https://site{i % 3}.org/{i}", "language": "en"}))
  documents.append((prose(40), {"url": "https://bad-site.com/"}))
  documents += [
    ("again and again\n" * 30, {}),
    ("short", {}),
    ("<html></html>", {"format": "html"}),
  ]
  upstream = write_upstream(tmp_path / "out", documents, files=6)
  config = CleanConfig(ops=chosen)
  one = Result(clean.run(upstream, tmp_path / "one", config, max_drop_ratio=1.0))
  assert one.record["kept"] == 30 and one.record["dropped"] == 4
  assert one.record["models"].keys() == {"url_filter", "harm"}
  three = clean.run(upstream, tmp_path / "two", config, tasks=3, workers=2, max_drop_ratio=1.0)
  record = base.read_stage(three)
  assert record["files"] == one.record["files"]
  removed = sorted(f.relative_to(three) for f in (three / "removed").rglob("*.gz"))
  assert removed and all(
    (three / f).read_bytes() == (one.directory / f).read_bytes() for f in removed
  )
  keep = ("name", "in", "kept", "dropped", "reasons", "errored", "extra")
  assert [{k: op.get(k) for k in keep} for op in record["ops"]] == [
    {k: op.get(k) for k in keep} for op in one.record["ops"]
  ]


def test_configs_import_nothing_heavy():
  import subprocess

  program = (
    "import sys, jaxlm.data.stages.config as c; c.CurationConfig(name='a', output='b'); "
    "heavy = {'datatrove', 'numpy', 'spacy', 'trafilatura', 'fasttext', 'ftfy', 'jax'}; "
    "print(sorted(heavy & set(sys.modules)))"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  assert done.stdout.strip() == "[]", done.stderr


def test_the_report_finds_documents_near_a_threshold(run, tmp_path):  # noqa: F811
  """Broken by a value that only removed or only kept documents have."""
  from jaxlm.data.stages import report

  texts = [" ".join(["the and house"] * number) for number in (15, 19, 20, 21, 60)]
  op = ops.GopherQualityConfig(min_doc_words=60, min_mean_word_length=None)
  made = run({"gopher_quality": op, "private_data": ops.PrivateDataConfig()}, texts)
  values = report.collect(made.directory.parent)
  (near,) = [row for row in values["near_threshold"] if "short_doc" in row["field"]]
  assert near["reason"] == "gopher_short_doc"
  assert [d["value"] for d in near["removed"]] == [57] and near["kept"][0]["value"] == 60
  assert {row["field"] for row in values["flags"]} >= {"pii_email", "pii_card"}


def test_an_errored_document_goes_to_removed_as_it_came(run, monkeypatch):  # noqa: F811
  """Broken by an op that had changed half of the text when it failed."""

  def judge(self, document, count):
    document.text = "half"
    raise ValueError("no such thing")

  monkeypatch.setattr(pages_steps.FixText, "judge", judge)
  gone = run({"fix_text": ops.FixTextConfig()}, ["whole"], max_error_ratio=1.0).removed("fix_text")
  assert gone[0]["text"] == "whole"
  assert gone[0]["metadata"]["error"] == "ValueError: no such thing"


def test_lists_that_change_places_make_another_directory(run, tmp_path):  # noqa: F811
  """Broken by hashes in an order of their own: the same set, and stale documents were reused."""
  lists = [tmp_path / "en.txt", tmp_path / "de.txt"]
  ops_of = {"harm": ops.HarmConfig(word_lists=tuple(map(str, lists)))}
  texts = [("a badword and more", {"language": "en"})]
  found = []
  for content in (("badword", "schlecht"), ("schlecht", "badword")):
    for file, word in zip(lists, content):
      file.write_text(word + "\n")
    found.append(run(ops_of, texts))
  assert found[0].directory != found[1].directory
  assert [one.kept[0]["metadata"]["harm_words"] for one in found] == [1, 0]


def test_a_reused_stage_is_held_to_the_ratio_of_this_run(tmp_path):
  upstream = write_upstream(tmp_path, [(prose(1), {}), ("too short", {})])
  config = CleanConfig(ops={"gopher": ops.GopherQualityConfig(min_doc_words=5)})
  clean.run(upstream, tmp_path, config)
  with pytest.raises(UserError, match=r"clean removed 50\.0% .*max_drop_ratio=0\.1"):
    clean.run(upstream, tmp_path, config, max_drop_ratio=0.1)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_hashes_can_not_take_is_one_line(seed):
  """Broken by NumPy's own error at the third stage."""
  config = CurationConfig(name="a", output="b", sources={"t": TextSourceConfig(paths=("x",))})
  config.seed = seed
  with pytest.raises(UserError, match=f"config.seed={seed}: must be between 0"):
    config.validate()

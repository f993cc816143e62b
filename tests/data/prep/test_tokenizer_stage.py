"""The verb train_tokenizer: sample, sweep, choice, card."""

import json
import random
import xml.etree.ElementTree

import pytest

from jaxlm.data.prep.config import TokenizerKind, TokenizerTrainConfig
from jaxlm.data.prep.mixture_sample import take
from jaxlm.data.stages import train_tokenizer
from jaxlm.data.stages.tokenize import document_units
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import load_tokenizer
from tests.data.stages.made_up import document, write_stage

TEXTS = {
  "web": "the model reads a text and learns to write more of the same kind every day",
  "code": "def return self import class for while lambda yield None True assert raise",
  "other": "αλφα βητα γαμμα",
}
WORDS = {source: text.split() for source, text in TEXTS.items()}


def _documents():
  rng = random.Random(0)
  out = []
  for i in range(900):
    source = ("web", "web", "code", "other")[i % 4]
    text = f"{i} " + " ".join(
      rng.choice(WORDS[source]) + rng.choice(("", "s", "ing", "_x")) for _ in range(60)
    )
    out.append(document(f"d{i}", text, source=source, language="el" if source == "other" else "en"))
  return out


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
  return write_stage(tmp_path_factory.mktemp("out"), "dedup", _documents(), {"minhash": []})


def _config(**values):
  return TokenizerTrainConfig(**{"sweep": (300, 400, 600), "max_train_bytes": 60_000} | values)


def _run(stage, config, **values):
  lines: list[str] = []
  return train_tokenizer.run(stage, stage.parent, config, say=lines.append, **values), lines


@pytest.mark.parametrize("kind", [TokenizerKind.SENTENCEPIECE, TokenizerKind.HUGGINGFACE])
def test_a_sweep(stage, kind):
  """All sizes are there, measured on documents that none was trained on, and in the table."""
  pytest.importorskip("tokenizers")
  tokenizer, lines = _run(stage, _config(kind=kind, choose=400, control_symbols=("<pad>",)))
  directory = tokenizer.parent
  sweep = json.loads((directory / "sweep.json").read_text())
  assert [row["size"] for row in sweep["sizes"]] == [300, 400, 600]
  ratios = [row["bytes_per_token"] for row in sweep["sizes"]]
  assert ratios == sorted(ratios) and ratios[0] > 1
  for row in sweep["sizes"]:
    assert set(row["by_source"]) == {"web", "code", "other"} and set(row["by_language"]) == {
      "en",
      "el",
    }
    assert row["round_trip_failures"] == 0 and row["documents"] > 5 and row["fertility"] > 1
    assert load_tokenizer(directory / "sizes" / str(row["size"])).vocab_size == row["vocab_size"]
  assert (
    load_tokenizer(tokenizer).fingerprint() == load_tokenizer(directory / "sizes/400").fingerprint()
  )
  assert any("chosen: 400 (by hand)" in line for line in lines)
  assert "400*" in (directory / "sweep.txt").read_text()
  xml.etree.ElementTree.parse(directory / "sweep.svg")
  card = train_tokenizer.card(tokenizer)
  assert card["sample"]["sha256"] and card["upstream"][0]["stage"] == "dedup"
  assert card["config"]["control_symbols"] == ["<pad>"] and card["versions"]["sentencepiece"]
  before = (directory / "card.json").stat().st_mtime_ns
  assert _run(stage, _config(kind=kind, choose=400, control_symbols=("<pad>",))) == (tokenizer, [])
  assert (directory / "card.json").stat().st_mtime_ns == before


def test_a_given_tokenizer_is_used(stage, tmp_path):
  assert _run(stage, TokenizerTrainConfig(path=str(tmp_path)))[0] == tmp_path


@pytest.mark.parametrize(
  ("gains", "chosen"), [((0.5, 0.5), 400), ((0.5, 0.001), 200), ((0.001, 0.5), 100)]
)
def test_the_rule(gains, chosen):
  """Bigger as long as doubling saves 2 % of the tokens."""
  rows = [{"size": 100, "vocab_size": 100, "bytes_per_token": 1.0, "tokens": 1}]
  for gain in gains:
    last = rows[-1]
    ratio = last["bytes_per_token"] / (1 - gain)
    size = 2 * last["size"]
    rows.append({"size": size, "vocab_size": size, "bytes_per_token": ratio, "tokens": 1})
  assert train_tokenizer._choose(rows, TokenizerTrainConfig())[0] == chosen


def _take(stage, **values):
  settings = dict(weights={}, max_bytes=40_000, heldout_bytes=5_000, seed=0) | values
  return take(document_units(stage), ["web", "code", "other"], **settings)


def test_the_sample_has_the_weights(stage):
  """Three parts of code to one of web, whatever the corpus holds; none of the third."""
  sample = _take(stage, weights={"code": 3.0, "web": 1.0, "other": 0.0})
  assert set(sample.bytes) == {"code", "web"}
  assert sample.bytes["code"] == pytest.approx(30_000, rel=0.01)
  assert sample.bytes["web"] == pytest.approx(10_000, rel=0.01)
  assert {r.source for r in sample.heldout} == {"web", "code", "other"}
  assert not {r.text for r in sample.heldout} & set(sample.train)


def test_a_source_that_runs_short_is_named(stage):
  """Otherwise the mixture is another than the one asked for, and nothing says so."""
  assert _take(stage, weights={"code": 1.0, "web": 1.0}).short() == {}
  short = _take(stage, weights={"code": 1.0, "web": 1.0}, max_bytes=10**6).short()
  assert set(short) == {"code", "web"} and 0 < short["code"] < short["web"] < 0.95
  weights = {"web": 0.5, "other": 0.5}
  _, lines = _run(stage, _config(sweep=(300,), weights=weights, max_train_bytes=10**6))
  assert any(line.startswith("warning: source other has ") for line in lines)


def test_the_sample_without_weights_is_as_the_corpus(stage):
  sample = _take(stage)
  assert sum(sample.bytes.values()) == 40_000
  assert sample.bytes["web"] / 40_000 == pytest.approx(0.5, abs=0.12)
  assert _take(stage).sha256 == sample.sha256 != _take(stage, seed=1).sha256


def test_errors_are_of_the_user(stage, tmp_path):
  with pytest.raises(UserError, match=r"no source nope; there are code, other, web"):
    _take(stage, weights={"nope": 1.0})
  empty = write_stage(tmp_path, "collect", [document("a", " ")], {})
  with pytest.raises(UserError, match="no text to train"):
    _run(empty, _config())

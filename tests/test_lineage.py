"""The seal: what must be refused, what only warned of, and what its hashes count."""

import dataclasses

import pytest

from jaxlm import configlib, lineage
from jaxlm.config import RunConfig, model_fingerprint
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.errors import UserError
from jaxlm.layers.config import DType, Remat
from jaxlm.lineage import Seal
from jaxlm.models.config import DecoderConfig

SEAL = Seal(model="a" * 64, tokenizer="b" * 64, data="c" * 64, code="d" * 64)
ALL = ("model", "tokenizer", "data")


def test_same_seal_passes_in_silence():
  assert lineage.check(SEAL, dataclasses.replace(SEAL), "here", ALL) == []


@pytest.mark.parametrize("part", ALL)
@pytest.mark.parametrize("value", ["e" * 64, None])
def test_each_part_is_checked(part, value):
  """Breaks if a part is left out, or if None (no tokenizer) passes for any tokenizer."""
  found = dataclasses.replace(SEAL, **{part: value})
  with pytest.raises(UserError, match=f"^here: sealed with {part} .*: .*workdir|began with"):
    lineage.check(SEAL, found, "here", ALL)
  with pytest.raises(UserError, match=part):
    lineage.check(found, SEAL, "here", ALL)
  assert lineage.check(SEAL, found, "here", tuple(p for p in ALL if p != part)) == []


def test_other_code_is_a_warning():
  """A fixed bug must not end a run, but a digit that changed must be explained."""
  found = dataclasses.replace(SEAL, code="e" * 64, version="9.9")
  (warning,) = lineage.check(SEAL, found, "here", ALL)
  assert "here" in warning and "9.9" in warning and "\n" not in warning


def test_round_trip_and_damage():
  values = SEAL.to_dict()
  assert Seal.from_dict(values, "here") == SEAL
  del values["data"]
  with pytest.raises(UserError, match=r"^here: its seal is damaged .*data.*older checkpoint"):
    Seal.from_dict(values, "here")


def make_model(**overrides):
  shape = {"num_layers": 1, "embed_dim": 32, "mlp_dim": 32, "num_heads": 4, "max_seq_len": 16}
  return DecoderConfig(vocab_size=64, **shape | overrides)


@pytest.mark.parametrize(
  "overrides", [{"remat": Remat.FULL}, {"compute_dtype": DType.FLOAT32}, {"dropout": 0.5}]
)
def test_speed_is_not_part_of_the_model(overrides):
  assert model_fingerprint(make_model(**overrides)) == model_fingerprint(make_model())


@pytest.mark.parametrize(
  "overrides",
  [{"num_heads": 2}, {"rope_theta": 5e5}, {"norm_eps": 1e-5}, {"vocab_multiple": 64}],
)
def test_meaning_is_part_of_the_model(overrides):
  """Same shapes of parameters, or nearly, that mean something else."""
  assert model_fingerprint(make_model(**overrides)) != model_fingerprint(make_model())


def test_code_fingerprint(tmp_path, monkeypatch):
  """Counts every Python file of the package, its name and its content, and nothing else."""
  (tmp_path / "models").mkdir()
  monkeypatch.setattr(lineage, "__file__", str(tmp_path / "lineage.py"))
  fingerprint = lineage.code_fingerprint.__wrapped__
  seen = {fingerprint()}

  def changes(file, text):
    (tmp_path / file).write_text(text, encoding="utf-8")
    before = len(seen)
    seen.add(fingerprint())
    return len(seen) > before

  assert changes("models/a.py", "x = 1")
  assert changes("models/a.py", "x = 2")
  assert changes("b.py", "")
  assert not changes("notes.txt", "x = 3")
  (tmp_path / "b.py").rename(tmp_path / "c.py")
  assert fingerprint() not in seen


# ---- from a run back to the raw files ---------------------------------------------------------


@pytest.fixture
def run_of_a_chain(tmp_path):
  """Raw files → a stage → a dataset → a run's workdir; the raw folder, and the workdir."""
  from jaxlm.data.prep.config import TokenizeConfig
  from jaxlm.data.stages import tokenize
  from jaxlm.tokenizers.byte import ByteTokenizer
  from tests.data.stages.made_up import document, write_stage

  raw = tmp_path / "raw"
  raw.mkdir()
  documents = []
  for i in range(30):
    (raw / f"{i}.txt").write_text(f"text {i} " * 20)
    documents.append(document(f"{i}", f"text {i} " * 20))
  config = {"name": "x", "sources": {"text": {"kind": "TextSourceConfig", "paths": [str(raw)]}}}
  collect = write_stage(tmp_path / "data", "collect", documents, {"read": []}, config=config)
  clean = write_stage(tmp_path / "data", "clean", documents, {"words": []}, upstream=[collect])
  ByteTokenizer().save(tmp_path / "tokenizer")
  dataset = tokenize.run(
    clean, tmp_path / "data", TokenizeConfig(), tmp_path / "tokenizer", say=lambda _: None
  )
  workdir = tmp_path / "run"
  workdir.mkdir()
  config = RunConfig(
    model=make_model(max_seq_len=64),
    data=DataConfig(seq_len=16, sources=[TokenShardsConfig(name="text", path=str(dataset))]),
  )
  configlib.save_json(config, workdir / "config.json")
  loaded = configlib.load_json(workdir / "config.json")
  lineage.write(workdir, lineage.datasets(lineage.dataset_paths(loaded.data.sources)))
  return raw, workdir, dataset, collect


def test_a_run_leads_back_to_its_raw_files(run_of_a_chain):
  """Broken when a link is missing: no stage, no file, or a hash that nothing carries on."""
  raw, workdir, _, _ = run_of_a_chain
  links = lineage.walk(workdir, full=True)
  assert {link.state for link in links} == {"good"}
  kinds = [link.kind for link in links]
  assert kinds[0] == "dataset" and kinds.count("stage") == 2 and kinds.count("listing") == 1
  assert {link.where for link in links if link.kind == "raw"} == {
    str(file.resolve()) for file in raw.iterdir()
  }
  assert sum(link.kind == "output" for link in links) == 4
  assert {link.state for link in lineage.walk(workdir)} == {"good", "unchecked"}


def test_each_change_on_the_way_is_found(run_of_a_chain):
  raw, workdir, dataset, collect = run_of_a_chain

  def changed():
    links = lineage.walk(workdir, full=True)
    return [(link.kind, link.state) for link in links if link.state != "good"]

  (raw / "3.txt").write_text("other")
  assert changed() == [("raw", "changed")]
  (raw / "4.txt").unlink()
  assert sorted(changed()) == [("raw", "changed"), ("raw", "missing")]
  shard = dataset / "train/shard-00000.bin"
  data = shard.read_bytes()
  shard.write_bytes(b"\1" + data[1:])
  assert ("shard", "changed") in changed()
  record = collect / "stage.json"
  record.write_text(record.read_text().replace('"seconds": 1.5', '"seconds": 2.5'))
  assert ("stage", "changed") in changed()
  manifest = dataset / "manifest.json"
  manifest.write_text(manifest.read_text() + "\n")
  assert changed() == [("dataset", "changed")]  # what it says is not followed any more


def test_a_run_without_a_record_is_an_error(tmp_path):
  with pytest.raises(UserError, match=r"lineage\.json: .*names no datasets"):
    lineage.walk(tmp_path)
  (tmp_path / "lineage.json").write_text("{}")
  with pytest.raises(UserError, match="damaged"):
    lineage.walk(tmp_path)

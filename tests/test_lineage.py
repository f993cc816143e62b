"""The seal: what must be refused, what only warned of, and what its hashes count."""

import dataclasses

import pytest

from jaxlm import lineage
from jaxlm.config import model_fingerprint
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

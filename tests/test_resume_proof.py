"""verify-resume: SAME of a run that restarts well, DIFFERENT of one that doesn't, none touched."""

import json

import jax
import pytest

from jaxlm import cli, configlib, resume_proof, run, verify_resume
from jaxlm.data.pipeline import Pipeline
from jaxlm.errors import UserError
from jaxlm.mesh import MeshConfig
from jaxlm.training.config import CheckpointConfig
from tests.test_resume import SYNTHETIC, make_config

MESH = MeshConfig(data=2, fsdp=2)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Six steps on four devices, checkpoints at 2, 4 and 6."""
  workdir = tmp_path_factory.mktemp("proof") / "run"
  config = make_config(
    SYNTHETIC, mesh=MESH, checkpoint=CheckpointConfig(every_steps=2, keep_last=10)
  )
  assert run.train(config, workdir, devices=jax.devices()[:4])
  return workdir


def verify(workdir, mesh=None, **settings):
  config = configlib.load_json(workdir / "config.json")
  config.mesh = mesh or config.mesh
  return resume_proof.verify(workdir, config, devices=jax.devices()[:4], **settings)


def content(workdir):
  return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_same_mesh_is_compared_with_what_was_recorded(workdir, capsys):
  """From 4, the newest with two steps after it. Breaks if the run is written to."""
  before = content(workdir)
  assert verify(workdir, steps=2)
  out = capsys.readouterr().out
  assert "restarted after step 4, on the same mesh" in out and "recorded in" in out
  assert out.strip().endswith("verdict: THE SAME: 2 steps, same rows, losses equal bit for bit")
  assert content(workdir) == before
  assert sorted(p.name for p in workdir.parent.iterdir()) == ["run"], "scratch is removed"


def test_another_mesh_may_differ_in_the_last_digits_only(workdir, capsys):
  assert verify(workdir, MeshConfig(model=2, fsdp=2), steps=3)
  out = capsys.readouterr().out
  assert "restarted after step 2, on another mesh (fsdp=2 × model=2)" in out
  assert "verdict: THE SAME: 3 steps" in out and out.count(" same\n") == 3


def test_too_few_recorded_steps_are_made_anew(workdir, capsys):
  """No checkpoint has eight steps after it: two runs beyond the end, one of them stopped midway."""
  assert verify(workdir, steps=8)
  out = capsys.readouterr().out
  assert "restarted after step 6, 10, on the same mesh" in out and "made anew" in out
  assert "8 steps, same rows, losses equal bit for bit" in out


def test_a_loss_that_differs_is_found(workdir, capsys):
  """Breaks if the comparison forgives the last digit on the same mesh, or 1e-4 on another."""
  file = workdir / "metrics.jsonl"
  good = file.read_text(encoding="utf-8")
  for factor, same_mesh, other_mesh in ((1 + 1e-6, False, True), (1 + 1e-4, False, False)):
    lines = [json.loads(line) for line in good.splitlines()]
    lines[-1]["loss"] *= factor
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    try:
      assert verify(workdir, steps=2) is same_mesh
      assert "DIFFERENT: same rows, but losses differ" in capsys.readouterr().out
      assert verify(workdir, MeshConfig(data=4, fsdp=1), steps=2) is other_mesh
    finally:
      file.write_text(good, encoding="utf-8")


def test_other_rows_are_found(workdir, capsys, monkeypatch):
  """Breaks if only losses are looked at, which hardly differ on random ids."""
  iterator = Pipeline.iterator

  def shifted(self, size, start=0, *shard):
    return iterator(self, size, start + (1 if shard else 0), *shard)

  monkeypatch.setattr(Pipeline, "iterator", shifted)
  assert not verify(workdir, steps=2)
  assert "DIFFERENT: step 5 trains on other rows" in capsys.readouterr().out


def test_bad_input_is_one_line(workdir, tmp_path, capsys):
  with pytest.raises(UserError, match=r"--scratch=.*lies in the run"):
    verify(workdir, scratch=workdir / "x")
  (tmp_path / "mine").touch()
  with pytest.raises(UserError, match=r"--scratch=.*holds other files"):
    verify(workdir, scratch=tmp_path)
  assert (tmp_path / "mine").exists()

  def call(*arguments):
    status = cli.execute(verify_resume.main, doc="", argv=["verify", *arguments])
    return status, capsys.readouterr().err

  assert call() == (2, "error: --workdir is missing: directory of the run\n")
  assert call("--workdir=nowhere") == (2, "error: --config=nowhere/config.json: no such file\n")
  status, text = call(f"--workdir={workdir}", "--config.mesh.modle=2")
  assert status == 2 and "did you mean 'model'?" in text
  status, text = call("--workdir", str(workdir), "--config.mesh.data=3")
  assert status == 2 and "8 are there" in text

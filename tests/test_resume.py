"""A run that was stopped and started again is the run that was never stopped."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxlm import run
from jaxlm.checkpoint import Checkpointer
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig, TokenShardsConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.testing import random_documents, write_dataset
from jaxlm.errors import UserError
from jaxlm.layers.config import DType
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tracking.config import TrackingConfig
from jaxlm.training import loop
from jaxlm.training.config import CheckpointConfig
from jaxlm.workdir import Workdir

# The arrays are read back without a target, on the devices that they were saved from.
pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

STEPS = 6
SEQ_LEN = 16


def make_config(source, **overrides) -> RunConfig:
  """Dropout and microbatches are on: a key that is not a function of the step would show."""
  return RunConfig(
    **{
      "model": DecoderConfig(
        vocab_size=0,
        num_layers=1,
        embed_dim=32,
        mlp_dim=64,
        num_heads=4,
        max_seq_len=SEQ_LEN,
        dropout=0.1,
        compute_dtype=DType.FLOAT32,
      ),
      "data": DataConfig(seq_len=SEQ_LEN, sources=[source]),
      "optim": AdamWConfig(peak_lr=1e-2, schedule=ScheduleConfig(warmup_steps=2)),
      "global_batch_size": 16,
      "num_microbatches": 2,
      "num_steps": STEPS,
      "mesh": MeshConfig(data=2, fsdp=-1),
      "tracking": TrackingConfig(tensorboard=False),
    }
    | overrides
  )


SYNTHETIC = SyntheticConfig(name="ids", vocab_size=257, document_len=7)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """54 rows or so: six steps of 16 rows cross into the second epoch."""
  root = tmp_path_factory.mktemp("data") / "small"
  tokenizer = ByteTokenizer()
  ids = write_dataset(
    root,
    random_documents(0, 20, 256),
    splits=("train", "heldout"),
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(root / "tokenizer")
  assert len(ids) < STEPS * 16 * SEQ_LEN
  return root


@pytest.fixture(scope="module", params=["synthetic", "prepared"])
def straight(request, dataset, tmp_path_factory):
  """(a source, the directory of its uninterrupted run)."""
  source = SYNTHETIC
  if request.param == "prepared":
    source = TokenShardsConfig(name="small", path=str(dataset))
  workdir = tmp_path_factory.mktemp("straight") / "run"
  assert run.train(make_config(source), workdir)
  return source, workdir


def rows_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
  rows = rows_of(workdir)
  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))  # each step once, in order
  return np.array([row["loss"] for row in rows])


def saved(workdir, step=STEPS):
  """Every array of a checkpoint by name, on the host, and its meta."""
  checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
  reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  restored = reader.restore(workdir / "checkpoints" / str(step) / "state")
  meta = checkpointer.meta(step)
  checkpointer.close()
  leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
  return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}, meta


def test_restart_on_same_mesh_is_bit_for_bit(straight, tmp_path):
  """Breaks if a key, the data's position, the schedule or a moment is not part of the state."""
  source, reference = straight
  assert not run.train(make_config(source), tmp_path / "run", stop_at=STEPS // 2)
  assert len(rows_of(tmp_path / "run")) == STEPS // 2
  assert run.train(make_config(source), tmp_path / "run")

  np.testing.assert_array_equal(losses(tmp_path / "run"), losses(reference))
  expected, expected_meta = saved(reference)
  found, meta = saved(tmp_path / "run")
  assert meta == expected_meta
  assert found.keys() == expected.keys()
  assert any("'mu'" in name for name in found) and any("'params'" in name for name in found)
  for name, value in expected.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("straight", ["synthetic"], indirect=True)
def test_restart_on_fewer_devices(straight, tmp_path):
  """8, then 4, then 1 device: breaks if a checkpoint, a key or a row depends on the mesh."""
  source, reference = straight
  workdir = tmp_path / "run"
  config = make_config(source)
  assert not run.train(config, workdir, stop_at=2)
  assert not run.train(config, workdir, stop_at=4, devices=jax.devices()[:4])
  assert run.train(make_config(source, mesh=MeshConfig()), workdir, devices=jax.devices()[:1])

  np.testing.assert_allclose(losses(workdir), losses(reference), rtol=1e-5)
  expected, _ = saved(reference)
  found, _ = saved(workdir)
  for name, value in expected.items():
    if "'params'" in name:
      difference = np.linalg.norm(found[name] - value)
      assert difference <= 1e-5 * np.linalg.norm(value), name


def test_other_batch_size_continues_at_the_next_row(tmp_path, monkeypatch):
  """Breaks if the position is computed from the step and the batch size instead of kept in rows."""
  consumed = []
  to_device = loop.to_device

  def spy(arrays, layout, **settings):
    consumed.append(arrays["inputs"])
    return to_device(arrays, layout, **settings)

  monkeypatch.setattr(loop, "to_device", spy)
  workdir = tmp_path / "run"
  first = make_config(SYNTHETIC, global_batch_size=4, num_microbatches=1, mesh=MeshConfig())
  second = make_config(SYNTHETIC, global_batch_size=6, num_microbatches=1, mesh=MeshConfig())
  one = jax.devices()[:1]
  assert not run.train(first, workdir, stop_at=3, devices=one)
  with pytest.raises(UserError, match=r"global_batch_size: 4 → 6.*--accept_changes"):
    run.train(second, workdir, devices=one)
  seen = consumed[:3]  # the fourth batch was loaded ahead, and not trained on
  consumed.clear()
  assert run.train(second, workdir, devices=one, accept_changes=True)
  seen += consumed

  total = 3 * 4 + 3 * 6
  assert sum(map(len, seen)) == total
  with build_pipeline(first.data).iterator(total) as rows:
    np.testing.assert_array_equal(np.concatenate(seen), next(rows)["inputs"])
  assert saved(workdir, 3)[1].next_row == 12
  assert saved(workdir)[1].next_row == total
  rows = rows_of(workdir)
  assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
  assert [row["tokens"] for row in rows] == [SEQ_LEN * n for n in (4, 8, 12, 18, 24, 30)]


def test_steps_after_the_last_checkpoint_are_recorded_once(straight, tmp_path):
  """A crash loses the steps since the last save: their lines must not appear twice."""
  source, reference = straight
  workdir = tmp_path / "run"
  run.train(make_config(source), workdir, stop_at=3)
  with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as stream:
    stream.write('{"step": 4, "loss": 99.0}\n{"step": 5, "loss": 99.0}\n{"step": 6, "lo')
  assert run.train(make_config(source), workdir)
  np.testing.assert_array_equal(losses(workdir), losses(reference))


def test_a_finished_run_is_left_alone(straight):
  """Starting it again must neither train on nor touch its records."""
  source, workdir = straight
  files = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != ".lock"}
  assert run.train(make_config(source), workdir)
  assert files == {p: p.read_bytes() for p in files}


# ---- what goes wrong ----------------------------------------------------------------------------

ONE = {"num_microbatches": 1, "mesh": MeshConfig()}


def small(**overrides):
  return make_config(
    SYNTHETIC, **{"checkpoint": CheckpointConfig(every_steps=2, keep_last=3)} | ONE | overrides
  )


@pytest.fixture(scope="module")
def saved_at_2_4_6(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("saved") / "run"
  assert run.train(small(), workdir, devices=jax.devices()[:1])
  return workdir


def spoil(checkpoint):
  """Cuts the files of a checkpoint's arrays."""
  for file in (checkpoint / "state").rglob("d/*"):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def steps_of(workdir):
  return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def test_damaged_checkpoints_are_set_aside_for_the_one_before(saved_at_2_4_6, tmp_path, capsys):
  """Breaks if a damaged newest checkpoint ends a run that has a good one, if it is deleted, or if
  the rows and losses from there on are others."""
  workdir = tmp_path / "run"
  shutil.copytree(saved_at_2_4_6, workdir)
  spoil(workdir / "checkpoints/6")
  meta = workdir / "checkpoints/4/meta/metadata"
  meta.write_text(
    meta.read_text()
    .replace('"next_row":64', '"next_row":65')
    .replace('"next_row": 64', '"next_row": 65'),
    encoding="utf-8",
  )
  one = jax.devices()[:1]
  with pytest.raises(UserError, match=r"/6: the checkpoint can't be read .*move this folder away"):
    run.train(small(), workdir, devices=one, fallback=False)
  assert steps_of(workdir) == ["2", "4", "6"]
  capsys.readouterr()
  assert run.train(small(), workdir, devices=one)
  warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING")]
  assert len(warnings) == 2 and "checkpoints/6: " in warnings[0] and "its meta" in warnings[1]
  assert all(line.endswith("going on from step 2") for line in warnings)
  assert steps_of(workdir) == ["2", "4", "4.damaged", "6", "6.damaged"]
  np.testing.assert_array_equal(losses(workdir), losses(saved_at_2_4_6))


def test_without_a_good_checkpoint_nothing_is_begun_anew(saved_at_2_4_6, tmp_path):
  """Breaks if a run whose checkpoints are all damaged is trained from its first step in silence, or
  if they are renamed for nothing."""
  workdir = tmp_path / "run"
  shutil.copytree(saved_at_2_4_6, workdir)
  for step in "246":
    spoil(workdir / "checkpoints" / step)
  with pytest.raises(UserError, match=r"/6: .*nor can the older ones \(2\): restore one"):
    run.train(small(), workdir, devices=jax.devices()[:1])
  assert steps_of(workdir) == ["2", "4", "6"]


def test_stop_at_a_step_that_is_reached_trains_nothing(saved_at_2_4_6, tmp_path):
  """Breaks if the same command with --stop_at, given twice, trains to the end."""
  workdir = tmp_path / "run"
  shutil.copytree(saved_at_2_4_6, workdir)
  shutil.rmtree(workdir / "checkpoints/6")
  for stop in (4, 3):
    assert not run.train(small(), workdir, stop_at=stop, devices=jax.devices()[:1])
  assert steps_of(workdir) == ["2", "4"]


def test_going_on_without_clipping_finds_the_same_state(saved_at_2_4_6, tmp_path):
  """Breaks if what is left out of the optimizer's chain moves the names of all that follows."""
  workdir = tmp_path / "run"
  shutil.copytree(saved_at_2_4_6, workdir)
  shutil.rmtree(workdir / "checkpoints/6")
  config = small()
  config.optim.grad_clip_norm = None
  assert run.train(config, workdir, accept_changes=True, devices=jax.devices()[:1])
  assert steps_of(workdir) == ["2", "4", "6"]


def test_a_run_that_is_no_longer_finite_ends_with_its_good_checkpoint(tmp_path):
  """Breaks if NaN is trained on: the good checkpoints would be gone after three saves."""
  config = small()
  config.optim.peak_lr = 1e38
  with pytest.raises(UserError, match=r"^step \d: .*not finite.*in \S+/checkpoints; ") as found:
    run.train(config, tmp_path / "run", devices=jax.devices()[:1])
  assert "\n" not in str(found.value)
  for step in steps_of(tmp_path / "run"):
    arrays, _ = saved(tmp_path / "run", step)
    assert all(np.isfinite(value.astype(np.float32)).all() for value in arrays.values())


def test_a_step_of_bad_rows_is_skipped_where_asked_for(tmp_path, monkeypatch):
  """Breaks if one bad batch ends a run that may skip it, or leaves anything in the state."""
  real, calls = loop.to_device, []

  def third_is_bad(arrays, layout, **settings):
    calls.append(1)
    if len(calls) == 3:
      arrays = arrays | {"loss_weights": np.full_like(arrays["loss_weights"], np.nan)}
    return real(arrays, layout, **settings)

  monkeypatch.setattr(loop, "to_device", third_is_bad)
  config = small(checkpoint=CheckpointConfig(every_steps=3, max_skipped_steps=1))
  assert run.train(config, tmp_path / "run", devices=jax.devices()[:1])
  assert np.isnan(losses(tmp_path / "run").astype(float)).tolist() == [n == 3 for n in range(1, 7)]
  assert [row.get("skipped_steps") for row in rows_of(tmp_path / "run")] == [None] * 2 + [1.0] * 4
  assert steps_of(tmp_path / "run") == ["4", "6"], "the save of 3 waits for 4"
  arrays, _ = saved(tmp_path / "run", 4)
  assert all(np.isfinite(value.astype(np.float32)).all() for value in arrays.values())
  counts = [value for name, value in arrays.items() if "count" in name]
  assert counts and all(value == 3 for value in counts), "of the updates that were made"


def test_a_first_start_that_ended_early_can_be_made_again(tmp_path):
  """Breaks if an empty checkpoints/ counts as somebody else's; other files must."""
  directory = Workdir(tmp_path / "run")
  directory.checkpoints.mkdir(parents=True)
  with directory.lock():
    pass
  (directory.checkpoints / "7").mkdir()
  with pytest.raises(UserError, match=r"holds other files \(checkpoints\)"):
    directory.lock()

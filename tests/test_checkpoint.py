"""What is kept, what is read back, and what an interrupted save leaves behind."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import checkpoint as checkpoint_module
from jaxlm.checkpoint import Checkpointer, Meta, digests
from jaxlm.errors import UserError
from jaxlm.lineage import Seal
from jaxlm.mesh import MeshConfig
from jaxlm.sharding import Layout, make_layout
from jaxlm.training.monitor import Monitor
from jaxlm.training.state import TrainState

pytestmark = pytest.mark.smoke

SEAL = Seal(model="a" * 64, tokenizer=None, data="c" * 64, code="d" * 64, version="0.0.1")
TX = optax.adamw(1e-3, mu_dtype=jnp.bfloat16)


def meta(step):
  return Meta(step=step, next_row=step * 8, seed=2**40 + 1, seal=SEAL)


def make_state(layout: Layout, step=0):
  """A float32 and a bfloat16 parameter, sharded over fsdp; moments of two dtypes."""

  def init(key):
    params = {
      "block": {"kernel": jax.random.normal(key, (16, 8), out_sharding=jax.P("fsdp", None))},
      "scale": jnp.full((16,), 1.5, jnp.bfloat16, out_sharding=jax.P("fsdp")),
    }
    return TrainState(step=jnp.full((), step, jnp.int32), params=params, opt_state=TX.init(params))

  with layout.activate():
    return jax.jit(init)(jax.random.key(step)), layout.eval_shape(init, jax.random.key(0))


@pytest.fixture(scope="module")
def layout():
  return make_layout(MeshConfig())


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def fill(directory, layout, steps, **settings):
  checkpointer = Checkpointer(directory, **settings)
  for step in steps:
    checkpointer.save(make_state(layout, step)[0], meta(step))
  checkpointer.wait()
  return checkpointer


def on_disk(directory):
  return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


@pytest.mark.parametrize(
  "settings, kept",
  [
    ({"keep_last": 1}, [7]),
    ({"keep_last": 2}, [6, 7]),
    ({"keep_last": 2, "keep_every": 3}, [3, 6, 7]),
    ({"keep_last": 1, "keep_every": 2}, [2, 4, 6, 7]),
  ],
)
def test_what_is_kept(tmp_path, layout, settings, kept):
  """The newest keep_last, and the multiples of keep_every for good; also over a restart."""
  fill(tmp_path, layout, range(1, 5), **settings).close()
  checkpointer = fill(tmp_path, layout, range(5, 8), **settings)
  assert checkpointer.steps() == kept
  assert checkpointer.latest() == 7
  checkpointer.close()
  assert on_disk(tmp_path) == kept


def test_round_trip(tmp_path, layout):
  """Bits, dtypes, shardings and the meta; and on a mesh of another size."""
  state, target = make_state(layout, 3)
  checkpointer = fill(tmp_path, layout, [3])
  restored = checkpointer.restore(3, target)
  assert_same(restored, state)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
    assert a.sharding == b.sharding
  assert checkpointer.meta(3) == meta(3)
  for count in (1, 2):
    other = make_layout(MeshConfig(), jax.devices()[:count])
    on_other = checkpointer.restore(3, make_state(other)[1])
    assert_same(on_other, state)
    assert on_other.params["scale"].sharding.num_devices == count
  checkpointer.close()


def test_parameters_alone_are_those_of_the_state(tmp_path, layout):
  """Also where the reader does not know what the optimizer was."""
  state, _ = make_state(layout, 3)
  fill(tmp_path, layout, [3]).close()
  reader = Checkpointer(tmp_path, read_only=True)
  one = make_layout(MeshConfig(), jax.devices()[:1])
  for where in (layout, one):
    params = reader.restore_params(3, make_state(where)[1].params)
    assert_same(params, state.params)
    assert params["scale"].sharding.num_devices == where.mesh.size
  reader.close()


def test_saving_a_step_again_changes_nothing(tmp_path, layout):
  """A run that stops at a step that is saved already must not fail, nor write over it."""
  checkpointer = fill(tmp_path, layout, [3])
  files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  checkpointer.save(make_state(layout, 4)[0], meta(3))
  checkpointer.wait()
  checkpointer.close()
  assert files == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_interrupted_save(tmp_path, layout):
  """Ignored by readers, which must not delete what a running trainer writes; removed by the next
  trainer, which then can save the same step."""
  fill(tmp_path, layout, [3]).close()
  partials = [tmp_path / f"{step}.orbax-checkpoint-tmp" for step in (5, 9)]
  for partial in partials:
    (partial / "state").mkdir(parents=True)
    (partial / "state" / "half").write_bytes(b"x" * 10)

  reader = Checkpointer(tmp_path, read_only=True)
  assert (reader.steps(), reader.latest()) == ([3], 3)
  reader.close()
  assert all(partial.exists() for partial in partials)

  checkpointer = Checkpointer(tmp_path)
  assert (checkpointer.steps(), checkpointer.latest()) == ([3], 3)
  state, target = make_state(layout, 5)
  checkpointer.save(state, meta(5))
  checkpointer.wait()
  assert_same(checkpointer.restore(5, target), state)
  checkpointer.close()
  assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5"]


def test_reading_makes_nothing(tmp_path):
  reader = Checkpointer(tmp_path / "none", read_only=True)
  assert (reader.steps(), reader.latest()) == ([], None)
  reader.close()
  assert not (tmp_path / "none").exists()


def test_state_of_another_shape_is_refused(tmp_path, layout):
  """Orbax would cut or pad arrays in silence."""
  _, target = make_state(layout)
  checkpointer = fill(tmp_path, layout, [3])
  kernel = target.params["block"]["kernel"]
  for shape in ((24, 8), (8, 8)):
    target.params["block"]["kernel"] = jax.ShapeDtypeStruct(
      shape, kernel.dtype, sharding=kernel.sharding
    )
    with pytest.raises(UserError, match=r"/3: the checkpoint can't be read"):
      checkpointer.restore(3, target)
    with pytest.raises(UserError, match=r"/3: the checkpoint can't be read"):
      checkpointer.restore_params(3, target.params)
  checkpointer.close()


def test_missing_metadata_file_loses_nothing(tmp_path, layout):
  """Orbax then finds arrays by name alone: what it gives must be right, or be refused."""
  state, target = make_state(layout, 3)
  checkpointer = fill(tmp_path, layout, [3])
  (tmp_path / "3" / "state" / "_METADATA").unlink()
  assert_same(checkpointer.restore_params(3, target.params), state.params)
  with pytest.raises(UserError, match=r"/3: the checkpoint can't be read"):
    checkpointer.restore(3, target)
  checkpointer.close()


def test_failed_save_is_one_line(tmp_path, layout, monkeypatch):
  checkpointer = Checkpointer(tmp_path)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpointer._manager, "save", full)
  with pytest.raises(UserError, match=r"No space left on device\): free space .* resumes"):
    checkpointer.save(make_state(layout, 1)[0], meta(1))
  checkpointer.close()


# ---- training.monitor ---------------------------------------------------------------------------


class Recorder:
  """A tracker and a progress bar."""

  def __init__(self):
    self.rows, self.messages = [], []

  def log(self, step, values):
    self.rows.append((step, values))

  def update(self, step, loss, tokens_per_second):
    pass

  def message(self, text):
    self.messages.append(text)


def watch(losses, first_step=1, **overrides):
  recorder = Recorder()
  settings = {"tokens_per_step": 10, "log_every": 1, "first_step": first_step} | overrides
  monitor = Monitor(
    recorder,
    recorder,
    learning_rate=lambda step: step / 100,
    flops_per_token=1.0,
    peak_flops=None,
    uniform_loss=5.0,
    **settings,
  )
  for step, loss in enumerate(losses, first_step):
    monitor.on_step(step, {"loss": loss}, 0.0)
  return recorder


@pytest.mark.parametrize("loss", [5.0, 5.9, 4.1])
def test_right_first_loss_is_silent(loss):
  assert watch([loss, 9.0]).messages == []


@pytest.mark.parametrize("loss", [6.5, 3.5, float("nan"), float("inf")])
def test_wrong_first_loss_names_suspects(loss):
  """Of the first step only: a resumed run's loss is low, and should be."""
  (message,) = watch([loss, loss]).messages
  for part in (f"{loss:.3f}", "5.000", "vocab_size", "init_std", "loss_weights"):
    assert part in message
  assert watch([loss], first_step=7).messages == []


def test_records():
  """Tokens count on from the start's, the learning rate is that of the update just made, and
  log_every is of the run's steps, not of this start's."""
  rows = watch([5.0] * 6, first_step=8, start_tokens=1000, log_every=4).rows
  assert [step for step, _ in rows] == [8, 12]
  assert [values["tokens"] for _, values in rows] == [1010, 1050]
  assert [values["learning_rate"] for _, values in rows] == [0.07, 0.11]
  assert rows[0][1]["perplexity"] == pytest.approx(np.exp(5.0))


def test_digests_do_not_depend_on_the_mesh_and_see_every_flipped_bit() -> None:
  """Fails if a digest gathers wrongly, ignores places, or an even factor hides high bits."""
  x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
  values = set()
  for config, count in ((MeshConfig(), 1), (MeshConfig(), 8), (MeshConfig(model=4), 8)):
    layout = make_layout(config, jax.devices()[:count])
    values.add(digests({"x": jax.device_put(x, layout.sharding(("embed", "mlp")))})["x"])
  assert len(values) == 1
  rng = np.random.default_rng(1)
  for _ in range(64):
    flipped = x.copy()
    flipped.view(np.uint32)[rng.integers(8), rng.integers(16)] ^= np.uint32(1 << rng.integers(32))
    assert digests({"x": flipped})["x"] not in values
  assert digests({"x": np.roll(x, 1)})["x"] not in values


def test_a_state_that_is_not_what_was_saved_is_refused(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Fails if restoring does not compare digests: Orbax itself lets most flipped bits through."""
  layout = make_layout(MeshConfig(), jax.devices()[:1])
  state, target = make_state(layout, 3)
  real = checkpoint_module.digests
  monkeypatch.setattr(
    checkpoint_module,
    "digests",
    lambda tree: {name: value ^ 1 for name, value in real(tree).items()},
  )
  checkpointer = Checkpointer(tmp_path / "c")
  checkpointer.save(state, meta(3))
  checkpointer.wait()
  monkeypatch.setattr(checkpoint_module, "digests", real)
  with pytest.raises(UserError, match="other bits than were saved"):
    checkpointer.restore(3, target)
  with pytest.raises(UserError, match="other bits than were saved"):
    checkpointer.restore_params(3, target.params)
  checkpointer.close()

"""What is kept, what is read back, and what an interrupted save leaves behind."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import checkpoint as checkpoint_module
from jaxlm.checkpoint import Checkpointer, DamagedError, Meta, digests
from jaxlm.errors import UserError
from jaxlm.lineage import Seal
from jaxlm.mesh import MeshConfig
from jaxlm.objectives import LossSum
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.base import OptimizerContext
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.sharding import Layout, make_layout
from jaxlm.training import loop
from jaxlm.training import step as step_module
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


def damages(file):
  """Ways in which a file is lost: gone, cut, zeroed."""
  content = file.read_bytes()
  yield lambda: file.unlink()
  yield lambda: file.write_bytes(content[: len(content) // 2])
  yield lambda: file.write_bytes(bytes(len(content)))


def test_a_lost_file_of_arrays_is_one_line(tmp_path, layout):
  """Orbax raises bare Exception, AttributeError and KeyError too. Breaks if one gets through, or a
  state is given back that is not the one saved."""
  state, target = make_state(layout, 3)
  fill(tmp_path, layout, [3]).close()
  files = [p for p in (tmp_path / "3" / "state").rglob("*") if p.is_file() and p.stat().st_size]
  assert any("ocdbt.process_0/d/" in str(p) for p in files)
  refused = 0
  for file in [*files, tmp_path / "3/meta/metadata"]:
    content = file.read_bytes()
    for damage in damages(file):
      damage()
      reader = Checkpointer(tmp_path, read_only=True)
      for read in (
        lambda reader=reader: reader.restore(3, target),
        lambda reader=reader: reader.restore_params(3, target.params),
      ):
        try:
          found = read()
        except DamagedError as error:
          refused += 1
          assert "\n" not in str(error) and "move this folder away" in str(error)
        else:
          same = state if hasattr(found, "params") else state.params
          assert_same(found, same)
      reader.close()
      file.write_bytes(content)
  assert refused > 10


def test_a_changed_meta_is_damage(tmp_path, layout):
  """A flipped bit in next_row would resume on other rows in silence. Breaks too if checkpoints from
  before the digest are refused, or a renamed key looks like one of them."""
  fill(tmp_path, layout, [3]).close()
  file = tmp_path / "3/meta/metadata"
  good = json.loads(file.read_text(encoding="utf-8"))

  def read(values):
    file.write_text(json.dumps(values), encoding="utf-8")
    reader = Checkpointer(tmp_path, read_only=True)
    try:
      return reader.meta(3)
    finally:
      reader.close()

  assert read(good) == meta(3)
  for change in ({"next_row": 25}, {"seed": 0}, {"step": 4}, {"sha256": "0"}):
    with pytest.raises(DamagedError, match=r"/3: the checkpoint can't be read \(its meta"):
      read(good | change)
  for key in ("sha256", "next_row"):
    renamed = {("x" if k == key else k): v for k, v in good.items()}
    with pytest.raises(DamagedError, match="unknown key 'x'"):
      read(renamed)
  old = {k: v for k, v in good.items() if k != "sha256"}
  assert read(old) == meta(3)
  with pytest.raises(DamagedError, match="its meta is of step 4"):
    read(old | {"step": 4})


def test_another_optimizer_s_state_is_not_called_damage(tmp_path, layout):
  """Breaks if a config change is answered with advice to move a whole checkpoint away."""
  _, target = make_state(layout)
  checkpointer = fill(tmp_path, layout, [3])
  other = dataclasses.replace(target, opt_state=(optax.EmptyState(), *target.opt_state))
  with pytest.raises(UserError, match=r"not damaged, but of another optimizer.*opt_state") as found:
    checkpointer.restore(3, other)
  assert not isinstance(found.value, DamagedError) and "move" not in str(found.value)
  checkpointer.close()


def test_set_aside_deletes_nothing(tmp_path, layout):
  checkpointer = fill(tmp_path, layout, [3, 5])
  files = {p.name: p.read_bytes() for p in (tmp_path / "5").rglob("*") if p.is_file()}
  assert checkpointer.set_aside(5) == tmp_path / "5.damaged"
  assert (checkpointer.latest(), checkpointer.steps()) == (3, [3])
  checkpointer.save(make_state(layout, 5)[0], meta(5))
  checkpointer.wait()
  assert checkpointer.set_aside(5) == tmp_path / "5.damaged2"
  checkpointer.close()
  aside = tmp_path / "5.damaged"
  assert files == {p.name: p.read_bytes() for p in aside.rglob("*") if p.is_file()}
  again = Checkpointer(tmp_path)  # which cleans up after interrupted saves
  assert again.steps() == [3] and aside.is_dir()
  again.close()


# ---- training.loop ------------------------------------------------------------------------------


class Rows:
  next_row = 0

  def __next__(self):
    self.next_row += 8
    return {}


def run_loop(losses, monkeypatch, *, norms=None, **settings):
  """(saved steps, seen steps, the error) of a loop whose steps have these losses."""
  monkeypatch.setattr(loop, "to_device", lambda arrays, layout, use_segments: None)
  saved, seen = [], []

  class Listener:
    def on_step(self, step, metrics, data_seconds):
      seen.append((step, metrics))

    def on_pause(self):
      pass

  def step(state, batch):
    values = {"loss": losses[state], "grad_norm": 1.0, "param_norm": (norms or {}).get(state, 1.0)}
    return state + 1, values

  one = loop.Loop(
    step_fn=step,
    layout=None,
    batches=Rows(),
    listener=Listener(),
    save=lambda state, step, next_row: saved.append((step, next_row)),
    **{"save_every": 2} | settings,
  )
  try:
    one.run(0, 0, len(losses))
  except loop.NotFiniteError as error:
    return saved, seen, str(error)
  return saved, seen, None


NAN = float("nan")


def test_a_step_that_is_not_finite_ends_the_run_unsaved(monkeypatch):
  """Breaks if NaN is trained on and saved over the last good checkpoint."""
  saved, seen, error = run_loop([5.0, 5.0, 5.0, NAN, 5.0, 5.0, 5.0], monkeypatch)
  assert saved == [(2, 16)] and seen[-1][0] == 4
  assert error == "step 4: not finite (loss nan), on rows 24-31"
  saved, _, error = run_loop([5.0, 5.0, NAN], monkeypatch, save_every=0)
  assert saved == [] and error is not None, "nor as the last one"


def test_skipped_steps_are_counted_and_saves_wait_for_a_good_one(monkeypatch):
  """Breaks if a series of skipped steps pushes out the checkpoint before it, or never ends."""
  losses = [5.0, 5.0, 5.0, NAN, NAN, 5.0, 5.0, NAN, 5.0]
  saved, seen, error = run_loop(losses, monkeypatch, max_skipped_steps=2)
  assert error is None
  assert saved == [(2, 16), (6, 48), (9, 72)], "4 waits for 6, 8 for 9"
  assert [m.get("skipped_steps") for _, m in seen][2:] == [None, 1, 2, 2, 2, 3, 3]
  saved, _, error = run_loop([5.0, 5.0, 5.0, NAN, NAN, NAN], monkeypatch, max_skipped_steps=2)
  assert saved == [(2, 16)]
  assert error == "step 6: not finite (loss nan), on rows 40-47, as in the 2 steps before"
  saved, _, error = run_loop([5.0, 5.0, 5.0, NAN], monkeypatch, max_skipped_steps=2)
  assert saved[-1] == (4, 32), "the state at the end is that of the last good step"
  losses = [5.0, 5.0, NAN, 5.0]
  saved, _, error = run_loop(losses, monkeypatch, norms={2: NAN}, max_skipped_steps=9)
  assert saved == [(2, 16)] and error == "step 3: the weights are not finite (norm nan)"


def test_skipped_step_keeps_every_bit(layout):
  """Breaks if a moment, a count or a weight takes anything from a step that is not finite; or if
  a finite step is another one than without the choice."""
  tx = AdamWConfig(peak_lr=0.1, schedule=ScheduleConfig(warmup_steps=1)).build(
    OptimizerContext(num_steps=10)
  )

  class Model:
    compute_dtype = jnp.float32

    def logical_axes(self):
      return {"w": ("embed",)}

  monkey = pytest.MonkeyPatch()
  monkey.setattr(
    step_module,
    "make_loss",
    lambda model, loss_fn: (
      lambda params, batch, key: LossSum(
        nll=jnp.sum(params["w"] * batch),
        total=jnp.sum(params["w"] * batch),
        weight=jnp.float32(1),
      )
    ),
  )
  one = make_layout(MeshConfig(), jax.devices()[:1])
  try:
    with one.activate():
      steps = [
        jax.jit(step_module.make_train_step(Model(), None, tx, skip_nonfinite=skip))
        for skip in (True, False)
      ]
      params = {"w": jnp.arange(1.0, 5.0)}
      state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
      good, _ = steps[0](state, jnp.ones(4))
      assert_same(good, steps[1](state, jnp.ones(4))[0])
      for bad in (NAN, float("inf")):
        after, metrics = steps[0](good, jnp.ones(4).at[1].set(bad))
        assert not np.isfinite(float(metrics["grad_norm"]))
        assert int(after.step) == 2
        assert_same((after.params, after.opt_state), (good.params, good.opt_state))
  finally:
    monkey.undo()

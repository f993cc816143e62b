"""Training on any mesh is training on one device: losses, gradients and updates."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import tree
from jaxlm.batch import Batch
from jaxlm.layers.config import Remat
from jaxlm.mesh import MESH_AXES, Context, MeshConfig, Zero
from jaxlm.models.config import DecoderConfig
from jaxlm.objectives import NextToken
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.base import OptimizerContext
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.sharding import make_layout, to_device
from jaxlm.training.state import make_init
from jaxlm.training.step import make_eval_step, make_train_step

pytestmark = pytest.mark.smoke


@dataclasses.dataclass(frozen=True)
class Case:
  """A mesh, and what of the model and the step differs from the reference's.

  shards: mesh axes that must split some parameter.
  """

  mesh: MeshConfig
  shards: frozenset[str]
  kind: str = "dense"
  change: tuple[tuple[str, object], ...] = ()
  num_microbatches: int = 1


def case(*shards, kind="dense", num_microbatches=1, change=(), **mesh):
  mesh = MeshConfig(**{"fsdp": 1, **mesh})
  return Case(mesh, frozenset(shards), kind, tuple(dict(change).items()), num_microbatches)


UNROLLED = {"scan_layers": False}
CASES = {
  "data8": case(data=8),
  "fsdp8": case("fsdp", fsdp=8),
  "fsdp4_zero1": case(fsdp=4, zero=Zero.ZERO1),
  "model4": case("model", model=4),
  "model4_remat": case("model", model=4, change={"remat": Remat.MINIMAL}),
  "fsdp2_remat_offload": case("fsdp", fsdp=2, change={"remat": Remat.OFFLOAD}),
  "sequence4": case(sequence=4),
  "sequence4_ring": case(sequence=4, context=Context.RING),
  "sequence2_ulysses": case(sequence=2, context=Context.ULYSSES),
  "expert4": case("expert", kind="experts", expert=4),
  "stage2": case("stage", stage=2),
  "data2_fsdp4_unrolled": case("fsdp", data=2, fsdp=4, change=UNROLLED),
  "data2_model4": case("model", data=2, model=4),
  "fsdp2_microbatches": case("fsdp", fsdp=2, data=2, num_microbatches=2),
  "fsdp2_offload": case("fsdp", fsdp=2, offload_optimizer=True),
  "fsdp2_expert2_model2": case(
    "fsdp", "expert", "model", kind="experts", fsdp=2, expert=2, model=2
  ),
  "fsdp2_sequence2_model2": case("fsdp", "model", fsdp=2, sequence=2, model=2),
  "stage2_fsdp2_model2": case("stage", "fsdp", "model", stage=2, fsdp=2, model=2),
  "stage2_data2_sequence2": case("stage", stage=2, data=2, sequence=2),
}
CONFIG = DecoderConfig(
  vocab_size=60,
  num_layers=2,
  embed_dim=32,
  mlp_dim=64,
  num_heads=8,
  num_kv_heads=4,
  qk_norm=True,
  max_seq_len=16,
  vocab_multiple=8,
)
LOSS = NextToken(
  vocab_size=60, z_loss=1e-2, label_smoothing=0.1, load_balance=0.1, router_z_loss=0.01
)
# eps far above the gradients' rounding: Adam's division would make a whole step of it.
EXPERTS = dataclasses.replace(CONFIG, num_experts=4, num_experts_per_token=2, mlp_dim=32)
MODELS = {"dense": CONFIG, "experts": EXPERTS}
OPTIM = AdamWConfig(
  peak_lr=1e-2, eps=1e-3, schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=0)
)


def make_arrays():
  """Two or three packed documents a row, and rows of very unequal weight (one has none)."""
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 60, (8, 17), np.int32)
  starts = rng.random((8, 16)) < 0.12
  segments = 1 + np.cumsum(starts, axis=1, dtype=np.int32)
  positions = np.zeros((8, 16), np.int32)
  for t in range(1, 16):
    positions[:, t] = np.where(starts[:, t], 0, positions[:, t - 1] + 1)
  weights = (rng.random((8, 16)) * (np.arange(8) / 4)[:, None]).astype(np.float32)
  weights *= rng.random((8, 16)) < 0.7
  return {
    "inputs": ids[:, :-1],
    "targets": ids[:, 1:],
    "loss_weights": weights,
    "segment_ids": segments,
    "positions": positions,
  }


def recorder():
  """Keeps the gradients that an optimizer is given in its state."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, _, __=None: (grads, grads)
  )


def on_mesh(config):
  """The layout over the devices that the mesh's sizes ask for."""
  sizes = [getattr(config, axis) for axis in MESH_AXES]
  return make_layout(config, jax.devices()[: math.prod(sizes)])


def per_layer(tree):
  """Parameters of an unrolled stack, stacked as those of a scanned one."""
  stack = tree["stack"]["blocks"]
  if "layer_0" not in stack or "layer_1" not in stack:
    return tree
  layers = [stack[f"layer_{i}"] for i in range(len(stack))]
  stacked = {"layer_0": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
  return {**tree, "stack": {"blocks": stacked}}


def train(case, rules=None):
  """Three steps. All that must not depend on the mesh, and the mesh axes that shard parameters.

  rules: changes to the table, to see that a wrong one is noticed.
  """
  layout = on_mesh(case.mesh)
  if rules:
    layout = dataclasses.replace(layout, rules={**layout.rules, **rules})
  with layout.activate():
    config = dataclasses.replace(MODELS[case.kind], **dict(case.change))
    model = config.build()
    context = OptimizerContext(num_steps=10, decay_mask=tree.decay_mask)
    tx = optax.chain(recorder(), OPTIM.build(context))
    state = jax.jit(make_init(model, tx))(jax.random.key(0))
    batch = to_device(make_arrays(), layout)
    step = jax.jit(
      make_train_step(model, LOSS, tx, num_microbatches=case.num_microbatches), donate_argnums=0
    )
    results = {}
    for i in range(3):
      state, metrics = step(state, batch)
      found = jax.device_get(
        {"metrics": metrics, "grads": state.opt_state[0], "params": state.params}
      )
      results[f"step{i}"] = {
        name: value if name == "metrics" else per_layer(value) for name, value in found.items()
      }
    assert step._cache_size() == 1, "the second step compiled again: a layout has changed"
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(state.params)]
    return results, {axis for spec in specs for axis in spec if axis is not None}


def differences(found, expected, rtol=1e-5):
  """Names of the leaves whose error exceeds rtol times the leaf's norm (or is NaN)."""
  names = []

  def compare(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not np.linalg.norm(a - b) <= rtol * np.linalg.norm(b):
      names.append(tree.path_str(path))

  jax.tree_util.tree_map_with_path(compare, found, expected)
  return names


@pytest.fixture(scope="module")
def one_device():
  """By kind of model: what one device computes."""
  found = {}

  def get(kind="dense"):
    if kind not in found:
      found[kind] = train(case(kind=kind))[0]
    return found[kind]

  return get


def test_one_device_takes_the_weighted_mean(one_device):
  """What all meshes are compared with: the gradient of sum / weight, found without a layout."""
  arrays = make_arrays()
  model = CONFIG.build()
  params = jax.jit(model.init)(jax.random.key(0))
  loss = make_eval_step(model, LOSS)
  batch = Batch(**jax.tree.map(jnp.asarray, arrays))
  weight = arrays["loss_weights"].sum(dtype=np.float64)

  def mean(params):
    sums = loss(params, batch)
    return sums.total / weight, sums.nll / weight

  (objective, nll), grads = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
  step = one_device()["step0"]
  expected = {"objective": objective, "loss": nll, "weight": weight}
  assert differences({k: step["metrics"][k] for k in expected}, expected) == []
  assert differences(step["grads"], jax.device_get(grads)) == []


def check(case, expected, rules=None):
  found, axes = train(case, rules)
  assert differences(found, expected) == []
  assert axes >= case.shards  # parity would hold too if all weights were replicated


@pytest.mark.parametrize("name", CASES)
def test_every_mesh_computes_what_one_device_does(name, one_device):
  """Broken by a lost or doubled sum over a mesh axis, a mask cut wrongly along the sequence, an
  initialisation that depends on the mesh, an optimizer that sees shards for wholes, microbatches
  whose means are averaged, or a stage that works on another one's rows."""
  check(CASES[name], one_device(CASES[name].kind))


@pytest.mark.parametrize(
  ("name", "rules", "error", "says"),
  [
    # Right numbers, from weights that every device holds.
    ("model4", dict.fromkeys(("heads", "kv_heads", "mlp", "vocab")), AssertionError, "model"),
    ("fsdp4_zero1", {"mlp": "fsdp"}, Exception, "duplicate entries"),
  ],
)
def test_a_wrong_rule_is_noticed(name, rules, error, says, one_device):
  with pytest.raises(error, match=says):
    check(CASES[name], one_device(), rules)


def test_a_stage_that_hands_on_nothing_is_noticed(monkeypatch, one_device):
  monkeypatch.setattr(jax.lax, "ppermute", lambda x, axis, pairs: x)
  with pytest.raises(AssertionError):
    check(CASES["stage2"], one_device())


def test_a_lost_sum_over_experts_is_noticed(monkeypatch, one_device):
  def first(x, axes, **_):
    rows = x.shape[0] // jax.lax.axis_size(axes)
    return jax.lax.dynamic_slice_in_dim(x, rows * jax.lax.axis_index(axes), rows)

  monkeypatch.setattr(jax.lax, "psum_scatter", first)
  with pytest.raises(AssertionError):
    check(CASES["expert4"], one_device("experts"))


def test_comparison_finds_one_scaled_leaf(one_device):
  """The comparison above must be able to fail: by a leaf, and only by that leaf."""
  broken = jax.tree.map(np.array, one_device())
  down = broken["step0"]["grads"]["stack"]["blocks"]["layer_0"]["mlp"]["down"]
  down *= 1.0001
  assert differences(broken, one_device()) == ["step0/grads/stack/blocks/layer_0/mlp/down"]
  down[:] = np.nan
  assert differences(broken, one_device()) == ["step0/grads/stack/blocks/layer_0/mlp/down"]


def test_comparison_finds_a_lost_sum(one_device):
  """Data parallelism written by hand passes the comparison, and fails it without its sum."""
  layout = on_mesh(MeshConfig(data=2, fsdp=1))
  model = CONFIG.build()
  params = jax.jit(model.init)(jax.random.key(0))
  rows = jax.sharding.NamedSharding(layout.mesh, jax.P("data", None))
  batch = Batch(**jax.device_put(make_arrays(), rows))
  step = make_eval_step(model, LOSS)

  def loss(share):
    by_hand = jax.shard_map(
      lambda params, batch: share(step(params, batch)),
      mesh=layout.mesh,
      in_specs=(jax.P(), jax.P("data", None)),
      out_specs=jax.P(),
      check_vma=False,
    )
    sums = jax.jit(by_hand)(params, batch)
    return {"loss": jax.device_get(sums.nll / sums.weight)}

  expected = {"loss": one_device()["step0"]["metrics"]["loss"]}
  assert differences(loss(lambda sums: jax.lax.psum(sums, "data")), expected) == []
  assert differences(loss(lambda sums: sums), expected) == ["loss"]

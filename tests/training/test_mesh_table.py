"""Training on any mesh is training on one device: losses, gradients and updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm import tree
from jaxlm.batch import Batch
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.objectives import NextToken
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.base import OptimizerContext
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.sharding import make_layout, to_device
from jaxlm.training.state import make_init
from jaxlm.training.step import make_eval_step, make_train_step

pytestmark = pytest.mark.smoke

ONE = MeshConfig(fsdp=1)
MESHES = {
  "data8": MeshConfig(data=8, fsdp=1),
  "fsdp8": MeshConfig(fsdp=8),
  "data2_model4": MeshConfig(data=2, fsdp=1, model=4),
  "fsdp2_sequence2_model2": MeshConfig(fsdp=2, sequence=2, model=2),
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
LOSS = NextToken(vocab_size=60, z_loss=1e-2, label_smoothing=0.1)
# eps far above the gradients' rounding: Adam's division would make a whole step of it.
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
  sizes = (config.data, config.fsdp, config.sequence, config.model)
  count = 8 if -1 in sizes else math.prod(sizes)
  return make_layout(config, jax.devices()[:count])


def train(mesh, *, num_microbatches=1):
  """Two steps. All that must not depend on the mesh, and the mesh axes that shard parameters."""
  with on_mesh(mesh).activate() as layout:
    model = CONFIG.build()
    context = OptimizerContext(num_steps=10, decay_mask=tree.decay_mask)
    tx = optax.chain(recorder(), OPTIM.build(context))
    state = jax.jit(make_init(model, tx))(jax.random.key(0))
    batch = to_device(make_arrays(), layout)
    step = jax.jit(
      make_train_step(model, LOSS, tx, num_microbatches=num_microbatches), donate_argnums=0
    )
    results = {}
    for i in range(2):
      state, metrics = step(state, batch)
      found = {"metrics": metrics, "grads": state.opt_state[0], "params": state.params}
      results[f"step{i}"] = jax.device_get(found)
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
  return train(ONE)[0]


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
  step = one_device["step0"]
  expected = {"objective": objective, "loss": nll, "weight": weight}
  assert differences({k: step["metrics"][k] for k in expected}, expected) == []
  assert differences(step["grads"], jax.device_get(grads)) == []


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_computes_what_one_device_does(name, one_device):
  """Broken by a lost or doubled sum over a mesh axis, a mask cut wrongly along the sequence, an
  initialisation that depends on the mesh, or an optimizer that sees shards for wholes."""
  found, axes = train(MESHES[name])
  assert differences(found, one_device) == []
  assert axes >= {"fsdp", "model"}  # parity would hold too if all weights were replicated


def test_microbatches_add_up_to_the_batch(one_device):
  """Broken by a mean of the parts' means: the rows' weights differ widely, and one row has none."""
  found, _ = train(MeshConfig(data=2, fsdp=2), num_microbatches=2)
  assert differences(found, one_device) == []


def test_comparison_finds_one_scaled_leaf(one_device):
  """The comparison above must be able to fail: by a leaf, and only by that leaf."""
  broken = jax.tree.map(np.array, one_device)
  down = broken["step0"]["grads"]["stack"]["blocks"]["layer_0"]["mlp"]["down"]
  down *= 1.0001
  assert differences(broken, one_device) == ["step0/grads/stack/blocks/layer_0/mlp/down"]
  down[:] = np.nan
  assert differences(broken, one_device) == ["step0/grads/stack/blocks/layer_0/mlp/down"]


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

  expected = {"loss": one_device["step0"]["metrics"]["loss"]}
  assert differences(loss(lambda sums: jax.lax.psum(sums, "data")), expected) == []
  assert differences(loss(lambda sums: sums), expected) == ["loss"]

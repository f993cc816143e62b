"""Which of a decoder's parameters are matrices to Muon, and Muon on a mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers as Dims

from jaxlm import tree
from jaxlm.layers.config import Norm, Positions
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.objectives import NextToken
from jaxlm.optim.base import OptimizerContext
from jaxlm.optim.matrices import muon_dims
from jaxlm.optim.muon import MuonConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.sharding import make_layout, to_device
from jaxlm.training.state import make_init
from jaxlm.training.step import make_train_step

pytestmark = pytest.mark.smoke

CONFIG = DecoderConfig(
  vocab_size=60,
  num_layers=2,
  embed_dim=32,
  mlp_dim=48,
  num_heads=4,
  num_kv_heads=2,
  qk_norm=True,
  max_seq_len=16,
  vocab_multiple=8,
)
# Every kind of parameter there is.
EVERYTHING = dataclasses.replace(
  CONFIG, use_bias=True, norm=Norm.LAYER, positions=Positions.LEARNED
)
# In an unrolled stack: which dims a matrix maps from, and to.
MATRICES = {
  "attention/q": Dims((0,), (1, 2)),  # (D, H, K)
  "attention/k": Dims((0,), (1, 2)),
  "attention/v": Dims((0,), (1, 2)),
  "attention/out": Dims((0, 1), (2,)),  # (H, K, D)
  "mlp/gate": Dims((0,), (1,)),
  "mlp/up": Dims((0,), (1,)),
  "mlp/down": Dims((0,), (1,)),
}


def is_dims(x):
  return x is None or isinstance(x, Dims)


@pytest.mark.parametrize("scan", [True, False])
def test_every_parameter_of_a_decoder(scan):
  """Matrices are the seven projections of each layer and nothing else, each layer its own; broken
  by a stacked bias taken for a matrix, or by a layers dim taken for an input."""
  config = dataclasses.replace(EVERYTHING, scan_layers=scan)
  with make_layout(MeshConfig(fsdp=1), jax.devices()[:1]).activate():
    model = config.build()
    found = muon_dims(model.logical_axes())
    shapes = jax.eval_shape(model.init, jax.random.key(0))
  shift = 1 if scan else 0
  expected = {
    "/".join(("stack/blocks", f"layer_{i}", name)): Dims(
      tuple(d + shift for d in dims.reduction_axis), tuple(d + shift for d in dims.output_axis)
    )
    for i in range(1 if scan else 2)
    for name, dims in MATRICES.items()
  }
  # One entry a parameter, None included.
  assert jax.tree.structure(found, is_leaf=is_dims) == jax.tree.structure(shapes)
  paths = jax.tree_util.tree_leaves_with_path(found, is_leaf=is_dims)
  assert {tree.path_str(path): dims for path, dims in paths if dims is not None} == expected


def test_each_expert_is_a_matrix_of_its_own():
  """Broken by experts taken for an input: their update is then one matrix over all of them."""
  moe = dataclasses.replace(CONFIG, num_experts=4, num_experts_per_token=2, scan_layers=True)
  with make_layout(MeshConfig(fsdp=1), jax.devices()[:1]).activate():
    found = muon_dims(moe.build().logical_axes())
  paths = jax.tree_util.tree_leaves_with_path(found, is_leaf=is_dims)
  by_name = {tree.path_str(path).split("layer_0/")[-1]: dims for path, dims in paths}
  # (layers, experts, D, F) and (layers, experts, F, D).
  experts = {k: d for k, d in by_name.items() if k.split("/")[-1] in ("gate", "up", "down")}
  assert len(experts) == 3, by_name
  assert all(dims == Dims((2,), (3,)) for dims in experts.values()), experts


def train(num_devices):
  """Parameters after two steps of Muon with ZeRO-3 over the devices, and the first's metrics."""
  rng = np.random.default_rng(0)
  shape = (4, 16)
  ids = rng.integers(0, 60, (4, 17), np.int32)
  arrays = {
    "inputs": ids[:, :-1],
    "targets": ids[:, 1:],
    "loss_weights": np.ones(shape, np.float32),
    "segment_ids": np.ones(shape, np.int32),
    "positions": np.tile(np.arange(16, dtype=np.int32), (4, 1)),
  }
  layout = make_layout(MeshConfig(fsdp=num_devices), jax.devices()[:num_devices])
  with layout.activate():
    model = CONFIG.build()
    schedule = ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=0)
    tx = MuonConfig(peak_lr=1e-2, eps=1e-3, schedule=schedule).build(
      OptimizerContext(
        num_steps=10, decay_mask=tree.decay_mask, muon_dims=muon_dims(model.logical_axes())
      )
    )
    loss = NextToken(vocab_size=60)
    state = jax.jit(make_init(model, tx))(jax.random.key(0))
    start = jax.device_get(state.params)
    step = jax.jit(make_train_step(model, loss, tx), donate_argnums=0)
    batch = to_device(arrays, layout)
    for _ in range(2):
      state, metrics = step(state, batch)
    assert step._cache_size() == 1
    return start, jax.device_get(state.params), jax.device_get(metrics)


def test_muon_on_two_devices_is_muon_on_one():
  """Each shard of a matrix is no matrix: broken by orthogonalising shards by themselves."""
  start, one, metrics = train(1)
  same_start, two, same_metrics = train(2)
  for name, value in metrics.items():
    np.testing.assert_allclose(same_metrics[name], value, rtol=1e-5, err_msg=name)

  def compare(path, a, b, first, same_first):
    np.testing.assert_array_equal(first, same_first)
    moved = np.linalg.norm(b - first)
    assert moved > 0, path
    # Of the change, not of the value: what the iteration makes of rounding is some 1e-5 of it.
    assert np.linalg.norm(a - b) <= 1e-4 * moved, path

  jax.tree_util.tree_map_with_path(compare, two, one, start, same_start)


def test_a_model_without_names_is_refused():
  """Built outside a Layout nothing is named, and Muon would silently be AdamW everywhere."""
  with pytest.raises(ValueError, match="under a Layout"):
    muon_dims(CONFIG.build().logical_axes())

"""µP: activations keep their sizes as the model gets wider, which they do not without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.batch import Batch
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig
from jaxlm.errors import UserError
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.models.mup import MupConfig
from jaxlm.optim.adafactor import AdafactorConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.lion import LionConfig
from jaxlm.optim.muon import MuonConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.program import make_loss_fn, make_optimizer
from jaxlm.sharding import make_layout
from jaxlm.training.state import make_init
from jaxlm.training.step import make_train_step

T, V, BASE = 16, 64, 32
WIDTHS = (32, 64, 128, 256)


def make_config(width, *, mup, heads=True, optim=AdamWConfig, tie=False):
  """heads: a wider model has more of them; False: larger ones."""
  base = MupConfig(embed_dim=BASE, head_dim=None if heads else BASE // 4)
  return RunConfig(
    model=DecoderConfig(
      vocab_size=V,
      num_layers=2,
      embed_dim=width,
      mlp_dim=2 * width,
      num_heads=width // 8 if heads else 4,
      max_seq_len=T,
      vocab_multiple=8,
      init_std=0.1,
      tie_embeddings=tie,
      mup=base if mup else None,
    ),
    data=DataConfig(seq_len=T),
    optim=optim(peak_lr=0.01, schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=1)),
    num_steps=10,
  )


@pytest.fixture(scope="module")
def layout():
  with make_layout(MeshConfig(), jax.devices()[:1]).activate() as layout:
    yield layout


def make_batch(layout):
  ids = np.random.default_rng(0).integers(0, V, (8, T + 1)).astype(np.int32)
  where = layout.sharding(("act_batch", "act_seq"))

  def put(x):
    return jax.device_put(x, where)

  return Batch(
    inputs=put(ids[:, :-1]),
    targets=put(ids[:, 1:]),
    loss_weights=put(np.ones((8, T), np.float32)),
    segment_ids=None,
    positions=put(np.tile(np.arange(T, dtype=np.int32), (8, 1))),
  )


def movement(config, layout, steps=4):
  """Mean sizes of what a few steps change in the last features and in the logits."""
  model = config.model.build()
  tx = make_optimizer(config, model)
  state = jax.jit(make_init(model, tx))(jax.random.key(0))
  batch = make_batch(layout)

  @jax.jit
  def look(params):
    module = model.bind(params)
    features, *_ = module.features(batch.inputs)
    # The logits' multiplier is part of the features; sizes are compared without it.
    return features / config.model.mup_ratios.logits_factor, module(batch.inputs)[0][..., :V]

  before = look(state.params)
  step = jax.jit(make_train_step(model, make_loss_fn(config), tx))
  for _ in range(steps):
    state, _ = step(state, batch)
  after = look(state.params)
  return [float(jnp.mean(jnp.abs(b - a))) for a, b in zip(before, after)]


@pytest.mark.parametrize("heads", [True, False], ids=["more_heads", "larger_heads"])
def test_coordinate_check(layout, heads):
  """Over 8 × the width, what learning moves stays within 1.5 ×; without µP the logits move more and
  more. Broken by a wrong learning rate, init, attention scale or multiplier."""
  with_mup = [movement(make_config(w, mup=True, heads=heads), layout) for w in WIDTHS]
  without = [movement(make_config(w, mup=False, heads=heads), layout) for w in WIDTHS]
  for moved in zip(*with_mup):
    assert moved[-1] < 1.5 * moved[0], with_mup
    assert moved[-1] > moved[0] / 2.5, with_mup  # nor does it fade
  logits = [moved[1] for moved in without]
  assert logits[-1] > 2.5 * logits[0], without
  assert logits == sorted(logits), without


def test_tied_logits_do_not_grow(layout):
  moved = [movement(make_config(w, mup=True, tie=True), layout)[1] for w in (32, 256)]
  assert moved[1] < 1.5 * moved[0]


def test_the_base_is_the_standard_parametrisation(layout):
  """Bit for bit: at the base width µP changes nothing."""
  for heads in (True, False):
    a, b = (movement(make_config(BASE, mup=m, heads=heads), layout) for m in (True, False))
    assert a == b


def test_learning_rates(layout):
  """1 / m for hidden weights, whose m is that of their inputs; 1 for all else."""
  config = make_config(128, mup=True)
  config.model = dataclasses.replace(
    config.model, mup=MupConfig(embed_dim=64, mlp_dim=32, attention_dim=16), use_bias=True
  )
  config.optim.weight_decay = 0.0
  model = config.model.build()
  params = jax.jit(model.init)(jax.random.key(0))
  updates = []
  for mup in (config.model.mup, None):
    config.model.mup = mup
    tx = make_optimizer(config, model)
    grads = jax.tree.map(jnp.ones_like, params)
    updates.append(tx.update(grads, tx.init(params), params)[0])
  factors = jax.tree.map(lambda a, b: round(float((a / b).mean()), 5), *updates)
  block = factors["stack"]["blocks"]["layer_0"]
  assert block["attention"]["q"] == block["attention"]["v"] == block["mlp"]["up"] == 0.5
  assert block["attention"]["out"] == 0.125  # 128 / 16
  assert block["mlp"]["down"] == 0.125  # 256 / 32
  assert block["mlp"]["down_bias"] == block["attention"]["q_bias"] == 1
  assert factors["embed"]["table"] == factors["unembed"]["table"] == 1
  assert factors["final_norm"]["scale"] == 1


@pytest.mark.parametrize("optim", [MuonConfig, AdafactorConfig])
def test_other_optimizers_are_refused(layout, optim):
  config = make_config(64, mup=True, optim=optim)
  with pytest.raises(UserError, match=f"not for {optim.__name__}"):
    make_optimizer(config, config.model.build())


def test_lion_is_not(layout):
  config = make_config(64, mup=True, optim=LionConfig)
  make_optimizer(config, config.model.build())

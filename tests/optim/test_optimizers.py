"""Every optimizer of the table has every property; a new optimizer is one line here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

from jaxlm import configlib
from jaxlm.errors import UserError
from jaxlm.optim.adafactor import AdafactorConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.base import OptimizerConfig, OptimizerContext
from jaxlm.optim.lion import LionConfig
from jaxlm.optim.muon import MuonConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind

CONSTANT = ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=0)
OPTIMIZERS = {
  "adamw": AdamWConfig(peak_lr=0.02),
  "adafactor": AdafactorConfig(peak_lr=0.1),
  "adafactor_factored": AdafactorConfig(
    peak_lr=0.02, min_dim_size_to_factor=2, scale_by_parameter=False
  ),
  "lion": LionConfig(peak_lr=0.005),
  "muon": MuonConfig(peak_lr=0.02),
}
every_optimizer = pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())

LAYERS, IN, HIDDEN = 2, 6, 4
DECAY_MASK = {"embed": {"table": True}, "blocks": {"up": True, "down": True, "scale": False}}
DIMS = {
  "embed": {"table": None},
  "blocks": {
    "up": MuonDimensionNumbers((1,), (2, 3)),  # (L, IN, 2, HIDDEN): two output dims
    "down": MuonDimensionNumbers((1, 2), (3,)),
    "scale": None,
  },
}


def context(num_steps=100):
  return OptimizerContext(num_steps=num_steps, decay_mask=DECAY_MASK, muon_dims=DIMS)


def make_params(seed=0):
  keys = iter(jax.random.split(jax.random.key(seed), 3))
  return {
    "embed": {"table": 0.5 * jax.random.normal(next(keys), (IN, IN))},
    "blocks": {
      "up": 0.3 * jax.random.normal(next(keys), (LAYERS, IN, 2, HIDDEN)),
      "down": 0.3 * jax.random.normal(next(keys), (LAYERS, 2, HIDDEN, IN)),
      "scale": jnp.ones((LAYERS, IN)),
    },
  }


def predict(params, x):
  x = x @ params["embed"]["table"]
  for i in range(LAYERS):
    block = {name: value[i] for name, value in params["blocks"].items()}
    h = jnp.tanh(jnp.einsum("bi,ijh->bjh", x * block["scale"][None], block["up"]))
    x = x + jnp.einsum("bjh,jhi->bi", h, block["down"])
  return x


def loss(params, x, y):
  return jnp.mean(jnp.square(predict(params, x) - y))


def with_(config, **changes):
  return dataclasses.replace(config, schedule=CONSTANT, **changes)


@every_optimizer
def test_converges_without_recompiling_and_keeps_its_state_types(config):
  # Breaks if an update has the wrong sign or size, or the state changes a type or a shape.
  config = with_(config, weight_decay=0.0)
  transform = config.build(context())
  params = make_params()
  x = jax.random.normal(jax.random.key(5), (64, IN))
  y = predict(make_params(seed=9), x)

  @jax.jit
  def step(params, state):
    value, gradients = jax.value_and_grad(loss)(params, x, y)
    updates, state = transform.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

  state = jax.jit(transform.init)(params)
  types = jax.tree.map(lambda a: (a.shape, a.dtype), (params, state))
  losses = []
  for _ in range(60):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), (params, state)) == types
  assert step._cache_size() == 1
  assert np.isfinite(losses).all()
  assert losses[-1] < 0.3 * losses[0], losses[::10]


@every_optimizer
def test_decay_is_scaled_by_the_learning_rate_and_masked(config):
  # Breaks if a scale decays, if a matrix does not, or if decay does not follow the learning rate.
  config = with_(config, peak_lr=0.01, weight_decay=0.5)
  transform = config.build(context())
  params = make_params()
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = transform.update(zeros, transform.init(params), params)
  np.testing.assert_array_equal(updates["blocks"]["scale"], 0)
  for a, b in [("embed", "table"), ("blocks", "up"), ("blocks", "down")]:
    np.testing.assert_allclose(updates[a][b], -0.01 * 0.5 * params[a][b], rtol=1e-5, atol=1e-8)


@every_optimizer
def test_clipping(config):
  # Breaks if clipping comes after the preconditioner, or does not see the norm of the whole tree.
  params = make_params()
  gradients = jax.tree.map(lambda p: 3 * jnp.ones_like(p), params)
  norm = np.sqrt(sum(9 * p.size for p in jax.tree.leaves(params)))
  clipped = with_(config, grad_clip_norm=norm / 10).build(context())
  by_hand = with_(config, grad_clip_norm=None).build(context())
  scaled = jax.tree.map(lambda g: g / 10, gradients)
  a, state_a = clipped.update(gradients, clipped.init(params), params)
  b, state_b = by_hand.update(scaled, by_hand.init(params), params)
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-5, atol=1e-7), a, b)
  moments = [jax.tree.leaves(s) for s in (state_a, state_b)]
  for u, v in zip(*moments, strict=True):
    np.testing.assert_allclose(u, v, rtol=2e-5, atol=1e-7)


@every_optimizer
def test_updates_follow_the_schedule(config):
  # The same gradient at step 0 under two schedules: the updates differ by the learning rates.
  params = make_params()
  gradients = jax.tree.map(jnp.ones_like, params)

  def first_update(schedule):
    c = dataclasses.replace(config, schedule=schedule)
    transform = c.build(context())
    updates, _ = transform.update(gradients, transform.init(params), params)
    return updates, float(c.learning_rate(100)(0))

  full, lr_full = first_update(CONSTANT)
  warm, lr_warm = first_update(ScheduleConfig(warmup_steps=8))
  assert lr_warm == pytest.approx(lr_full / 8)
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v / 8, rtol=1e-5, atol=1e-9), warm, full)


@every_optimizer
def test_validate_and_json(config):
  config.validate("optim")
  assert configlib.from_dict(configlib.to_dict(config)) == config
  nan = float("nan")
  wrong = [("peak_lr", 0.0), ("weight_decay", -1.0), ("grad_clip_norm", 0.0)]
  for name, value in [*wrong, ("peak_lr", nan), ("weight_decay", nan), ("peak_lr", float("inf"))]:
    with pytest.raises(UserError, match=rf"^optim\.{name}={value}: must"):
      dataclasses.replace(config, **{name: value}).validate("optim")
  for name in ("b1", "b2", "momentum", "decay_rate"):
    if hasattr(config, name):
      with pytest.raises(UserError, match=rf"^optim\.{name}=1\.0: must be at least 0 and below 1"):
        dataclasses.replace(config, **{name: 1.0}).validate("optim")


def test_adamw_against_the_paper():
  # Three steps of Algorithm 2 of arXiv:1711.05101 in numpy, float64.
  config = AdamWConfig(peak_lr=0.1, weight_decay=0.3, grad_clip_norm=None, schedule=CONSTANT)
  transform = config.build(OptimizerContext(num_steps=3))
  p = np.array([1.0, -2.0])
  params, m, v = {"w": jnp.asarray(p, jnp.float32)}, np.zeros(2), np.zeros(2)
  state = transform.init(params)
  for t, g in enumerate(np.array([[0.5, 1.0], [-0.2, 2.0], [1.0, 0.1]]), start=1):
    updates, state = transform.update({"w": jnp.asarray(g, jnp.float32)}, state, params)
    params = optax.apply_updates(params, updates)
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    p = p - 0.1 * (direction + 0.3 * p)
  np.testing.assert_allclose(params["w"], p, rtol=1e-5)


def test_muon_treats_stacked_layers_and_several_dims_as_separate_matrices():
  # Breaks if the layer dim is folded into a matrix, or if input and output dims are mixed up.
  config = MuonConfig(peak_lr=1.0, weight_decay=0.0, grad_clip_norm=None, schedule=CONSTANT)
  gradient = jax.random.normal(jax.random.key(0), (3, 5, 2, 4))
  stacked = config.build(OptimizerContext(1, None, {"w": MuonDimensionNumbers((1,), (2, 3))}))
  flat = config.build(OptimizerContext(1, None, {"w": MuonDimensionNumbers(0, 1)}))
  params = {"w": jnp.zeros_like(gradient)}
  updates, _ = stacked.update({"w": gradient}, stacked.init(params), params)
  for layer in range(3):
    one = {"w": gradient[layer].reshape(5, 8)}
    expected, _ = flat.update(one, flat.init(one), one)
    np.testing.assert_allclose(updates["w"][layer].reshape(5, 8), expected["w"], atol=2e-5)
    # Orthogonal up to the known slack of five iterations, and of AdamW's size.
    singular = np.linalg.svd(expected["w"], compute_uv=False) / (0.2 * np.sqrt(8))
    assert (singular > 0.3).all() and (singular < 1.6).all()
  assert float(jnp.sqrt(jnp.mean(updates["w"] ** 2))) == pytest.approx(0.2, rel=0.2)


def test_muon_leaves_the_rest_to_adamw():
  muon = with_(OPTIMIZERS["muon"]).build(context())
  adamw = with_(AdamWConfig(peak_lr=0.02)).build(context())
  params = make_params()
  gradients = jax.tree.map(lambda p: jnp.sin(7 * p), params)
  a, _ = muon.update(gradients, muon.init(params), params)
  b, _ = adamw.update(gradients, adamw.init(params), params)
  np.testing.assert_allclose(a["embed"]["table"], b["embed"]["table"], rtol=1e-6)
  np.testing.assert_allclose(a["blocks"]["scale"], b["blocks"]["scale"], rtol=1e-6)
  assert not np.allclose(a["blocks"]["up"], b["blocks"]["up"], rtol=1e-2)


def test_adafactor_state_is_factored():
  # Breaks if the second moment of a matrix is kept whole: the reason to choose Adafactor.
  config = with_(OPTIMIZERS["adafactor_factored"])
  params = {"w": jnp.ones((8, 16))}
  state = config.build(OptimizerContext(1)).init(params)
  assert sum(a.size for a in jax.tree.leaves(state)) < 40


def test_the_base_is_no_optimizer():
  with pytest.raises(TypeError, match="use AdamWConfig"):
    OptimizerConfig().build(OptimizerContext(1000))

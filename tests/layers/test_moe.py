"""A mixture of experts equals a loop over its experts, in value and gradients, on any mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlm.layers.config import Activation
from jaxlm.layers.moe import MoeMlp
from jaxlm.mesh import MESH_AXES, MeshConfig
from jaxlm.sharding import constrain, make_layout, normal

pytestmark = pytest.mark.smoke

B, T, D, F, E, K = 8, 16, 16, 32, 8, 2
MESHES = {
  "expert4": MeshConfig(expert=4, fsdp=1),
  "expert2_fsdp2_model2": MeshConfig(expert=2, fsdp=2, model=2),
  "data8": MeshConfig(data=8, fsdp=1),
  "fsdp8": MeshConfig(fsdp=8),
  "data2_model4": MeshConfig(data=2, fsdp=1, model=4),
  "fsdp2_sequence2_model2": MeshConfig(fsdp=2, sequence=2, model=2),
}


def make(activation=Activation.SWIGLU, capacity_factor=None, experts=E, per_token=K, ladder=None):
  """Weights of a size at which every nonlinearity bends, and a router that is far from even."""
  return MoeMlp(
    embed_dim=D,
    mlp_dim=F,
    num_experts=experts,
    experts_per_token=per_token,
    activation=activation,
    capacity_factor=capacity_factor,
    ladder=ladder,
    init=normal(0.5),
    init_out=normal(0.5),
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    rngs=nnx.Rngs(0),
  )


def make_x():
  return jax.random.normal(jax.random.key(1), (B, T, D))


def reference(weights, x, activation, per_token):
  """All experts on all tokens, weighted; nothing is sorted, grouped or dropped."""
  logits = jnp.einsum("btd,de->bte", x, weights["router"])
  probs = jax.nn.softmax(logits)
  _, chosen = jax.lax.top_k(probs, per_token)
  mask = jax.nn.one_hot(chosen, logits.shape[-1]).sum(-2)
  gates = probs * mask
  if per_token > 1:
    gates /= jnp.sum(gates, -1, keepdims=True)
  act = jax.nn.silu if activation is Activation.SWIGLU else jax.nn.gelu
  y = jnp.zeros_like(x)
  for e in range(logits.shape[-1]):
    h = act(x @ weights["gate"][e]) * (x @ weights["up"][e])
    y += gates[..., e, None] * (h @ weights["down"][e])
  load = mask.mean((0, 1)) / per_token
  aux = {
    "load_balance": logits.shape[-1] * jnp.sum(load * probs.mean((0, 1))),
    "z_loss": jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2),
    "load_entropy": -jnp.sum(jax.scipy.special.xlogy(load, load)) / np.log(logits.shape[-1]),
    "dropped": jnp.zeros(()),
  }
  return y, aux


def run(f, weights, x):
  """Value, aux, and the gradients of a scalar in which every output counts differently."""

  def loss(weights, x):
    y, aux = f(weights, x)
    total = jnp.sum(jnp.sin(y) * y) + 10 * aux["load_balance"] + 3 * aux["z_loss"]
    return total, (y, aux)

  (_, (y, aux)), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(weights, x)
  return {"y": y, "aux": aux, "weights": grads[0], "x": grads[1]}


def layer(model):
  """The layer as a function of its weights, and the weights."""
  graph, state = nnx.split(model)

  def f(weights, x):
    new = jax.tree.map(lambda p: p, state)
    nnx.replace_by_pure_dict(new, weights)
    y, aux = nnx.merge(graph, new)(x)
    return y, aux._asdict()

  return f, nnx.to_pure_dict(state)


def check(found, expected, rtol=1e-5):
  def compare(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b) + 1e-7, jax.tree_util.keystr(path)

  jax.tree_util.tree_map_with_path(compare, jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("experts, per_token", [(8, 2), (8, 1), (16, 4), (4, 4)])
@pytest.mark.parametrize("activation", [Activation.SWIGLU, Activation.GEGLU])
def test_equals_a_loop_over_the_experts(activation, experts, per_token):
  """Broken by rows that go to the wrong expert or come back to the wrong token, weights that are
  not normalised, or a router whose gradient misses a path."""
  f, weights = layer(make(activation, experts=experts, per_token=per_token))
  x = make_x()
  expected = run(lambda w, x: reference(w, x, activation, per_token), weights, x)
  assert np.linalg.norm(expected["weights"]["router"]) > 1
  check(run(f, weights, x), expected)


@pytest.mark.parametrize("used", [1, 2, 5])
def test_experts_without_tokens(used):
  """A router that knows `used` experts (and must choose two): the others get exact zeros."""
  f, weights = layer(make(experts=E, per_token=min(K, used)))
  x = jnp.abs(make_x())
  weights["router"] = weights["router"].at[:, used:].set(-10.0)
  found = run(f, weights, x)
  check(found, run(lambda w, x: reference(w, x, Activation.SWIGLU, min(K, used)), weights, x))
  for name in ("gate", "up", "down"):
    assert not np.asarray(found["weights"][name][used:]).any()
    assert np.asarray(found["weights"][name][:used]).any()


def test_ample_capacity_is_dropless():
  f, weights = layer(make())
  g, _ = layer(make(capacity_factor=E / K))
  check(run(g, weights, make_x()), run(f, weights, make_x()))


@pytest.mark.parametrize("ladder", [(0.5, 4.0), (4.0,), (0.25, 0.5), (0.5, 1.0, 4.0)])
def test_a_ladder_of_capacities_drops_nothing(ladder):
  """Its steps are too small, fit, or all too small (grouped matmuls then); broken by a step that is
  taken though the fullest expert has no room on it, and by a capacity that rounds down."""
  f, weights = layer(make())
  g, _ = layer(make(ladder=ladder))
  for scale in (0.1, 3.0):  # an even and an uneven router
    uneven = dict(weights, router=scale * weights["router"])
    found = run(g, uneven, make_x())
    assert found["aux"]["dropped"] == 0
    check(found, run(f, uneven, make_x()))


@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_what_is_over_capacity_is_dropped_and_counted(factor):
  """The choices of earlier tokens are kept. A choice that is dropped has no gradient either."""
  f, weights = layer(make(capacity_factor=factor))
  x = make_x()
  capacity = int(np.ceil(factor * B * T * K / E))
  probs = jax.nn.softmax(x.reshape(-1, D) @ weights["router"])
  chosen = np.asarray(jax.lax.top_k(probs, K)[1])
  kept = np.zeros((B * T, E))
  for n, k in np.ndindex(chosen.shape):
    kept[n, chosen[n, k]] = kept[:, chosen[n, k]].sum() < capacity
  dropped = 1 - kept.sum() / chosen.size
  assert dropped > 0.1

  def expected(weights, x):
    probs = jax.nn.softmax(x @ weights["router"]).reshape(-1, E)
    mask = jax.nn.one_hot(chosen, E).sum(1)
    gates = (probs * mask / jnp.sum(probs * mask, -1, keepdims=True) * kept).reshape(B, T, E)
    y = jnp.zeros_like(x)
    for e in range(E):
      h = jax.nn.silu(x @ weights["gate"][e]) * (x @ weights["up"][e])
      y += gates[..., e, None] * (h @ weights["down"][e])
    _, aux = reference(weights, x, Activation.SWIGLU, K)
    return y, aux | {"dropped": jnp.array(dropped)}

  check(run(f, weights, x), run(expected, weights, x))


def test_permuted_tokens_give_permuted_results():
  f, weights = layer(make())
  x = make_x().reshape(1, B * T, D)
  order = np.random.default_rng(0).permutation(B * T)
  y, aux = f(weights, x)
  y_permuted, aux_permuted = f(weights, x[:, order])
  check(y_permuted, y[:, order], rtol=1e-6)
  check(aux_permuted, aux, rtol=1e-6)


def test_even_routing_has_the_least_loss_and_full_entropy():
  f, weights = layer(make(per_token=1))
  weights["router"] = 4 * jnp.eye(D)[:, :E]
  x = jnp.tile(jnp.eye(D)[:E], (B, T // E, 1))
  _, even = f(weights, x)
  _, one = f(weights, jnp.broadcast_to(jnp.eye(D)[0], x.shape))
  assert float(even["load_balance"]) == pytest.approx(1)
  assert float(even["load_entropy"]) == pytest.approx(1)
  assert float(one["load_balance"]) > 5 and float(one["load_entropy"]) == 0


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_computes_what_one_device_does(name):
  """Broken by a sum over devices that is lost or done twice: of y, the aux, or any gradient."""
  f, weights = layer(make())
  x = make_x()
  expected = run(f, weights, x)
  config = MESHES[name]
  sizes = [getattr(config, axis) for axis in MESH_AXES]
  count = 8 if -1 in sizes else math.prod(sizes)
  with make_layout(config, jax.devices()[:count]).activate():
    model = make()
    g, sharded = layer(model)
    check(sharded, weights, rtol=0)
    x = constrain(x, "act_batch", "act_seq", "act_embed")
    found = run(g, sharded, x)
    for key in weights:
      assert found["weights"][key].sharding.is_equivalent_to(
        sharded[key].sharding, sharded[key].ndim
      ), key
    check(found, expected)


def test_capacity_is_shared_out_by_device():
  """Each device has room for its own tokens only, and counts its own drops."""
  factor = 0.5
  f, weights = layer(make(capacity_factor=factor))
  x = make_x()
  rows = [f(weights, row[None]) for row in x]
  with make_layout(MeshConfig(data=8, fsdp=1), jax.devices()[:8]).activate():
    g, sharded = layer(make(capacity_factor=factor))
    y, aux = jax.jit(g)(sharded, constrain(x, "act_batch", "act_seq", "act_embed"))
  check(y, jnp.concatenate([y for y, _ in rows]))
  check(aux["dropped"], jnp.mean(jnp.array([aux["dropped"] for _, aux in rows])))
  assert float(aux["dropped"]) > 0


def test_remat_of_the_layer_keeps_its_gradients():
  f, weights = layer(make())
  x = make_x()
  policy = jax.checkpoint_policies.save_only_these_names("mlp")
  check(run(jax.checkpoint(f, policy=policy), weights, x), run(f, weights, x))


def test_impossible_shapes_are_refused():
  with pytest.raises(ValueError, match="gated"):
    make(Activation.GELU)
  with pytest.raises(ValueError, match="experts_per_token"):
    make(per_token=9)


def test_router_bias_is_pulled_against_the_overload():
  """Its gradient of the load-balancing loss is the sign of each expert's overload, and it adds
  nothing to the loss itself."""
  common = dict(
    embed_dim=D,
    mlp_dim=F,
    num_experts=E,
    experts_per_token=K,
    activation=Activation.SWIGLU,
    init=normal(0.5),
    init_out=normal(0.5),
    dtype=jnp.float32,
    param_dtype=jnp.float32,
  )
  model = MoeMlp(router_bias=True, rngs=nnx.Rngs(0), **common)
  graph, state = nnx.split(model)
  x = make_x()

  def balance(bias):
    params = nnx.to_pure_dict(state) | {"router_bias": bias}
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)(x)[1].load_balance

  params = nnx.to_pure_dict(state)
  zero = jnp.zeros(E)
  value, grad = jax.value_and_grad(balance)(zero)
  logits = x.reshape(-1, D) @ params["router"]
  choices = np.bincount(np.asarray(jax.lax.top_k(logits, K)[1]).ravel(), minlength=E)
  np.testing.assert_array_equal(grad, np.sign(choices - choices.mean()))
  plain = MoeMlp(router_bias=False, rngs=nnx.Rngs(0), **common)
  without, rest = nnx.split(plain)
  nnx.replace_by_pure_dict(rest, {k: v for k, v in params.items() if k != "router_bias"})
  assert float(value) == pytest.approx(float(nnx.merge(without, rest)(x)[1].load_balance))

"""What an encoder promises: it sees both sides of its own document, however it is laid out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import configlib, tree
from jaxlm.batch import Batch
from jaxlm.errors import UserError
from jaxlm.layers.config import Activation, AttentionImpl, Positions, Remat
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.objectives import NextToken
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.base import OptimizerContext
from jaxlm.sharding import make_layout, to_device
from jaxlm.training.state import make_init
from jaxlm.training.step import make_train_step

T, CUT, V = 16, 7, 60
CONFIG = EncoderConfig(
  vocab_size=V,
  num_layers=4,
  embed_dim=32,
  mlp_dim=48,
  num_heads=4,
  max_seq_len=2 * T,
  vocab_multiple=8,
  init_std=0.2,
)
BERT = {
  "pre_norm": False,
  "norm_bias": True,
  "use_bias": True,
  "positions": Positions.LEARNED,
  "position_offset": 2,
  "token_types": 2,
  "activation": Activation.GELU_EXACT,
}
LOCAL = {"local_reach": 2, "global_every": 2}
KINDS = {"plain": {}, "bert": BERT, "local": LOCAL}
SEGMENTS = jnp.asarray([[1] * CUT + [2] * (T - CUT - 3) + [0] * 3], jnp.int32)


def make(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  config.validate("model")
  model = config.build()
  return model, jax.jit(model.init)(jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, inputs, **kwargs):
  return model.bind(params)(inputs, **kwargs)[0][..., :V]


def ids(seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, V, (1, T)), jnp.int32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scan", [True, False])
def test_num_params(kind, scan):
  config = dataclasses.replace(CONFIG, scan_layers=scan, **KINDS[kind])
  shapes = jax.eval_shape(config.build().init, jax.random.key(0))
  assert tree.count(shapes) == config.num_params()
  assert config.flops_per_token(T) > 6 * config.num_matmul_params()


def reach(model, params, **kwargs):
  """bool (T, T): whether the logits at [t] depend on the input at [s], by gradient."""
  inputs = jnp.arange(T, dtype=jnp.int32)[None]

  def f(table):
    module = model.bind(params | {"embed": {"table": params["embed"]["table"].at[:T].set(table)}})
    features, *_ = module.features(inputs, **kwargs)
    return jnp.square(features[0]).sum(axis=-1) + features[0, :, 0]

  jacobian = jax.jit(jax.jacobian(f))(params["embed"]["table"][:T])
  return np.abs(np.asarray(jacobian)).max(axis=-1) > 0


@pytest.mark.parametrize("kind", ["plain", "bert"])
def test_sees_both_sides_of_its_document(kind):
  """Everything of the own document, nothing of another, and padding is not seen."""
  model, params = make(**KINDS[kind])
  assert reach(model, params).all()
  same = np.asarray(SEGMENTS)[0][:, None] == np.asarray(SEGMENTS)[0][None]
  np.testing.assert_array_equal(reach(model, params, segment_ids_BT=SEGMENTS), same)


def test_local_layers_reach_to_both_sides():
  """One local layer behind a global one that can be switched off by its output weights."""
  model, params = make(num_layers=2, **LOCAL)
  out = params["stack"]["blocks"]["layer_0"]["attention"]["out"]
  params["stack"]["blocks"]["layer_0"]["attention"]["out"] = out.at[0].set(0.0)
  distance = np.abs(np.arange(T)[:, None] - np.arange(T)[None])
  np.testing.assert_array_equal(reach(model, params), distance <= 2)
  assert CONFIG.local_layers == (False,) * 4
  assert dataclasses.replace(CONFIG, **LOCAL).local_layers == (False, True) * 2


def test_local_layers_have_their_own_base():
  a, b = (make(**LOCAL, local_rope_theta=theta) for theta in (10.0, 10_000.0))
  assert np.abs(logits(*a, ids()) - logits(*b, ids())).max() > 1e-3
  a, b = (make(local_rope_theta=theta) for theta in (10.0, 10_000.0))
  np.testing.assert_array_equal(logits(*a, ids()), logits(*b, ids()))


def test_the_output_bias_is_added():
  model, params = make()
  before = logits(model, params, ids())
  bias = jnp.arange(64, dtype=jnp.float32)
  after = logits(model, params | {"output_bias": bias}, ids())
  np.testing.assert_allclose(after - before, jnp.broadcast_to(bias[:V], before.shape), atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "local"])
def test_unrolled_is_scanned(kind):
  """The same parameters, stacked and side by side."""
  scanned, params = make(**KINDS[kind])
  unrolled, other = make(**KINDS[kind], scan_layers=False)
  stacked = params["stack"]["blocks"]["layer_0"]
  blocks = {f"layer_{i}": jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(4)}
  assert jax.tree.structure(blocks) == jax.tree.structure(other["stack"]["blocks"])
  same = params | {"stack": {"blocks": blocks}}
  np.testing.assert_allclose(
    logits(unrolled, same, ids()), logits(scanned, params, ids()), atol=1e-5
  )


def make_arrays():
  rng = np.random.default_rng(0)
  targets = rng.integers(0, V, (8, T)).astype(np.int32)
  chosen = rng.random((8, T)) < 0.3
  return {
    "inputs": np.where(chosen, V - 1, targets).astype(np.int32),
    "targets": targets,
    "loss_weights": chosen.astype(np.float32),
    "segment_ids": np.tile(np.asarray(SEGMENTS), (8, 1)),
    "positions": np.tile(np.arange(T, dtype=np.int32), (8, 1)),
  }


def train(mesh, num_devices, steps=3, num_microbatches=1, **changes):
  config = dataclasses.replace(CONFIG, **{"dropout": 0.1} | changes)
  config.validate_mesh("model", mesh.sizes(num_devices))
  with make_layout(mesh, jax.devices()[:num_devices]).activate() as layout:
    model = config.build()
    tx = AdamWConfig(peak_lr=0.5).build(OptimizerContext(num_steps=1000))
    state = jax.jit(make_init(model, tx))(jax.random.key(0))
    step = make_train_step(
      model,
      NextToken(vocab_size=V),
      tx,
      num_microbatches=num_microbatches,
      dropout_seed=1,
    )
    step, batch, losses = jax.jit(step), to_device(make_arrays(), layout), []
    for _ in range(steps):
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.mark.parametrize("kind", ["bert", "local"])
def test_training_on_2_by_2_devices_is_training_on_one(kind):
  one = train(MeshConfig(), 1, **KINDS[kind])
  four = train(MeshConfig(fsdp=2, model=2), 4, **KINDS[kind])
  again = train(MeshConfig(fsdp=2, model=2), 4, remat=Remat.FULL, **KINDS[kind])
  for other in (four, again):
    np.testing.assert_allclose(other[0], one[0], rtol=1e-4)
  assert one[0][-1] < one[0][0]


def test_microbatches():
  """Two halves one after another are the whole."""
  whole, halves = (train(MeshConfig(data=2), 2, 2, n, dropout=0.0, **BERT) for n in (1, 2))
  np.testing.assert_allclose(whole[0], halves[0], rtol=1e-5)


def test_what_can_not_be_is_refused():
  for changes, match in (
    ({"num_heads": 5}, "num_heads=5"),
    ({"positions": Positions.ALIBI}, "positions=ALIBI"),
    ({"local_reach": -1}, "local_reach=-1"),
    ({"global_every": 0}, "global_every=0"),
  ):
    with pytest.raises(UserError, match=match):
      dataclasses.replace(CONFIG, **changes).validate("model")
  for axis in ("stage", "sequence", "expert"):
    with pytest.raises(UserError, match=f"mesh.{axis}=2"):
      CONFIG.validate_mesh("model", MeshConfig(**{axis: 2}).sizes(2))
  # A kernel that is causal must not be taken for what is not.
  model, params = make(attention=AttentionImpl.SPLASH)
  with pytest.raises(UserError, match="SPLASH"):
    logits(model, params, ids())
  with make_layout(MeshConfig(sequence=2), jax.devices()[:2]).activate() as layout:
    where = layout.sharding(("act_batch", "act_seq"))
    model, params = make()
    with pytest.raises(UserError, match="spreads causal attention alone"):
      logits(model, params, jax.device_put(ids(), where))


def test_config_survives_json():
  config = dataclasses.replace(CONFIG, **BERT)
  assert configlib.from_dict(configlib.to_dict(config)) == config


# ---- prefix-LM, of a decoder ------------------------------------------------------------------


def test_prefix_is_seen_by_all_of_its_document():
  """By gradient: within a prefix both ways, behind it causally, and nothing across documents."""
  config = DecoderConfig(
    vocab_size=V,
    num_layers=2,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    vocab_multiple=8,
    init_std=0.2,
  )
  model = config.build()
  params = jax.jit(model.init)(jax.random.key(0))
  segments = jnp.asarray([[1] * CUT + [2] * (T - CUT)], jnp.int32)
  prefix = np.zeros((1, T), np.int32)
  prefix[0, :3] = prefix[0, CUT : CUT + 5] = 1
  expected = np.tril(np.ones((T, T), bool)) | (prefix[0][None] > 0)
  expected &= np.asarray(segments)[0][:, None] == np.asarray(segments)[0][None]
  found = reach(model, params, segment_ids_BT=segments, prefix_BT=jnp.asarray(prefix))
  np.testing.assert_array_equal(found, expected)


def test_loss_of_a_prefix_batch():
  """The step hands the prefix to the model: later tokens of it change the loss at earlier ones."""
  from jaxlm.training.step import make_loss

  config = DecoderConfig(
    vocab_size=V,
    num_layers=1,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    vocab_multiple=8,
    init_std=0.2,
  )
  model = config.build()
  params = jax.jit(model.init)(jax.random.key(0))
  loss = make_loss(model, NextToken(vocab_size=V))
  weights = jnp.zeros((1, T)).at[0, 2].set(1.0)

  def nll(inputs, prefix):
    positions = jnp.arange(T, dtype=jnp.int32)[None]
    batch = Batch(
      inputs=inputs,
      targets=ids(1),
      loss_weights=weights,
      segment_ids=None,
      positions=positions,
      prefix=prefix,
    )
    return float(loss(params, batch).nll)

  inputs, other = ids(), ids().at[0, 5].set(3)
  assert nll(inputs, None) == nll(other, None)
  prefix = (jnp.arange(T) < 6).astype(jnp.int32)[None]
  assert abs(nll(inputs, prefix) - nll(other, prefix)) > 1e-4

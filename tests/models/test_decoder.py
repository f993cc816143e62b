"""What a decoder promises: causal, blind across documents, the same however it is laid out."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import tree
from jaxlm.layers.config import Activation, Norm, Positions, Remat
from jaxlm.models.config import DecoderConfig

T, CUT = 16, 7  # a row's tokens, and where its second document begins
CONFIG = DecoderConfig(
  vocab_size=60,
  num_layers=2,
  embed_dim=32,
  mlp_dim=48,
  num_heads=4,
  max_seq_len=2 * T,
  vocab_multiple=8,
  init_std=0.2,  # large, so that every effect that is looked for is well above rounding
)
GPT2 = {
  "norm": Norm.LAYER,
  "positions": Positions.LEARNED,
  "activation": Activation.GELU,
  "use_bias": True,
  "tie_embeddings": True,
}


def make(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  model = config.build()
  return model, jax.jit(model.init)(jax.random.key(0))


def ids(seed=0, length=T):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 60, (1, length)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, inputs, **kwargs):
  return model.bind(params)(inputs, **kwargs)[0]


@pytest.fixture(scope="module")
def plain():
  return make()


SEGMENTS = jnp.asarray([[1] * CUT + [2] * (T - CUT)], jnp.int32)
POSITIONS = jnp.asarray([[*range(CUT), *range(T - CUT)]], jnp.int32)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"num_kv_heads": 2, "head_dim": 10, "qk_norm": True},
    {"norm": Norm.LAYER, "num_kv_heads": 1, "activation": Activation.RELU2},
    GPT2,
    {**GPT2, "tie_embeddings": False, "activation": Activation.GEGLU, "num_kv_heads": 2},
    {"scan_layers": False, "positions": Positions.ALIBI, "vocab_multiple": 128},
  ],
  ids=lambda changes: "_".join(changes) or "default",
)
@pytest.mark.smoke
def test_num_params(changes):
  """The closed form counts what is there; broken by any parameter it does not know."""
  config = dataclasses.replace(CONFIG, **changes)
  config.validate("model")
  shapes = jax.eval_shape(config.build().init, jax.random.key(0))
  assert tree.count(shapes) == config.num_params()


def test_num_matmul_params_of_an_untied_decoder():
  """All parameters but the input table and the scales are read by a matmul."""
  scales = (2 * CONFIG.num_layers + 1) * CONFIG.embed_dim
  table = CONFIG.padded_vocab_size * CONFIG.embed_dim
  assert CONFIG.num_matmul_params() == CONFIG.num_params() - scales - table


def reach(model, params, **kwargs):
  """bool (T, T): whether the logits at [t] depend on the input at [s], by gradient."""
  # Inputs are integers: the gradient is taken of a table in which every input has a row of its own.
  inputs = jnp.arange(T, dtype=jnp.int32)[None]

  def f(table):
    embed = {"table": params["embed"]["table"].at[:T].set(table)}
    return logits(model, params | {"embed": embed}, inputs, **kwargs)[0].sum(axis=-1)

  jacobian_TTD = jax.jit(jax.jacobian(f))(params["embed"]["table"][:T])
  return np.abs(np.asarray(jacobian_TTD)).max(axis=-1) > 0


def test_causal_by_gradient(plain):
  """A logit depends on its own input and on every earlier one, and on none after it."""
  np.testing.assert_array_equal(reach(*plain), np.tril(np.ones((T, T), bool)))


def test_documents_do_not_see_each_other_by_gradient(plain):
  """The same within each packed document, and nothing across."""
  same = np.asarray(SEGMENTS)[0][:, None] == np.asarray(SEGMENTS)[0][None]
  found = reach(*plain, segment_ids_BT=SEGMENTS, positions_BT=POSITIONS)
  np.testing.assert_array_equal(found, np.tril(same))


@pytest.mark.parametrize("positions", Positions)
def test_a_packed_document_is_the_document_alone(positions):
  """Broken by attention across documents, or by positions (or ALiBi) counted along the row."""
  model, params = make(positions=positions, num_kv_heads=2)
  inputs, other = ids(), ids(1).at[:, CUT:].set(ids()[:, CUT:])
  packing = {"segment_ids_BT": SEGMENTS, "positions_BT": POSITIONS}
  packed = logits(model, params, inputs, **packing)
  alone = logits(model, params, inputs[:, CUT:])
  np.testing.assert_allclose(packed[:, CUT:], alone, atol=2e-5)
  # Another first document changes no bit of the second, unless segments are off.
  np.testing.assert_array_equal(packed[:, CUT:], logits(model, params, other, **packing)[:, CUT:])
  a, b = (logits(model, params, x, positions_BT=POSITIONS)[:, CUT:] for x in (inputs, other))
  assert np.abs(a - b).max() > 1e-2
  # Padding (segment 0) is finite: it would poison the sums even with weight 0.
  padded = logits(model, params, inputs, segment_ids_BT=SEGMENTS - 1, positions_BT=POSITIONS)
  assert np.isfinite(padded).all()


@pytest.mark.parametrize("positions", Positions)
def test_positions(positions):
  """Which encodings tell order, and which only distance: the mask alone sees neither.

  A row of one repeated token has equal logits everywhere with RoPE, ALiBi and NONE, whose
  attention averages equal values; only a table tells the places apart. Swapped earlier tokens tell
  NONE, which sees a set, from the rest (one layer: with two, the mask alone tells order).
  """
  model, params = make(positions=positions, num_layers=1)
  places = jnp.arange(T, dtype=jnp.int32)[None]

  def run(inputs, shift=0):
    return logits(model, params, inputs, positions_BT=places + shift)

  same = run(jnp.full((1, T), 5, jnp.int32))
  spread = np.abs(same - same[:, :1]).max()
  assert (spread > 1e-2) == (positions is Positions.LEARNED)
  swapped = ids().at[0, jnp.array([2, 9])].set(ids()[0, jnp.array([9, 2])])
  changed = np.abs(run(swapped) - run(ids()))[0, -1].max()
  assert changed < 1e-5 if positions is Positions.NONE else changed > 1e-3
  # Only distances count for RoPE and ALiBi.
  moved = np.abs(run(ids(), shift=3) - run(ids())).max()
  assert moved > 1e-2 if positions is Positions.LEARNED else moved < 1e-4


def unstack(blocks, num_layers):
  """Parameters of a scanned stack (any scan_block) -> of an unrolled one."""
  size = len(blocks)
  return {
    f"layer_{i}": jax.tree.map(lambda x, i=i: x[i // size], blocks[f"layer_{i % size}"])
    for i in range(num_layers)
  }


def loss_and_grads(model, params, seed=0):
  def loss(params):
    out = model.bind(params)(ids(seed))[0]
    return jnp.square(jax.nn.log_softmax(out[..., :60])).mean()

  traced = jax.jit(jax.value_and_grad(loss)).trace(params)
  return traced.lower().compile()(params), str(traced.jaxpr)


def assert_trees_close(found, expected, rtol=1e-5):
  assert jax.tree.structure(found) == jax.tree.structure(expected)

  def close(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.linalg.norm(a - b) <= rtol * np.linalg.norm(b), tree.path_str(path)

  jax.tree_util.tree_map_with_path(close, found, expected)


@pytest.fixture(scope="module")
def unrolled():
  """Four unrolled layers, their parameters, and loss and gradients."""
  model, params = make(num_layers=4, scan_layers=False)
  return params, *loss_and_grads(model, params)


@pytest.mark.parametrize("scan_block", [1, 2])
def test_scan_is_the_unrolled_stack(scan_block, unrolled):
  """Broken by layers run in another order, or a block of the body left out."""
  params, (loss, grads), _ = unrolled
  layers = params["stack"]["blocks"]
  stacked = {
    f"layer_{j}": jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *(layers[f"layer_{i}"] for i in range(j, 4, scan_block)),
    )
    for j in range(scan_block)
  }
  model, own = make(num_layers=4, scan_block=scan_block)
  scanned = params | {"stack": {"blocks": stacked}}
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, scanned)
  (found, found_grads), _ = loss_and_grads(model, scanned)
  np.testing.assert_allclose(found, loss, rtol=1e-5)
  found_grads["stack"]["blocks"] = unstack(found_grads["stack"]["blocks"], 4)
  assert_trees_close(found_grads, grads)


def test_remat_changes_the_program_and_not_the_numbers():
  """Broken by a policy that is not applied (the programs would be equal) or changes a result."""
  params = make()[1]
  results = {remat: loss_and_grads(make(remat=remat)[0], params) for remat in Remat}
  assert len({jaxpr for _, jaxpr in results.values()}) == len(Remat) - 1  # AUTO is NONE
  for (loss, grads), _ in results.values():
    np.testing.assert_allclose(loss, results[Remat.NONE][0][0], rtol=1e-6)
    assert_trees_close(grads, results[Remat.NONE][0][1])


def test_remat_keeps_less_and_less():
  """NONE keeps the most for the backward pass, then MINIMAL, QKV and FULL; broken by a policy
  that names results which no layer gives."""
  params = make()[1]

  def kept(remat):
    model = make(remat=remat)[0]
    _, vjp = jax.eval_shape(lambda p: jax.vjp(lambda p: model.bind(p)(ids())[0], p), params)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(vjp))

  sizes = [kept(remat) for remat in (Remat.NONE, Remat.MINIMAL, Remat.QKV, Remat.FULL)]
  assert sizes == sorted(set(sizes), reverse=True)


def test_padded_vocabulary_has_no_probability(plain):
  """Ids that only fill the table up are never predicted, and the others sum to 1."""
  out = logits(*plain, ids())
  p = jax.nn.softmax(out, axis=-1)
  assert out.shape[-1] == 64
  assert (p[..., 60:] == 0).all()
  np.testing.assert_allclose(p[..., :60].sum(axis=-1), 1, rtol=1e-5)


def test_dropout():
  """Off without a key; with one, a function of the key that differs in every layer."""
  model, params = make(dropout=0.5)
  without = make()[0]
  off = logits(model, params, ids())
  np.testing.assert_array_equal(off, logits(without, params, ids()))
  a, again, b = (
    logits(model, params, ids(), dropout_key=jax.random.key(seed)) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(a, again)
  for other in (b, off):
    assert np.abs(a - other).max() > 1e-2
  np.testing.assert_array_equal(logits(without, params, ids(), dropout_key=jax.random.key(1)), off)

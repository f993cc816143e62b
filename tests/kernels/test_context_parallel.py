"""Attention over the sequence axis is attention on one device, shared evenly, with nothing gathered
that need not be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.errors import UserError
from jaxlm.kernels import blockwise, ring
from jaxlm.kernels.attention import attention
from jaxlm.kernels.context_parallel import gather_pairs
from jaxlm.layers.config import AttentionImpl
from jaxlm.layers.positions import alibi_slopes
from jaxlm.mesh import Context, MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.objectives import NextToken
from jaxlm.sharding import make_layout, to_device, zigzag
from jaxlm.training.step import make_loss

B, T, H, K = 2, 32, 4, 8
MESHES = {
  "sequence4": dict(sequence=4),
  "sequence2_model2": dict(sequence=2, model=2),
  "data2_sequence2": dict(data=2, sequence=2),
}
# Name: (kv heads, packed, ALiBi).
CASES = {
  "causal": (H, False, False),
  "packed": (H, True, False),
  "grouped": (2, True, False),
  "alibi": (2, True, True),
}


def layout_of(context, **sizes):
  count = int(np.prod(list(sizes.values())))
  config = MeshConfig(fsdp=1, context=context, **sizes)
  return make_layout(config, jax.devices()[:count])


def order_of(layout, tokens):
  """Where each token of a row comes from, in the layout's order."""
  if not layout.zigzag:
    return np.arange(tokens)
  n = layout.size("sequence")
  return np.arange(tokens).reshape(2 * n, -1)[zigzag(n)].reshape(-1)


def inputs(kv_heads, packed, tokens=T):
  rng = np.random.default_rng(0)
  shapes = ((H, 1.0), (kv_heads, 1.0), (kv_heads, 1.0), (H, 1.0))
  q, k, v, do = (rng.normal(size=(B, tokens, h, K)).astype(np.float32) for h, _ in shapes)
  starts = rng.random((B, tokens)) < 0.15
  starts[:, tokens // 2 + 1] = True  # a document ends within a chunk, wherever that is cut
  segments = (1 + np.cumsum(starts, axis=1, dtype=np.int32)) if packed else None
  return (q, k, v, do), segments


def run(arrays, segments, slopes):
  """Result and gradients of attention, under the active layout or without one."""

  def f(q, k, v, do, segments):
    def attend(q, k, v):
      places = None if slopes is None else jnp.zeros((B, q.shape[1]), jnp.int32)
      return attention(q, k, v, segment_ids_BT=segments, positions_BT=places, alibi_slopes=slopes)

    o, pull = jax.vjp(attend, q, k, v)
    return o, *pull(do)

  return jax.jit(f), (*arrays, segments)


def on_layout(layout, arrays, segments, slopes):
  order = order_of(layout, arrays[0].shape[1])
  heads = layout.sharding(("act_batch", "act_seq", "act_heads", None))
  rows = layout.sharding(("act_batch", "act_seq"))
  arrays = [jax.device_put(x[:, order], heads) for x in arrays]
  segments = None if segments is None else jax.device_put(segments[:, order], rows)
  return run(arrays, segments, slopes)


def expected(arrays, segments, slopes):
  """By the scores of all pairs, in float64."""
  q, k, v, do = (np.asarray(x, np.float64) for x in arrays)
  tokens = q.shape[1]
  groups = H // k.shape[2]
  seen = np.tril(np.ones((tokens, tokens), bool))[None]
  if segments is not None:
    seen = seen & (segments[:, :, None] == segments[:, None, :])
  k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
  s = np.einsum("bthk,bshk->bhts", q, k) * K**-0.5
  if slopes is not None:
    s -= slopes[None, :, None, None] * (np.arange(tokens)[:, None] - np.arange(tokens))
  s = np.where(seen[:, None], s, -np.inf)
  p = np.exp(s - s.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  o = np.einsum("bhts,bshk->bthk", p, v)
  dp = np.einsum("bthk,bshk->bhts", do, v)
  ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * K**-0.5
  dq = np.einsum("bhts,bshk->bthk", ds, k)
  dk = np.einsum("bhts,bthk->bshk", ds, q)
  dv = np.einsum("bhts,bthk->bshk", p, do)
  dk, dv = (x.reshape(B, tokens, -1, groups, K).sum(3) for x in (dk, dv))
  return o, dq, dk, dv


def assert_equal(found, wanted, order):
  for name, a, b in zip(("o", "dq", "dk", "dv"), found, wanted):
    b = b[:, order]
    error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
    assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("context", Context)
def test_result_and_gradients_are_those_of_one_device(context, mesh, case):
  """Broken by a block left out or taken twice, a mask by a device's own places, segments that don't
  travel with their keys, gradients that come home to another device, heads exchanged in a wrong
  order, or repeated kv heads whose gradients are not added up."""
  kv_heads, packed, alibi = CASES[case]
  arrays, segments = inputs(kv_heads, packed)
  slopes = alibi_slopes(H) if alibi else None
  with layout_of(context, **MESHES[mesh]).activate() as layout:
    f, args = on_layout(layout, arrays, segments, slopes)
    found = f(*args)
    order = order_of(layout, T)
  assert_equal(found, expected(arrays, segments, slopes), order)


@pytest.mark.parametrize("context", Context)
def test_long_chunks_are_taken_in_parts(context, monkeypatch):
  """Broken by parts of a chunk that are cut or put back at a wrong place."""
  monkeypatch.setattr(blockwise, "MAX_KEYS", 3)  # chunks of 4 in two parts, rows of 32 in 16
  arrays, segments = inputs(2, True)
  with layout_of(context, sequence=4).activate() as layout:
    f, args = on_layout(layout, arrays, segments, None)
    found = f(*args)
    order = order_of(layout, T)
  assert_equal(found, expected(arrays, segments, None), order)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_all_devices_do_the_same_work_and_all_of_it(n):
  """Each causal pair of chunks is computed once, by 2n + 1 blocks on every device."""
  causal = {(q, k) for q in range(2 * n) for k in range(q + 1)}
  gathered, round_ = [], []
  for i in range(n):
    own = (i, 2 * n - 1 - i)
    pairs = np.asarray(gather_pairs(i, n))
    assert len(pairs) == 2 * n + 1
    gathered += [(own[q], int(k)) for q, k in pairs]
    counts = 0
    for j in range(n):
      table = ring.OWN if i == j else ring.EARLIER if j < i else ring.LATER
      theirs = (j, 2 * n - 1 - j)
      round_ += [(own[q], theirs[k]) for q, k in table]
      counts += len(table)
    assert counts == 2 * n + 1
  assert len(gathered) == len(causal) and set(gathered) == causal
  assert len(round_) == len(causal) and set(round_) == causal


def shapes_of(text, operation):
  """Result shapes of an operation in compiled HLO, async forms too, groups of one device left out
  (the sum over a mesh axis of size 1)."""
  shapes = []
  for line in text.splitlines():
    if "replica_groups={{0},{1}" in line:
      continue
    match = re.search(rf"= (.*?) {operation}(-start)?\(", line)
    if match:
      shapes += [tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", match[1])]
  return shapes


@pytest.fixture(scope="module")
def programs():
  """HLO of result and gradients for n = 4, T = 64: no other size of the arrays is 64 or 16."""
  texts = {}
  for context in Context:
    arrays, segments = inputs(2, True, tokens=64)
    with layout_of(context, sequence=4).activate() as layout:
      f, args = on_layout(layout, arrays, segments, None)
      texts[context] = f.lower(*args).compile().as_text()
  return texts


@pytest.mark.parametrize("context", Context)
def test_no_scores_of_whole_rows(programs, context):
  """Only ULYSSES computes with all 64 queries of a row; here they are less than a block's."""
  shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", programs[context])}
  square = {s for s in shapes if s.count(64) >= 2}
  if context is Context.ULYSSES:
    assert square  # the search can find them
  else:
    assert not square, square


def test_ring_gathers_nothing(programs):
  """Broken by a sharding that XLA has to mend, or by keys that stay when they have been used."""
  text = programs[Context.RING]
  assert shapes_of(text, "all-gather") == []
  assert shapes_of(text, "all-reduce") == []
  assert shapes_of(text, "collective-permute")
  # All keys of a row, in any grouping: 64 tokens x 2 kv heads x 8.
  sizes = {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}
  assert max(np.prod(s) for s in sizes) < B * 64 * 2 * 8


def test_gather_gathers_keys_and_values_alone(programs):
  """2 x (B, 64, 2, 8) and the segments forward, as much scattered back; no scores, no queries."""
  text = programs[Context.GATHER]
  gathered = sorted(int(np.prod(s)) for s in shapes_of(text, "all-gather"))
  scattered = shapes_of(text, "reduce-scatter")
  keys = B * 64 * 2 * 8
  assert sum(gathered) == 2 * keys + B * 64, gathered
  assert sum(int(np.prod(s)) for s in scattered) == 2 * keys // 4, scattered
  assert shapes_of(text, "all-reduce") == []


def test_ulysses_exchanges_and_gathers_segments_alone(programs):
  text = programs[Context.ULYSSES]
  assert sum(int(np.prod(s)) for s in shapes_of(text, "all-gather")) == B * 64
  assert shapes_of(text, "all-to-all")


@pytest.mark.parametrize(
  "context, sizes, tokens, impl, message",
  [
    (Context.GATHER, dict(sequence=4), 36, "AUTO", r"seq_len=36: .* by 8 = 2 × .*sequence=4"),
    (Context.RING, dict(sequence=2), 30, "AUTO", r"seq_len=30: .* by 4 = 2 × .*sequence=2"),
    (
      Context.ULYSSES,
      dict(sequence=4, model=2),
      32,
      "AUTO",
      r"num_heads=4: .* by 8 = .*sequence=4",
    ),
    (Context.RING, dict(sequence=2), 32, "CUDNN", "CUDNN does not go with .*context=RING"),
    (Context.GATHER, dict(sequence=2), 32, "MOSAIC", "MOSAIC needs a Hopper"),
  ],
)
def test_what_does_not_divide_is_refused_by_name(context, sizes, tokens, impl, message):
  with layout_of(context, **sizes).activate():
    x = jnp.ones((B, tokens, H, K), jnp.float32)
    with pytest.raises(UserError, match=message) as error:
      attention(x, x, x, impl=AttentionImpl[impl])
  assert "\n" not in str(error.value)


def test_a_batch_lies_in_zigzag_order():
  """Broken by a field left in another order, or by halves on the wrong device."""
  rows = np.arange(2 * 16, dtype=np.int32).reshape(2, 16)
  fields = ("inputs", "targets", "loss_weights", "segment_ids", "positions")
  layout = layout_of(Context.RING, sequence=4)
  batch = to_device({name: rows for name in fields}, layout)
  for name in fields:
    x = getattr(batch, name)
    for i, device in enumerate(layout.mesh.devices.flat):
      shard = next(s.data for s in x.addressable_shards if s.device == device)
      here = np.r_[2 * i : 2 * i + 2, 14 - 2 * i : 16 - 2 * i]
      np.testing.assert_array_equal(shard, rows[:, here])
  natural = to_device({name: rows for name in fields}, layout_of(Context.ULYSSES, sequence=4))
  np.testing.assert_array_equal(natural.inputs, rows)
  with pytest.raises(UserError, match="seq_len=12: must be divisible by 8"):
    to_device({name: rows[:, :12] for name in fields}, layout)


MODEL = DecoderConfig(
  vocab_size=60,
  num_layers=2,
  embed_dim=16,
  mlp_dim=32,
  num_heads=4,
  num_kv_heads=2,
  max_seq_len=16,
  vocab_multiple=4,
)


def loss_and_gradients(layout):
  rng = np.random.default_rng(0)
  ids = rng.integers(0, 60, (4, 17), np.int32)
  starts = rng.random((4, 16)) < 0.15
  starts[:, 0] = False
  begins = np.maximum.accumulate(np.where(starts, np.arange(16), 0), axis=1)
  arrays = {
    "inputs": ids[:, :-1],
    "targets": ids[:, 1:],
    "loss_weights": rng.random((4, 16)).astype(np.float32),
    "segment_ids": 1 + np.cumsum(starts, axis=1, dtype=np.int32),
    "positions": (np.arange(16) - begins).astype(np.int32),
  }
  with layout.activate():
    model = MODEL.build()
    params = jax.jit(model.init)(jax.random.key(0))
    loss = make_loss(model, NextToken(vocab_size=60))
    step = jax.jit(jax.value_and_grad(lambda p, batch: loss(p, batch).total))
    return jax.device_get(step(params, to_device(arrays, layout)))


@pytest.fixture(scope="module")
def one_device():
  return loss_and_gradients(layout_of(Context.GATHER, data=1))


@pytest.mark.parametrize("context", Context)
def test_training_over_the_axis_is_training_on_one_device(context, one_device):
  """Broken by anything outside attention that takes a token's neighbours from its place."""
  found = loss_and_gradients(layout_of(context, sequence=4))
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(one_device)):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
  assert optax.tree.norm(found[1]) > 0

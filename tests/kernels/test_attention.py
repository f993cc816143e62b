"""The selector of attention kernels: what it chooses where, and what it refuses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from jaxlm.errors import UserError
from jaxlm.kernels import attention
from jaxlm.layers.config import AttentionImpl
from jaxlm.mesh import MeshConfig
from jaxlm.sharding import make_layout


def qk(dtype=jnp.bfloat16, head_dim=128, T=256):
  return jax.ShapeDtypeStruct((2, T, 4, head_dim), dtype), jax.ShapeDtypeStruct(
    (2, T, 2, head_dim), dtype
  )


def machine(monkeypatch, backend, capability="9.0", tokamax=True):
  monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
  device = types.SimpleNamespace(compute_capability=capability)
  monkeypatch.setattr(attention.jax, "devices", lambda: [device])
  monkeypatch.setattr(
    attention.importlib.util, "find_spec", lambda name: object() if tokamax else None
  )


@pytest.mark.parametrize(
  "backend, kwargs, packed, expected",
  [
    ("gpu", {}, False, ["CUDNN", "MOSAIC"]),
    ("gpu", {}, True, ["MOSAIC"]),  # CUDNN would let documents see each other
    ("gpu", {"tokamax": False}, True, []),
    ("gpu", {"capability": "8.0"}, True, []),
    ("gpu", {"dtype": jnp.float32}, False, []),
    ("tpu", {}, True, ["SPLASH"]),
    ("tpu", {"T": 100}, True, []),
    ("cpu", {}, False, []),
  ],
)
def test_kernels_of_each_machine(monkeypatch, backend, kwargs, packed, expected):
  shape = {k: v for k, v in kwargs.items() if k in ("dtype", "T")}
  machine(monkeypatch, backend, **{k: v for k, v in kwargs.items() if k not in shape})
  found = attention._able(*qk(**shape), packed=packed)
  assert [impl.name for impl in found] == expected


@pytest.mark.parametrize("impl", [i for i in AttentionImpl if i.name not in ("AUTO", "XLA")])
def test_a_kernel_that_cannot_run_here_is_refused_by_name(impl):
  x = jnp.ones((1, 8, 2, 16), jnp.bfloat16)
  with pytest.raises(UserError, match=f"attention={impl.name} needs"):
    attention.attention(x, x, x, impl=impl)


def test_chosen_kernels_are_collected():
  x = jnp.ones((1, 8, 2, 16), jnp.float32)
  with attention.chosen() as kernels:
    jax.eval_shape(attention.attention, x, x, x)
  assert kernels == {AttentionImpl.XLA}


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_queries_are_attention_in_one_piece(kv_heads, packed):
  """Values and gradients of rows long enough for blocks, with a window, ALiBi and documents, equal
  a float64 softmax over all keys; broken by a block that sees a key too many or too few."""
  B, T, H, K, reach = 2, 128, 4, 8, 70
  rng = np.random.default_rng(0)
  q, k, v, w = (rng.normal(size=(B, T, n, K)) for n in (H, kv_heads, kv_heads, H))
  ids = np.sort(rng.integers(0, 4, (B, T)), axis=1) if packed else np.zeros((B, T), int)
  slopes = np.array([0.5, 0.25, 0.1, 0.0])
  positions = np.arange(T) - np.stack([np.searchsorted(row, row) for row in ids])

  def direct(q, k, v):
    k, v = (np.repeat(x, H // kv_heads, axis=2) for x in (k, v))
    apart = np.arange(T)[:, None] - np.arange(T)[None]
    s = np.einsum("bthk,bshk->bhts", q, k) / K**0.5 - slopes[None, :, None, None] * apart
    seen = (apart >= 0) & (apart <= reach) & (ids[:, :, None] == ids[:, None])
    s = np.where(seen[:, None], s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return np.einsum("bhts,bshk->bthk", p / p.sum(-1, keepdims=True), v)

  def found(q, k, v):
    return attention.attention(
      q,
      k,
      v,
      segment_ids_BT=jnp.asarray(ids) if packed else None,
      positions_BT=jnp.asarray(positions),
      alibi_slopes=slopes.astype(np.float32),
      reach=reach,
    )

  arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  out, pull = jax.vjp(jax.jit(found), *arrays)
  np.testing.assert_allclose(out, direct(q, k, v), atol=2e-6)
  # One directional derivative of each input.
  for i, grad in enumerate(pull(jnp.asarray(w, jnp.float32))):
    inputs, step = [q, k, v], rng.normal(size=(q, k, v)[i].shape)
    ends = []
    for sign in (1, -1):
      inputs[i] = (q, k, v)[i] + sign * 1e-5 * step
      ends.append((w * direct(*inputs)).sum())
    np.testing.assert_allclose((grad * step).sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_blocks_of_queries_on_a_mesh_are_those_of_one_device(kv_heads):
  """Broken by a block that is cut along a sharded dim, or by a gradient that is not summed."""
  rng = np.random.default_rng(0)
  arrays = [
    jnp.asarray(rng.normal(size=(4, 128, n, 8)), jnp.float32) for n in (4, kv_heads, kv_heads)
  ]
  ids = jnp.asarray(np.sort(rng.integers(0, 4, (4, 128)), axis=1), jnp.int32)

  def step(q, k, v, ids):
    def loss(q, k, v):
      return jnp.sum(jnp.sin(attention.attention(q, k, v, segment_ids_BT=ids)))

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

  expected = jax.jit(step)(*arrays, ids)
  with make_layout(MeshConfig(data=2, fsdp=2, model=2), jax.devices()[:8]).activate() as layout:
    heads = layout.spec(("act_batch", "act_seq", "act_heads", None))
    kv = layout.spec(("act_batch", "act_seq", "act_kv_heads", None))
    placed = [
      jax.device_put(x, NamedSharding(layout.mesh, spec))
      for x, spec in zip(arrays, (heads, kv, kv))
    ]
    rows = NamedSharding(layout.mesh, layout.spec(("act_batch", "act_seq")))
    found = jax.jit(step)(*placed, jax.device_put(ids, rows))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found, expected)


def test_first_keys_are_where_documents_begin():
  """Broken by a first document that does not begin at the row, or padding (0) seen as a document's
  part."""
  segments = jnp.asarray([[1, 1, 2, 2, 2, 3, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5]], jnp.int32)
  expected = [[0, 0, 2, 2, 2, 5, 6, 6], [0] * 8]
  np.testing.assert_array_equal(attention.first_keys(segments), expected)


def test_mask_by_first_keys_is_the_mask_by_segments():
  """What the Mosaic kernel is told (from first key to itself) against the reference's mask."""
  rng = np.random.default_rng(0)
  segments = jnp.asarray(np.cumsum(rng.random((4, 64)) < 0.1, axis=1), jnp.int32)
  places = np.arange(64)
  causal = places[None, :, None] >= places[None, None, :]
  by_segments = causal & np.asarray(segments[:, :, None] == segments[:, None, :])
  by_first = causal & (places[None, None] >= np.asarray(attention.first_keys(segments))[..., None])
  np.testing.assert_array_equal(by_first, by_segments)

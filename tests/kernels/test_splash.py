"""Splash attention: the reference's values and gradients, packed rows, and lowering for TPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.attention import attention
from jaxlm.kernels.splash import fits, splash_attention
from jaxlm.layers.config import AttentionImpl

# Rows of 384 are three blocks, whose upper ones the kernel skips.
B, T, N, K = 1, 384, 1, 128


def example(seed: int = 0, T: int = T, H: int = 2, K: int = K, dtype: str = "float32"):
  """Queries, keys, values, and two documents and some padding in each row."""
  rng = np.random.default_rng(seed)
  q, k, v = (jnp.asarray(rng.standard_normal((B, T, heads, K)), dtype) for heads in (H, N, N))
  segments_BT = jnp.asarray(np.digitize(np.arange(T), [T // 3, T - 20])[None], jnp.int32)
  return q, k, v, segments_BT


def splash(q, k, v, segments_BT=None):
  return splash_attention(q, k, v, segments_BT, interpret=True)


def reference(q, k, v, segments_BT=None):
  return attention(q, k, v, segment_ids_BT=segments_BT, impl=AttentionImpl.XLA)


def value_and_grads(f, q, k, v, segments_BT):
  def loss(q, k, v):
    out = f(q, k, v, segments_BT)
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return (out.astype(jnp.float32) * weights).sum(), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
  return out, *grads


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
  ("T", "H", "K", "dtype", "tolerance"),
  [(384, 2, 128, "float32", 2e-6), (128, 1, 32, "float32", 2e-6), (128, 2, 64, "bfloat16", 1e-2)],
)
def test_equals_the_reference(T, H, K, dtype, tolerance, packed):
  q, k, v, segments_BT = example(T=T, H=H, K=K, dtype=dtype)
  segments = segments_BT if packed else None
  results = value_and_grads(splash, q, k, v, segments)
  # In float32 throughout: what is allowed is the kernel's rounding, not the reference's too.
  wide = (x.astype(jnp.float32) for x in (q, k, v))
  for got, expected in zip(results, value_and_grads(reference, *wide, segments)):
    assert got.dtype == dtype and got.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got.astype(jnp.float32), expected, atol=tolerance * scale)


def test_the_second_document_knows_nothing_of_the_first():
  q, k, v, segments_BT = example()
  first_1T11 = (segments_BT == 0)[:, :, None, None]
  other = [jnp.where(first_1T11, x, y) for x, y in zip(example(1)[:3], (q, k, v))]
  results = value_and_grads(splash, q, k, v, segments_BT)
  changed = value_and_grads(splash, *other, segments_BT)
  second = np.asarray(segments_BT[0] == 1)
  for a, b in zip(results, changed):
    np.testing.assert_array_equal(a[:, second], b[:, second])
    assert not np.array_equal(a[:, ~second], b[:, ~second])


def test_runs_in_shard_map_on_an_explicit_mesh():
  mesh = jax.make_mesh((2, 2), ("data", "tensor"), devices=jax.devices()[:4])
  q, k, v, segments_BT = example(T=128)
  q, segments_BT = (jnp.concatenate([x, x[:, ::-1]]) for x in (q, segments_BT))
  k, v = (jnp.tile(x, (2, 1, 2, 1)) for x in (k, v))
  expected = value_and_grads(reference, q, k, v, segments_BT)
  heads = jax.P("data", None, "tensor", None)
  f = jax.shard_map(
    splash,
    in_specs=(heads, heads, heads, jax.P("data", None)),
    out_specs=heads,
    check_vma=False,
  )
  with jax.set_mesh(mesh):
    placed = [jax.device_put(x, heads) for x in (q, k, v)]
    got = jax.jit(f)(*placed, jax.device_put(segments_BT, jax.P("data", None)))
  np.testing.assert_allclose(got, expected[0], atol=2e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_lowers_for_tpus(packed):
  """To Mosaic kernels: one forward, and two more backward (dq; dk and dv)."""
  q, k, v, segments_BT = example(H=4, K=64, dtype="bfloat16")
  segments = segments_BT if packed else None

  def grads(q, k, v, segments):
    return jax.grad(lambda *x: splash_attention(*x, segments).astype(jnp.float32).sum(), (0, 1, 2))(
      q, k, v
    )

  for f, kernels in ((splash_attention, 1), (grads, 3)):
    exported = jax.export.export(jax.jit(f), platforms=["tpu"])(q, k, v, segments)
    assert exported.mlir_module().count("tpu_custom_call") == kernels


@pytest.mark.parametrize(("name", "kernels"), [(None, 4), ("context", 3)])
def test_saved_residuals_spare_the_second_forward_kernel(name, kernels):
  policy = jax.checkpoint_policies.save_only_these_names("context")

  @functools.partial(jax.checkpoint, policy=policy)
  def f(*x):
    return splash_attention(*x, residual_name=name)

  loss = jax.value_and_grad(lambda *x: f(*x).astype(jnp.float32).sum(), (0, 1, 2))
  exported = jax.export.export(jax.jit(loss), platforms=["tpu"])(*example(dtype="bfloat16")[:3])
  assert exported.mlir_module().count("tpu_custom_call") == kernels


@pytest.mark.parametrize(
  ("q", "k", "dtype", "expected"),
  [
    ((1, 256, 4, 64), (1, 256, 2, 64), "bfloat16", True),
    ((1, 640, 4, 128), (1, 640, 4, 128), "float32", True),
    ((1, 200, 4, 64), (1, 200, 2, 64), "bfloat16", False),  # rows of another length
    ((1, 1, 4, 64), (1, 256, 2, 64), "bfloat16", False),  # decoding with a cache
    ((1, 256, 4, 64), (1, 256, 2, 64), "float16", False),
    ((1, 256, 2, 64), (1, 256, 4, 64), "bfloat16", False),  # more key heads than query heads
  ],
)
def test_fits(q, k, dtype, expected):
  q, k = (jax.ShapeDtypeStruct(shape, dtype) for shape in (q, k))
  assert fits(q, k) is expected


def test_other_lengths_are_refused():
  q, k, v, _ = example(T=200)
  with pytest.raises(ValueError, match="multiple of 128"):
    splash(q, k, v)

"""The loss against a float64 reference, and the sums that shards and microbatches rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.batch import Batch
from jaxlm.objectives import NextToken

B, T, V, PADDED = 4, 6, 11, 16
# Features that are the logits themselves.
TABLE = jnp.eye(PADDED)


def make_logits():
  logits = np.random.default_rng(0).normal(0, 3, (B, T, PADDED)).astype(np.float32)
  logits[..., V:] = -1e9  # ids that do not exist, as the decoder gives them
  return jnp.asarray(logits)


def make_batch(rows=slice(None)):
  rng = np.random.default_rng(1)
  targets = rng.integers(0, V, (B, T), np.int32)
  weights = rng.random((B, T), np.float32) * (rng.random((B, T)) < 0.6)
  zeros = jnp.zeros((B, T), jnp.int32)[rows]
  return Batch(
    inputs=zeros,
    targets=jnp.asarray(targets)[rows],
    loss_weights=jnp.asarray(weights, jnp.float32)[rows],
    segment_ids=None,
    positions=zeros,
  )


def reference(logits, batch, z_loss, label_smoothing):
  """By the definition: cross-entropy with the smoothed distribution, over ids that exist."""
  logits = np.asarray(logits, np.float64)[..., :V]
  log_z = np.log(np.exp(logits).sum(axis=-1))
  log_p = logits - log_z[..., None]
  hot = np.eye(V)[np.asarray(batch.targets)]
  smooth = (1 - label_smoothing) * hot + label_smoothing / V
  weights = np.asarray(batch.loss_weights, np.float64)
  total = -(smooth * log_p).sum(axis=-1) + z_loss * log_z**2
  nll = -(hot * log_p).sum(axis=-1)
  return (total * weights).sum(), (nll * weights).sum(), weights.sum()


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_matches_the_definition(z_loss, label_smoothing):
  """Broken by smoothing over padded ids, or by z-loss or smoothing that leaks into nll."""
  batch = make_batch()
  for chunks in (1, 3):
    loss = NextToken(vocab_size=V, z_loss=z_loss, label_smoothing=label_smoothing, chunks=chunks)
    check_sums(loss, batch, z_loss, label_smoothing)


def check_sums(loss, batch, z_loss, label_smoothing):
  sums = loss(make_logits(), TABLE, batch)
  found = sums.total, sums.nll, sums.weight
  np.testing.assert_allclose(
    found, reference(make_logits(), batch, z_loss, label_smoothing), rtol=1e-5
  )


@pytest.fixture(scope="module")
def gradient():
  loss = NextToken(vocab_size=V, z_loss=0.1, label_smoothing=0.2)
  return jax.jit(jax.grad(lambda logits, batch: loss(logits, TABLE, batch).total))


def test_zero_weight_has_zero_gradient(gradient):
  """A target of weight 0 pulls at nothing, every other one does; padded ids are never pulled."""
  batch = make_batch()
  grads = np.asarray(gradient(make_logits(), batch))
  moved = np.abs(grads).max(axis=-1) > 0
  np.testing.assert_array_equal(moved, np.asarray(batch.loss_weights) > 0)
  assert moved.any() and not moved.all()
  assert (grads[..., V:] == 0).all()


def test_gradient_is_that_of_the_reference(gradient):
  """By finite differences in float64, at a few places."""
  batch, logits = make_batch(), np.asarray(make_logits(), np.float64)
  grads = gradient(make_logits(), batch)
  for t, v in [(0, 0), (2, 5), (5, 10)]:
    ends = []
    for step in (1e-4, -1e-4):
      moved = logits.copy()
      moved[:, t, v] += step
      ends.append(reference(moved, batch, 0.1, 0.2)[0])
    np.testing.assert_allclose(grads[:, t, v].sum(), (ends[0] - ends[1]) / 2e-4, rtol=1e-4)


def test_chunks_change_nothing():
  """The sums and both gradients, of a loss that is scaled, are those of the logits in one piece."""
  rng = np.random.default_rng(2)
  x = jnp.asarray(rng.normal(size=(B, T, 5)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(PADDED, 5)), jnp.float32)

  def value_and_grads(chunks):
    loss = NextToken(vocab_size=V, z_loss=0.1, label_smoothing=0.2, chunks=chunks)
    return jax.value_and_grad(lambda x, t: 0.5 * loss(x, t, make_batch()).total, (0, 1))(x, table)

  whole, parts = value_and_grads(1), value_and_grads(3)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_sums_add_up_over_splits():
  """Parts of unequal weight add up to the whole; broken by a mean inside."""
  loss = NextToken(vocab_size=V, z_loss=0.1, label_smoothing=0.2)
  logits = make_logits()
  whole = loss(logits, TABLE, make_batch())
  parts = [loss(logits[rows], TABLE, make_batch(rows)) for rows in (slice(0, 1), slice(1, 4))]
  added = jax.tree.map(jnp.add, *parts)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(added)):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("moved", [200.0, -200.0])
def test_logits_whose_exponentials_float32_cannot_hold(moved):
  """Where the plain sum would be inf or 0, the largest logit is taken out first: broken by a loss
  of inf, or by one wild row that changes the others."""
  batch = make_batch()
  logits = np.array(make_logits())
  logits[1, :, :V] += moved
  for chunks in (1, 3):
    loss = NextToken(vocab_size=V, z_loss=0.1, chunks=chunks)
    sums = loss(jnp.asarray(logits), TABLE, batch)
    expected = reference(logits, batch, 0.1, 0.0)
    np.testing.assert_allclose((sums.total, sums.nll, sums.weight), expected, rtol=1e-5)
  # Float32 holds no finer steps of these logits.
  grads = jax.grad(lambda logits: loss(logits, TABLE, batch).nll)(jnp.asarray(logits))
  assert np.isfinite(grads).all()


def test_low_precision_logits_are_widened():
  """The softmax of bfloat16 logits is computed in float32: exact for the rounded logits."""
  logits, batch = make_logits().astype(jnp.bfloat16), make_batch()
  sums = NextToken(vocab_size=V)(logits, TABLE.astype(jnp.bfloat16), batch)
  assert sums.total.dtype == jnp.float32
  expected = reference(logits.astype(jnp.float32), batch, 0.0, 0.0)
  np.testing.assert_allclose((sums.total, sums.nll, sums.weight), expected, rtol=1e-5)


def test_capped_logits():
  """Sums and gradient are those of the loss of cap tanh(logits / cap), by finite differences."""
  cap, batch, logits = 1.5, make_batch(), np.asarray(make_logits(), np.float64)

  def capped(logits):
    return reference(cap * np.tanh(logits / cap), batch, 0.1, 0.2)

  loss = NextToken(vocab_size=V, z_loss=0.1, label_smoothing=0.2, softcap=cap)
  sums = loss(make_logits(), TABLE, batch)
  np.testing.assert_allclose((sums.total, sums.nll, sums.weight), capped(logits), rtol=1e-5)
  grads = jax.grad(lambda logits: loss(logits, TABLE, batch).total)(make_logits())
  for t, v in [(0, 0), (2, 5), (5, 10)]:
    ends = []
    for step in (1e-4, -1e-4):
      moved = logits.copy()
      moved[:, t, v] += step
      ends.append(capped(moved)[0])
    np.testing.assert_allclose(grads[:, t, v].sum(), (ends[0] - ends[1]) / 2e-4, rtol=1e-4)

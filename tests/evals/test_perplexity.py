"""Loss, perplexity and bits per byte against closed forms, on a mesh with a padded last batch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.evals.perplexity import Score, make_scoring_step, score
from jaxlm.mesh import MeshConfig
from jaxlm.objectives import LossSum
from jaxlm.sharding import make_layout, take

V = 5
TOKEN_BYTES = np.asarray([0, 1, 2, 3, 7], np.int32)  # id 0: EOS, no bytes


def make_batches():
  """Two batches of 4 rows; the second's last two rows are padding. Weights 0 hide some targets."""
  rng = np.random.default_rng(0)
  batches = []
  for rows in (4, 2):
    weights = (rng.random((4, 6)) < 0.8).astype(np.float32)
    weights[rows:] = 0
    zeros = np.zeros((4, 6), np.int32)
    batches.append(
      {
        "inputs": zeros,
        "targets": rng.integers(0, V, (4, 6), np.int32),
        "loss_weights": weights,
        "segment_ids": zeros,
        "positions": zeros,
      }
    )
  return batches


def eval_step(params, batch):
  """A unigram model: each target costs its own -log p."""
  nll_BT = -jnp.log(take(params, batch.targets, ("act_batch", "act_seq")))
  total = jnp.sum(nll_BT * batch.loss_weights)
  return LossSum(total, total, jnp.sum(batch.loss_weights))


@pytest.fixture(scope="module")
def layout():
  with make_layout(MeshConfig(data=2, fsdp=1), jax.devices()[:2]).activate() as layout:
    yield layout


def test_score_is_the_closed_form(layout):
  """Broken by padded targets that count, by means of batches' means, or by EOS's loss left out."""
  p = np.asarray([0.1, 0.2, 0.3, 0.15, 0.25], np.float32)
  batches = make_batches()
  found = score(make_scoring_step(eval_step, TOKEN_BYTES, layout), jnp.asarray(p), batches, layout)
  counted = np.concatenate([b["targets"][b["loss_weights"] > 0] for b in batches])
  nll = -np.log(p.astype(np.float64))[counted].sum()
  assert (counted == 0).any()
  assert found.tokens == len(counted)
  assert found.bytes == TOKEN_BYTES[counted].sum()
  np.testing.assert_allclose(found.nll, nll, rtol=1e-6)
  np.testing.assert_allclose(found.loss, nll / len(counted), rtol=1e-6)
  bits = (-np.log2(p.astype(np.float64)))[counted].sum()
  np.testing.assert_allclose(found.bits_per_byte, bits / TOKEN_BYTES[counted].sum(), rtol=1e-6)


def test_uniform_model():
  """V equally likely tokens of 2 bytes each: perplexity V and log2(V) / 2 bits a byte."""
  uniform = Score(nll=100 * math.log(V), tokens=100, bytes=200)
  assert uniform.perplexity == pytest.approx(V)
  assert uniform.bits_per_byte == pytest.approx(math.log2(V) / 2)
  assert uniform.to_dict()["perplexity"] == uniform.perplexity


def test_nothing_scored():
  """An empty split is no division by zero; an enormous loss no overflow."""
  assert Score(0.0, 0, 0).bits_per_byte is None
  assert Score(0.0, 0, 0).loss == 0
  assert math.isfinite(Score(1e6, 1, 1).perplexity)

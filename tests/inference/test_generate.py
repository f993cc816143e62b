"""Generation with a cache against the plain model, and the ways to choose a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.inference.generate import Generator
from jaxlm.inference.sampling import Sampling, sample
from jaxlm.layers.config import Activation, Norm, Positions
from jaxlm.models.config import DecoderConfig

V = 60
MAX_SEQ_LEN = 20  # no power of two: prompts are padded beyond it unless that is seen to
NEW = 6
GREEDY = Sampling(temperature=0)
PROMPTS = [[5], [7, 3, 9, 9, 1], [2, 4, 8, 16, 32, 3, 6, 12, 24, 48, 37, 15, 30, 1]]
VARIANTS = {
  "rope": {"num_kv_heads": 2, "qk_norm": True},
  "alibi": {"positions": Positions.ALIBI, "scan_layers": False},
  "learned": {
    "positions": Positions.LEARNED,
    "norm": Norm.LAYER,
    "activation": Activation.GELU,
    "tie_embeddings": True,
  },
}


def make(**changes):
  config = DecoderConfig(
    vocab_size=V,
    num_layers=2,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    max_seq_len=MAX_SEQ_LEN,
    vocab_multiple=8,
    init_std=0.3,  # large: text that varies
    **changes,
  )
  model = config.build()
  return model, jax.jit(model.init)(jax.random.key(0))


def generator(model, params, eos_id=None):
  return Generator(model, params, eos_id=eos_id, max_seq_len=MAX_SEQ_LEN)


def without_cache(model, params, prompts, count):
  """Greedy text by a full forward pass over all tokens so far, one program for all lengths."""
  forward = jax.jit(lambda params, ids: model.bind(params)(ids)[0])
  rows = [list(prompt) for prompt in prompts]
  for _ in range(count):
    ids = np.zeros((len(rows), MAX_SEQ_LEN), np.int32)
    for i, row in enumerate(rows):
      ids[i, : len(row)] = row
    logits = np.asarray(forward(params, ids))
    for i, row in enumerate(rows):
      row.append(int(logits[i, len(row) - 1].argmax()))
  return [row[len(prompt) :] for row, prompt in zip(rows, prompts)]


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_is_the_full_forward(name):
  """Prompts of unequal lengths, up to the last position; broken by a slot or position off by one,
  by padding that is seen, or by positions past the end of a learned table."""
  model, params = make(**VARIANTS[name])
  expected = without_cache(model, params, PROMPTS, NEW)
  assert len({tuple(row) for row in expected}) == len(PROMPTS)
  assert len({token for row in expected for token in row}) > 3, "text too dull to tell anything"
  found = generator(model, params)(PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
  assert found == expected


def test_prompt_padded_past_the_last_position():
  """A prompt of 17 is padded to 32, and a learned table has 20 rows."""
  model, params = make(**VARIANTS["learned"])
  prompt = [list(range(1, 18))]
  found = generator(model, params)(prompt, max_new_tokens=3, sampling=GREEDY)
  assert found == without_cache(model, params, prompt, 3)


@pytest.fixture(scope="module")
def rope():
  return make(**VARIANTS["rope"])


def test_seeds_and_narrow_sampling(rope):
  """A function of the seed; top_k=1 and a tiny top_p leave the likeliest token alone."""
  generate = generator(*rope)

  def text(seed=0, **kwargs):
    return generate(PROMPTS, max_new_tokens=NEW, sampling=Sampling(**kwargs), seed=seed)

  greedy = text(temperature=0)
  assert text(top_k=1) == greedy
  assert text(top_p=1e-6) == greedy
  free = text(temperature=2.0)
  assert text(temperature=2.0) == free != greedy
  assert text(temperature=2.0, seed=1) != free


def test_stops_at_eos(rope):
  """A row ends before its EOS, the others go on; broken by a row that keeps writing."""
  longest = generator(*rope)(PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
  eos = longest[1][2]
  expected = [row[: row.index(eos)] if eos in row else row for row in longest]
  assert len(expected[1]) < NEW and any(len(row) == NEW for row in expected)
  assert generator(*rope, eos_id=eos)(PROMPTS, max_new_tokens=NEW, sampling=GREEDY) == expected


def test_refusals(rope):
  """Each impossible request is a UserError, before anything is compiled."""
  generate = generator(*rope)
  with pytest.raises(UserError, match="14 prompt tokens"):
    generate(PROMPTS, max_new_tokens=NEW + 1)
  for prompts, count in (([], 1), ([[1], []], 1), ([[1]], 0)):
    with pytest.raises(UserError):
      generate(prompts, max_new_tokens=count)
  for bad in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
    with pytest.raises(UserError):
      Sampling(**bad)


P = np.asarray([0.45, 0.3, 0.2, 0.05])


@pytest.mark.parametrize(
  ("sampling", "expected"),
  [
    (Sampling(), P),
    (Sampling(temperature=0.5), P**2 / (P**2).sum()),
    (Sampling(top_k=2), np.asarray([0.6, 0.4, 0, 0])),
    (Sampling(top_p=0.8), np.asarray([0.45, 0.3, 0.2, 0]) / 0.95),  # the one that reaches it stays
    (Sampling(top_k=3, top_p=0.7), np.asarray([0.6, 0.4, 0, 0])),
  ],
  ids=lambda x: str(x) if isinstance(x, Sampling) else "",
)
def test_frequencies(sampling, expected):
  """40,000 draws lie within 5 standard deviations of the distribution; what is cut never comes."""
  n = 40_000
  order = [2, 0, 3, 1]  # not sorted, as logits aren't
  logits = jnp.broadcast_to(jnp.log(jnp.asarray(P, jnp.float32))[jnp.asarray(order)][None], (n, 4))
  draws = np.asarray(sample(logits, jax.random.key(0), sampling))
  found = np.bincount(draws, minlength=4) / n
  wanted = expected[order]
  assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / n)).all(), found

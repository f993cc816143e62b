"""Generation with a cache against the plain model, and the ways to choose a token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import trained
from jaxlm.errors import UserError
from jaxlm.inference.generate import Generator, _prefill
from jaxlm.inference.sampling import Sampling, sample
from jaxlm.layers.config import Activation, Latent, Norm, Positions, RopeKind, RopeScaling
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.sharding import make_layout

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


def make_config(**changes):
  return DecoderConfig(
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


def make(**changes):
  model = make_config(**changes).build()
  return model, jax.jit(model.init)(jax.random.key(0))


def generator(model, params, eos_id=None, prefix=False):
  return Generator(model, params, eos_id=eos_id, max_seq_len=MAX_SEQ_LEN, prefix=prefix)


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


def test_top_k_is_k_and_cold_is_the_likeliest():
  """Logits in bfloat16 are often equal; temperatures that overflow float32 would sample id 0."""
  logits = jnp.asarray([[0.0, 3.0, 3.0, 3.0, 1.0], [2.0, 2.0, 0.0, 5.0, 5.0]], jnp.bfloat16)

  def draws(**kwargs):
    keys = jax.random.split(jax.random.key(0), 200)
    return np.asarray(jax.vmap(lambda key: sample(logits, key, Sampling(**kwargs)))(keys))

  greedy = np.asarray(sample(logits, jax.random.key(0), GREEDY))
  for kwargs in ({"top_k": 1}, {"temperature": 1e-40}, {"temperature": 1e-19, "top_k": 1}):
    assert (draws(**kwargs) == greedy[None]).all(), kwargs
  assert [sorted(set(row)) for row in draws(top_k=2).T.tolist()] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(("top_k", "prefix"), [(0, False), (3, True)])
def test_sampling_on_a_mesh(top_k, prefix):
  """Four devices write what one writes."""
  model, params = make(num_kv_heads=4)
  sampling = Sampling(top_k=top_k, top_p=0.9)
  prompts = [*PROMPTS, [1]]  # rows divide by the data axes
  alone = generator(model, params, prefix=prefix)(prompts, max_new_tokens=NEW, sampling=sampling)
  layout = make_layout(MeshConfig(fsdp=2, model=2), jax.devices()[:4])
  with layout.activate():
    spread = make(num_kv_heads=4)
    found = generator(*spread, prefix=prefix)(prompts, max_new_tokens=NEW, sampling=sampling)
  assert found == alone


FACTORS = tuple(np.linspace(1, 2, 4).tolist())
BY_LENGTH = {
  "dynamic": RopeScaling(kind=RopeKind.DYNAMIC, factor=4.0, original_max_seq_len=4),
  "longrope": RopeScaling(
    kind=RopeKind.LONGROPE,
    factor=4.0,
    original_max_seq_len=12,
    short_factors=(1.0,) * 4,
    long_factors=tuple(8 * f for f in FACTORS),
  ),
}


@pytest.mark.parametrize("name", BY_LENGTH)
def test_length_is_the_prompts_own(name):
  """Frequencies that depend on the length: broken by padding, or by the longest row, that count."""
  model, params = make(rope_scaling=BY_LENGTH[name])
  module = model.bind(params)
  prompts = [*PROMPTS, [9, 8, 7, 6, 5]]
  expected = [int(module(jnp.asarray([p]))[0][0, -1].argmax()) for p in prompts]
  generate = generator(model, params)
  assert [[i] for i in expected] == generate(prompts, max_new_tokens=1, sampling=GREEDY)
  together = generate(prompts, max_new_tokens=NEW, sampling=GREEDY)
  alone = [generate([p], max_new_tokens=NEW, sampling=GREEDY)[0] for p in prompts]
  assert together == alone
  # The sizes that a prefill is traced with are the prompts' own.
  ids = jnp.asarray([PROMPTS[1]])
  padded = jnp.pad(ids, ((0, 0), (0, 11)))
  lengths = jnp.asarray([5])
  right, wrong = (
    np.asarray(_prefill(model, params, x, lengths, slots=32)[0]) for x in (ids, padded)
  )
  np.testing.assert_allclose(right[0], module(ids)[0][0, -1], atol=1e-4)
  assert np.abs(right - wrong)[:, :V].max() > 0.02


@pytest.mark.parametrize("changes", [{}, {"positions": Positions.ALIBI}, {"latent": True}])
def test_prefix_is_seen_whole_and_the_rest_is_causal(changes):
  """A prompt is the prefix: the same greedy text as from full passes with that prefix; broken by a
  causal prefill, by padding in the prefix, or by new tokens that the prompt sees."""
  if "latent" in changes:
    latent = Latent(kv_rank=8, nope_dim=4, rope_dim=4, value_dim=8)
    changes = {"latent": latent, "num_kv_heads": 4, "head_dim": 8}
  model, params = make(**changes)

  @jax.jit
  def forward(params, ids, prefix):
    return model.bind(params)(ids, prefix_BT=prefix)[0]

  expected = []
  for prompt in PROMPTS:
    row = list(prompt)
    for _ in range(NEW):
      ids = np.zeros((1, MAX_SEQ_LEN), np.int32)
      ids[0, : len(row)] = row
      prefix = np.arange(MAX_SEQ_LEN)[None] < len(prompt)
      row.append(int(forward(params, ids, prefix)[0, len(row) - 1].argmax()))
    expected.append(row[len(prompt) :])
  assert (
    generator(model, params, prefix=True)(PROMPTS, max_new_tokens=NEW, sampling=GREEDY) == expected
  )
  assert generator(model, params)(PROMPTS, max_new_tokens=NEW, sampling=GREEDY) != expected


def test_prefill_sees_all_of_the_prompt_and_nothing_else():
  """By the cache: keys of the first token's next layer change with the prompt's last token where
  the prompt is a prefix, and never with padding."""
  model, params = make()
  lengths = jnp.asarray([5])

  def keys(last, pad, prefix):
    ids = jnp.asarray([[7, 3, 9, 9, last, *[pad] * 11]])
    cache = _prefill(model, params, ids, lengths, slots=16, prefix=prefix)[1]
    return np.asarray(cache.k_LBSNK)[1, 0, 0]

  for prefix in (True, False):
    np.testing.assert_array_equal(keys(1, 0, prefix), keys(1, 50, prefix))
    assert (np.abs(keys(1, 0, prefix) - keys(2, 0, prefix)).max() > 1e-3) == prefix


def test_an_opened_run_drops_nothing():
  """Experts with little room lose tokens to other rows and to padding: equal prompts would be
  answered differently."""
  config = make_config(num_experts=4, expert_capacity=0.5)
  opened = trained._dropless(config)
  assert opened.expert_capacity is None and config.expert_capacity == 0.5
  params = jax.jit(config.build().init)(jax.random.key(0))
  prompts = [[7, 3, 9, 9, 1]] * 4

  def texts(model):
    return generator(model, params)(prompts, max_new_tokens=NEW, sampling=GREEDY)

  found = texts(opened.build())
  assert len({tuple(row) for row in found}) == 1
  assert len({tuple(row) for row in texts(config.build())}) > 1

"""Text from a model: prefill the prompt, then one jitted loop over a cache of fixed shape.

B batch, P padded prompt length, S cache slots, V vocab.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.inference.sampling import Sampling, sample
from jaxlm.layers.cache import Cache
from jaxlm.layers.config import Positions, RopeKind
from jaxlm.models.base import ModelDef, Params
from jaxlm.models.config import DecoderConfig
from jaxlm.sharding import constrain

# Their frequencies depend on the length of what a call holds.
_BY_LENGTH = (RopeKind.DYNAMIC, RopeKind.LONGROPE)


class Generator:
  """Continues sequences of token ids.

  Prompts are padded to a power of two and the cache likewise, so that few programs are compiled.
  RoPE that depends on the length of the prompt (DYNAMIC, LONGROPE) would take the padding for a
  part of it: there, prompts of each length are taken by themselves, as they are.

  Args:
    model, params: what continues. Use it under the layout that the parameters were made in. Build
      it without expert_capacity: where there is a bound, other rows and padding take room, and a
      text depends on its neighbours.
    eos_id: a sequence ends with it, or None.
    max_seq_len: the longest sequence, prompt included.
    prefix: all of a prompt sees all of it, as a prefix-LM was trained; what is new is causal.
  """

  def __init__(
    self,
    model: ModelDef,
    params: Params,
    *,
    eos_id: int | None,
    max_seq_len: int,
    prefix: bool = False,
  ):
    self._params = params
    self._eos_id, self._max_seq_len = eos_id, max_seq_len
    config: DecoderConfig = model.bind(params).config
    scaling = config.rope_scaling if config.positions is Positions.ROPE else None
    self._padded = scaling is None or scaling.kind not in _BY_LENGTH
    self._prefill = jax.jit(
      functools.partial(_prefill, model, prefix=prefix), static_argnames=("slots",)
    )
    self._decode = jax.jit(
      functools.partial(_decode, model),
      static_argnames=("num_tokens", "sampling", "eos_id"),
    )

  def __call__(
    self,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
  ) -> list[list[int]]:
    """The new tokens of each prompt, up to and without EOS.

    Raises:
      UserError: a prompt is empty, or too long for the model together with max_new_tokens.
    """
    if max_new_tokens < 1:
      raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1")
    if not prompts or not all(prompts):
      raise UserError("a prompt has no tokens: give at least one")
    longest = max(len(p) for p in prompts)
    if longest + max_new_tokens > self._max_seq_len:
      raise UserError(
        f"{longest} prompt tokens + max_new_tokens={max_new_tokens} exceed the model's "
        f"max_seq_len={self._max_seq_len}: shorten one of them"
      )
    key = jax.random.key(seed)
    if self._padded:
      return self._continue(prompts, _round_up(longest), max_new_tokens, sampling, key)
    out: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(p) for p in prompts}):
      rows = [i for i, p in enumerate(prompts) if len(p) == length]
      own = jax.random.fold_in(key, length)
      found = self._continue([prompts[i] for i in rows], length, max_new_tokens, sampling, own)
      for i, ids in zip(rows, found, strict=True):
        out[i] = ids
    return out

  def _continue(
    self,
    prompts: Sequence[Sequence[int]],
    padded: int,
    max_new_tokens: int,
    sampling: Sampling,
    key: jax.Array,
  ) -> list[list[int]]:
    slots = _round_up(max(len(p) for p in prompts) + max_new_tokens)
    ids_BP = np.zeros((len(prompts), padded), np.int32)
    for row, prompt in zip(ids_BP, prompts, strict=True):
      row[: len(prompt)] = prompt
    lengths_B = np.asarray([len(p) for p in prompts], np.int32)
    logits_BV, cache = self._prefill(
      self._params, jnp.asarray(ids_BP), jnp.asarray(lengths_B), slots=max(slots, padded)
    )
    tokens_BN = self._decode(
      self._params,
      logits_BV,
      cache=cache,
      positions_B=jnp.asarray(lengths_B),
      key=key,
      num_tokens=max_new_tokens,
      sampling=sampling,
      eos_id=self._eos_id,
    )
    return [self._cut(row.tolist()) for row in np.asarray(tokens_BN)]

  def _cut(self, ids: list[int]) -> list[int]:
    return ids[: ids.index(self._eos_id)] if self._eos_id in ids else ids


def _prefill(
  model: ModelDef,
  params: Params,
  ids_BP: jax.Array,
  lengths_B: jax.Array,
  *,
  slots: int,
  prefix: bool = False,
) -> tuple[jax.Array, Cache]:
  """Logits after each prompt, and the cache with the prompts in it.

  Padding stands after a prompt and writes slots that are overwritten before they are seen.
  """
  module = model.bind(params)
  prefix_BP = jnp.arange(ids_BP.shape[1])[None] < lengths_B[:, None] if prefix else None
  cache = module.empty_cache(ids_BP.shape[0], slots)
  logits_BPV, cache = module(ids_BP, cache=cache, prefix_BT=prefix_BP)
  # Sampling sorts whole rows: logits are brought together over the mesh.
  logits_BPV = constrain(logits_BPV, None, None, None)
  last_B11 = (lengths_B - 1)[:, None, None]
  return jnp.take_along_axis(logits_BPV, last_B11, axis=1)[:, 0], cache


def _decode(
  model: ModelDef,
  params: Params,
  logits_BV: jax.Array,
  *,
  cache: Cache,
  positions_B: jax.Array,
  key: jax.Array,
  num_tokens: int,
  sampling: Sampling,
  eos_id: int | None,
) -> jax.Array:
  """int32 (B, num_tokens); all EOS after the first EOS."""
  module = model.bind(params)
  batch = logits_BV.shape[0]
  out_BN = jnp.full((batch, num_tokens), 0 if eos_id is None else eos_id, jnp.int32)

  def running(carry: Any) -> jax.Array:
    n, _, _, _, done_B = carry
    return (n < num_tokens) & ~jnp.all(done_B)

  def step(carry: Any) -> Any:
    n, logits_BV, cache, out_BN, done_B = carry
    token_B = sample(logits_BV, jax.random.fold_in(key, n), sampling)
    if eos_id is not None:
      token_B = jnp.where(done_B, eos_id, token_B)
      done_B |= token_B == eos_id
    out_BN = jax.lax.dynamic_update_slice(out_BN, token_B[:, None], (0, n))
    logits_B1V, cache = module(
      token_B[:, None], positions_BT=(positions_B + n)[:, None], cache=cache
    )
    logits_BV = constrain(logits_B1V, None, None, None)[:, 0]
    return n + 1, logits_BV, cache, out_BN, done_B

  start = (jnp.int32(0), logits_BV, cache, out_BN, jnp.zeros((batch,), bool))
  return jax.lax.while_loop(running, step, start)[3]


def _round_up(n: int, least: int = 16) -> int:
  """The next power of two."""
  return max(least, 1 << (n - 1).bit_length())

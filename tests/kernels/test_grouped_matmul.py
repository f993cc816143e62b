"""Grouped products equal a loop over the groups, in value and gradients."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.kernels import grouped_matmul as lib
from jaxlm.kernels.grouped_matmul import Backend, Backends, grouped_matmul

pytestmark = pytest.mark.smoke

D, F = 16, 24
SIZES = {
  "even": (8, 8, 8, 8),
  "uneven": (1, 20, 3, 8),
  "empty": (0, 17, 0, 15),
  "one": (0, 0, 32, 0),
}


def make(sizes, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (sum(sizes), D), dtype)
  w = jax.random.normal(keys[1], (len(sizes), D, F), dtype)
  dy = jax.random.normal(keys[2], (sum(sizes), F), dtype)
  return x, w, jnp.array(sizes, jnp.int32), dy


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("name", SIZES)
def test_equals_a_loop_over_the_groups(name, dtype, tolerance):
  """Broken by groups off by one row, a gradient of the untransposed matrix, or an empty group
  whose gradient is not zero."""
  x, w, sizes, dy = make(SIZES[name], dtype)

  @jax.jit
  def run(x, w, sizes, dy):
    y, vjp = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
    return y, *vjp(dy)

  found = run(x, w, sizes, dy)
  x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
  ends = np.cumsum(SIZES[name])
  rows = [slice(end - size, end) for end, size in zip(ends, SIZES[name])]
  expected = (
    np.concatenate([x[r] @ w[e] for e, r in enumerate(rows)]),
    np.concatenate([dy[r] @ w[e].T for e, r in enumerate(rows)]),
    np.stack([x[r].T @ dy[r] for r in rows]),
  )
  for a, b in zip(found, expected):
    assert a.dtype == dtype and a.shape == b.shape
    assert np.linalg.norm(np.asarray(a, np.float64) - b) <= tolerance * np.linalg.norm(b)


def test_each_direction_has_its_own_backend(monkeypatch):
  calls = []
  inner = lib.ragged_dot

  def spy(a, b, sizes, dims, backend):
    calls.append((dims, backend))
    return inner(a, b, sizes, dims, Backend.XLA)

  monkeypatch.setattr(lib, "ragged_dot", spy)
  monkeypatch.setattr(lib, "require", lambda backend: None)
  x, w, sizes, _ = make(SIZES["even"])
  backends = Backends(forward=Backend.XLA, dx=Backend.MOSAIC, dw=Backend.TRITON)
  jax.grad(lambda x, w: grouped_matmul(x, w, sizes, backends=backends).sum(), (0, 1))(x, w)
  assert calls == [
    (lib.FORWARD, Backend.XLA),
    (lib.DX, Backend.MOSAIC),
    (lib.DW, Backend.TRITON),
  ]


def test_a_backend_that_is_not_there_is_refused_with_the_remedy(monkeypatch):
  x, w, sizes, _ = make(SIZES["even"])
  with pytest.raises(UserError, match="use XLA"):
    grouped_matmul(x, w, sizes, backends=lib.ON_CUDA)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setitem(sys.modules, "tokamax", None)
  with pytest.raises(UserError, match=r"pip install 'jaxlm\[cuda\]'"):
    grouped_matmul(x, w, sizes)


def test_dimension_numbers_are_those_that_the_kernels_of_tokamax_know():
  """They compare dimension numbers for equality, and refuse all others."""
  base = pytest.importorskip("tokamax._src.ops.ragged_dot.base")
  assert lib.FORWARD == base.DEFAULT_RAGGED_DOT_DIM_NUMS
  assert lib.DX == base.TRANS_RHS_RAGGED_DOT_DIM_NUMS
  assert lib.DW == base.RAGGED_CONTRACTING_DOT_DIM_NUMS

"""Rows in groups, each group times its own matrix: the product behind a mixture of experts.

M rows, D and F features, E groups (experts). Also called ragged dot (JAX) and grouped GEMM
(MegaBlocks, Gale et al. 2022, arXiv:2211.15841). The forward product and its two gradients are
different kernels with different best implementations, so each is chosen on its own.
"""

import enum
import functools
import importlib
from typing import NamedTuple

import jax
from jax import lax

from jaxlm.errors import UserError


class Backend(enum.Enum):
  """XLA: lax.ragged_dot. TRITON, MOSAIC: the kernels of tokamax, for NVIDIA GPUs only.

  On GPUs XLA multiplies every row by all E matrices (masked): right, and E times the work.
  """

  XLA = "xla"
  TRITON = "triton"
  MOSAIC = "mosaic_gpu"


class Backends(NamedTuple):
  """Who computes the product (`forward`), and its gradients by the rows (`dx`) and matrices (`dw`).

  The members are Backends of one direction each; see `default_backends`.
  """

  forward: Backend
  dx: Backend
  dw: Backend


ON_CPU = Backends(Backend.XLA, Backend.XLA, Backend.XLA)
# Triton's are faster in tokamax's own tables, but need a jax-triton that fits the installed Triton.
ON_CUDA = Backends(Backend.MOSAIC, Backend.MOSAIC, Backend.MOSAIC)


def default_backends() -> Backends:
  """The fastest known on the machine at hand."""
  return ON_CUDA if jax.default_backend() == "gpu" else ON_CPU


def grouped_matmul(
  x_MD: jax.Array,
  w_EDF: jax.Array,
  group_sizes_E: jax.Array,
  *,
  backends: Backends | None = None,
) -> jax.Array:
  """The first group_sizes[0] rows times w[0], the next group_sizes[1] rows times w[1], and so on.

  Args:
    x_MD: rows, sorted by group.
    w_EDF: a matrix for each group, in the dtype of x.
    group_sizes_E: int32, the rows of each group (zero is allowed). They must add up to M: what
      the kernels leave in rows past the last group differs.
    backends: None: default_backends().

  Returns:
    (M, F) in the dtype of x, summed in float32.

  Raises:
    UserError: a backend is asked for that this machine lacks.
  """
  backends = default_backends() if backends is None else backends
  for backend in backends:
    require(backend)
  return _product(backends, x_MD, w_EDF, group_sizes_E)


def require(backend: Backend) -> None:
  """Raises UserError if this machine lacks the backend."""
  if backend is Backend.XLA:
    return
  if jax.default_backend() != "gpu":
    raise UserError(f"grouped matmul backend {backend.name} needs an NVIDIA GPU: use XLA")
  # tokamax imports without these, and then knows no Triton kernels.
  needed = ("tokamax", "triton", "jax_triton") if backend is Backend.TRITON else ("tokamax",)
  for module in needed:
    try:
      importlib.import_module(module)
    except ImportError as e:
      raise UserError(
        f"grouped matmul backend {backend.name} needs {module}: pip install 'jaxlm[cuda]'"
      ) from e


def _dims(summed: tuple[int, int], group_dims: tuple[int, ...]) -> lax.RaggedDotDimensionNumbers:
  """Dimension numbers of a product of (M, …) rows that sums over one dim of each operand."""
  return lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((summed[0],), (summed[1],)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=group_dims,
  )


FORWARD = _dims((1, 1), (0,))  # (M, D), (E, D, F) -> (M, F)
DX = _dims((1, 2), (0,))  # (M, F), (E, D, F) -> (M, D)
DW = _dims((0, 0), ())  # (M, D), (M, F) -> (E, D, F)


def ragged_dot(
  a: jax.Array,
  b: jax.Array,
  group_sizes_E: jax.Array,
  dims: lax.RaggedDotDimensionNumbers,
  backend: Backend,
) -> jax.Array:
  """One of the three products (FORWARD, DX, DW) by one backend, without a gradient of its own."""
  if backend is Backend.XLA:
    return lax.ragged_dot_general(a, b, group_sizes_E, dims, preferred_element_type=a.dtype)
  import tokamax

  # No preferred_element_type: it is part of the key under which tokamax looks up the parameters
  # found fastest for a shape, and the entries it ships have none.
  return tokamax.ragged_dot_general(a, b, group_sizes_E, dims, implementation=backend.value)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(
  backends: Backends, x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array
) -> jax.Array:
  return ragged_dot(x_MD, w_EDF, group_sizes_E, FORWARD, backends.forward)


def _forward(backends, x_MD, w_EDF, group_sizes_E):
  return _product(backends, x_MD, w_EDF, group_sizes_E), (x_MD, w_EDF, group_sizes_E)


def _backward(backends, residuals, dy_MF):
  x_MD, w_EDF, group_sizes_E = residuals
  dx_MD = ragged_dot(dy_MF, w_EDF, group_sizes_E, DX, backends.dx)
  dw_EDF = ragged_dot(x_MD, dy_MF, group_sizes_E, DW, backends.dw)
  return dx_MD, dw_EDF.astype(w_EDF.dtype), None


_product.defvjp(_forward, _backward)

"""float8 products: close to the exact ones, exactly what the rounding of operands makes of them."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.kernels.fp8 import fp8_einsum
from jaxlm.mesh import MeshConfig
from jaxlm.sharding import constrain, gather, make_layout

pytestmark = pytest.mark.smoke

X = ("act_batch", "act_seq")
# Every product of the layers: equation, sizes of x and w, logical axes of x, w (gathered: without
# fsdp) and result.
CASES = {
  "BTD,DF->BTF": ((8, 16, 32), (32, 64), (*X, None), (None, "mlp"), (*X, "act_mlp")),
  "BTF,FD->BTD": ((8, 16, 64), (64, 32), (*X, "act_mlp"), ("mlp", None), (*X, None)),
  "BTD,DHK->BTHK": (
    (8, 16, 32),
    (32, 4, 8),
    (*X, None),
    (None, "heads", None),
    (*X, "act_heads", None),
  ),
  "BTHK,HKD->BTD": (
    (8, 16, 4, 8),
    (4, 8, 32),
    (*X, "act_heads", None),
    ("heads", None, None),
    (*X, None),
  ),
  "BTD,DNPK->BTNPK": (
    (8, 16, 32),
    (32, 4, 3, 8),
    (*X, None),
    (None, "kv_heads", None, None),
    (*X, "act_kv_heads", None, None),
  ),
  "BTD,DPF->BTPF": (
    (8, 16, 32),
    (32, 2, 64),
    (*X, None),
    (None, None, "mlp"),
    (*X, None, "act_mlp"),
  ),
}
MESHES = {
  "data8": MeshConfig(data=8, fsdp=1),
  "fsdp8": MeshConfig(fsdp=8),
  "data2_model4": MeshConfig(data=2, fsdp=1, model=4),
  "fsdp2_sequence2_model2": MeshConfig(fsdp=2, sequence=2, model=2),
}
equations = pytest.mark.parametrize("equation", CASES)


def make(equation, dtype=jnp.bfloat16):
  """x and w as at initialisation, and a cotangent, all normal."""
  x_shape, w_shape, *_ = CASES[equation]
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], x_shape, dtype)
  w = 0.02 * jax.random.normal(keys[1], w_shape, dtype)
  y = jax.eval_shape(functools.partial(jnp.einsum, equation), x, w)
  return x, w, jax.random.normal(keys[2], y.shape, dtype)


def run(product, equation, x, w, dy):
  """The result and both gradients."""

  @jax.jit
  def both(x, w, dy):
    y, vjp = jax.vjp(lambda x, w: product(equation, x, w, out=CASES[equation][-1]), x, w)
    return y, *vjp(dy)

  return dict(zip(("y", "dx", "dw"), both(x, w, dy)))


def plain(equation, x, w, *, out):
  return jnp.einsum(equation, x, w)


def rounded(x, dtype):
  """x in float64, rounded as float8 of this dtype resolves it when its largest element just fits.

  (Which power of two scales it matters only where the subnormals of the format begin.)
  """
  x = np.asarray(x, np.float64)
  scale = 2.0 ** math.ceil(math.log2(np.abs(x).max() / float(jnp.finfo(dtype).max)))
  return (x / scale).astype(dtype).astype(np.float64) * scale


def emulate(equation, x, w, dy):
  """What fp8_einsum and its gradients should be: exact products of rounded operands."""
  (a, b), c = equation.split("->")[0].split(","), equation.split("->")[1]
  x, w = rounded(x, jnp.float8_e4m3fn), rounded(w, jnp.float8_e4m3fn)
  dy = rounded(dy, jnp.float8_e5m2)
  return {
    "y": np.einsum(equation, x, w),
    "dx": np.einsum(f"{c},{b}->{a}", dy, w),
    "dw": np.einsum(f"{a},{c}->{b}", x, dy),
  }


def error(found, expected):
  """The norm of the difference as a share of the norm."""
  found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@equations
def test_close_to_the_product_of_unrounded_operands(equation):
  """Rounding to 3 mantissa bits is an error of 2^-4 / sqrt(3) = 3.6% at most, and about 2.6% a
  tensor; to 2 bits, twice that. Errors of the two operands add in squares: 3.7% and 5.8%."""
  x, w, dy = make(equation)
  found = run(fp8_einsum, equation, x, w, dy)
  wide = run(plain, equation, *(a.astype(jnp.float32) for a in (x, w, dy)))
  assert {k: v.dtype for k, v in found.items()} == dict.fromkeys(found, jnp.bfloat16)
  assert error(found["y"], wide["y"]) < 0.045
  assert error(found["dx"], wide["dx"]) < 0.07
  assert error(found["dw"], wide["dw"]) < 0.07
  assert error(found["y"], wide["y"]) > 0.02  # or nothing was rounded to float8


@equations
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-6), (jnp.bfloat16, 3e-3)])
def test_is_the_exact_product_of_the_rounded_operands(equation, dtype, tolerance):
  """Broken by a scale lost or squared, by gradients of the wrong operands, or by operands that are
  not those of the forward pass. In bfloat16 the results are rounded, by 2^-9 at most."""
  x, w, dy = make(equation, dtype)
  found = run(fp8_einsum, equation, x, w, dy)
  expected = emulate(equation, x, w, dy)
  for name in ("y", "dx", "dw"):
    assert error(found[name], expected[name]) < tolerance, name


def test_scale_of_the_operands_carries_over():
  """A power of two exactly; another factor moves the rounding, so to the error of float8. Without
  scaling, 1e-6 would vanish in float8 and 1e6 overflow."""
  x, w, dy = make("BTD,DF->BTF")
  base = run(fp8_einsum, "BTD,DF->BTF", x, w, dy)
  for factor in (2.0**-20, 2.0**20):
    found = run(fp8_einsum, "BTD,DF->BTF", x * factor, w, dy)
    np.testing.assert_array_equal(found["y"], base["y"] * factor)
    np.testing.assert_array_equal(found["dx"], base["dx"])
    np.testing.assert_array_equal(found["dw"], base["dw"] * factor)
  for factor in (1e-6, 1e3, 1e6):
    args = x * factor, w / 7, dy * factor
    found = run(fp8_einsum, "BTD,DF->BTF", *args)
    wide = run(plain, "BTD,DF->BTF", *(a.astype(jnp.float32) for a in args))
    assert error(found["y"], wide["y"]) < 0.045
    assert error(found["dx"], wide["dx"]) < 0.07
    assert error(found["dw"], wide["dw"]) < 0.07


@pytest.mark.parametrize("zeros", [(0,), (1,), (2,), (0, 1, 2)])
def test_zeros_stay_zeros(zeros):
  args = [jnp.zeros_like(a) if i in zeros else a for i, a in enumerate(make("BTD,DF->BTF"))]
  found = run(fp8_einsum, "BTD,DF->BTF", *args)
  for name, operands in {"y": (0, 1), "dx": (1, 2), "dw": (0, 2)}.items():
    assert np.isfinite(found[name]).all()
    assert (np.asarray(found[name]) == 0).all() == bool(set(operands) & set(zeros))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_non_finite_operands_show(where, value):
  """Casts to float8 may saturate infinity: it must not come out as an ordinary number."""
  args = list(make("BTD,DF->BTF"))
  args[where] = args[where].at[(0,) * args[where].ndim].set(value)
  found = run(fp8_einsum, "BTD,DF->BTF", *args)
  for name, operands in {"y": (0, 1), "dx": (1, 2), "dw": (0, 2)}.items():
    finite = np.isfinite(np.asarray(found[name], np.float32))
    assert not finite.any() if where in operands else finite.all(), name


@equations
@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_computes_what_one_device_does(name, equation):
  """Broken by a scale taken of one shard, or a gradient summed over the wrong axes. Gradients must
  come back laid out as the arrays they are of, or an update would move the weights."""
  x, w, dy = make(equation, jnp.float32)
  expected = run(fp8_einsum, equation, x, w, dy)
  *_, x_axes, w_axes, y_axes = CASES[equation]
  config = MESHES[name]
  count = 8 if config.fsdp == -1 else config.data * config.fsdp * config.sequence * config.model
  with make_layout(config, jax.devices()[:count]).activate():
    x, w, dy = constrain(x, *x_axes), constrain(w, *w_axes), constrain(dy, *y_axes)
    found = run(fp8_einsum, equation, x, w, dy)
    for key, like in {"y": dy, "dx": x, "dw": w}.items():
      assert found[key].sharding.is_equivalent_to(like.sharding, like.ndim), key
      assert error(jax.device_get(found[key]), expected[key]) < 1e-6, key


def test_gradient_reaches_a_sharded_weight_through_its_gather():
  """As in the layers: float32 weight on fsdp, gathered and cast, inside a scan with remat."""
  x, w, _ = make("BTD,DF->BTF", jnp.float32)
  w = jnp.stack([w, 2 * w])

  def loss(w, x):
    def layer(x, w):
      w = gather(w, x.dtype)
      h = fp8_einsum("BTD,DF->BTF", x, w, out=(*X, "act_mlp"))
      return x + fp8_einsum("BTF,FD->BTD", jnp.tanh(h), w.T, out=(*X, None)), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0] ** 2)

  expected = jax.jit(jax.value_and_grad(loss))(w, x)
  with make_layout(MeshConfig(fsdp=8)).activate():
    w, x = constrain(w, "layers", "embed", "mlp"), constrain(x, *X, None)
    found = jax.jit(jax.value_and_grad(loss))(w, x)
    assert found[1].sharding.is_equivalent_to(w.sharding, w.ndim)
  assert error(found[0], expected[0]) < 1e-6
  # A bit of x on the other side of a rounding boundary is one float8 step.
  assert error(jax.device_get(found[1]), expected[1]) < 1e-3


@pytest.mark.parametrize(
  "equation", ["BTD,FD->BTF", "BDT,DF->BTF", "BTD,DF->BFT", "BTD,EF->BTDEF", "BTD,DF"]
)
def test_other_equations_are_refused(equation):
  with pytest.raises(ValueError, match="must"):
    fp8_einsum(equation, jnp.ones((2, 3, 4)), jnp.ones((4, 4)), out=(None, None, None))


@equations
def test_all_products_for_cuda_have_float8_operands(equation):
  """And a scalar multiplication in its own dtype follows each, which cuBLASLt can take in."""
  args = make(equation)

  def both(x, w, dy):
    y, vjp = jax.vjp(lambda x, w: fp8_einsum(equation, x, w, out=CASES[equation][-1]), x, w)
    return y, *vjp(dy)

  text = jax.export.export(jax.jit(both), platforms=["cuda"])(*args).mlir_module()
  operands = r"stablehlo\.dot_general.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)"
  found = re.findall(operands + r" -> tensor<[\dx]*x(\w+)>", text)
  assert found == [
    ("f8E4M3FN", "f8E4M3FN", "bf16"),
    ("f8E5M2", "f8E4M3FN", "bf16"),
    ("f8E4M3FN", "f8E5M2", "bf16"),
  ]
  assert text.count("stablehlo.dot_general") == 3
  for dot in re.findall(r"(%\d+) = stablehlo\.dot_general", text):
    assert re.findall(rf"stablehlo\.(\w+) [^\n]*{dot}\b", text) == ["multiply"]


def test_residuals_are_float8():
  """A byte an element is kept of activations and weights, and nothing of bfloat16."""
  x, w, _ = make("BTD,DF->BTF")
  _, vjp = jax.vjp(lambda x, w: fp8_einsum("BTD,DF->BTF", x, w, out=(*X, "act_mlp")), x, w)
  kept = {(a.shape, a.dtype.name) for a in jax.tree.leaves(vjp) if a.size > 1}
  assert kept == {(x.shape, "float8_e4m3fn"), (w.shape, "float8_e4m3fn")}

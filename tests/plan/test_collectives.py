# ruff: noqa: E501 (a program's text has long lines)
"""Collectives are counted as the program runs them, from any of XLA's notations."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from jaxlm.plan import collectives, hlo
from jaxlm.plan.collectives import replica_groups

P = jax.P
SHAPE = {"a": 2, "b": 4}
BYTES = 8 * 16 * 4  # one device's part of the example


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)


def compiled(f, mesh, *specs, out=None):
  """f under shard_map, of float32 arrays whose part on each device is (8, 16)."""

  def argument(spec):
    sizes = [1 if axis is None else SHAPE[axis] for axis in (*spec, None)[:1]]
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct((8 * sizes[0], 16), jnp.float32, sharding=sharding)

  with jax.set_mesh(mesh):
    g = jax.shard_map(f, in_specs=specs, out_specs=P() if out is None else out, check_vma=False)
    return jax.jit(g).lower(*map(argument, specs)).compile()


def ring(x, axis, n):
  return jax.lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])


@pytest.mark.parametrize(
  ("f", "kind", "axes", "sent"),
  [
    (lambda x: jax.lax.psum(x, "a"), "all-reduce", ("a",), BYTES),
    (lambda x: jax.lax.psum(x, ("a", "b")), "all-reduce", ("a", "b"), 2 * BYTES * 7 / 8),
    (lambda x: jax.lax.all_gather(x, "b"), "all-gather", ("b",), 3 * BYTES),
    (lambda x: jax.lax.psum_scatter(x, "b", tiled=True), "reduce-scatter", ("b",), BYTES * 3 / 4),
    (lambda x: ring(x, "b", 4), "collective-permute", ("b",), BYTES),
    (lambda x: ring(x, "a", 2), "collective-permute", ("a",), BYTES),
    (lambda x: jax.lax.all_to_all(x, "b", 0, 1, tiled=True), "all-to-all", ("b",), BYTES * 3 / 4),
  ],
)
def test_kind_axes_and_bytes(mesh, f, kind, axes, sent):
  (found,) = collectives.count(compiled(f, mesh, P("b")), mesh)
  assert (found.kind, found.axes, found.runs, found.bounded) == (kind, axes, 1, True)
  assert found.bytes_sent == pytest.approx(sent)
  assert found.arrays[0].dtype == "f32"


def test_loops_multiply_and_scopes_are_kept(mesh):
  def f(x):
    def inner(x, _):
      with jax.named_scope("inner"):
        return jax.lax.psum(x, "a") * 0.5, None

    def outer(x, _):
      x, _ = jax.lax.scan(inner, x, None, length=3)
      with jax.named_scope("outer"):
        return ring(x, "b", 4), None

    x, _ = jax.lax.scan(outer, x, None, length=5)
    return jax.lax.psum(x.sum(), "b")

  found = collectives.count(compiled(f, mesh, P("b")), mesh)
  runs = {c.kind + "×".join(c.axes): c.runs for c in found}
  assert runs == {"all-reducea": 15, "collective-permuteb": 5, "all-reduceb": 1}
  scopes = {c.kind: c.op_name for c in found if c.runs > 1}
  assert "inner" in scopes["all-reduce"] and "outer" in scopes["collective-permute"]
  sums = collectives.by_axis(found)
  assert sums["a",] == {"all-reduce": 15 * BYTES}
  assert sums["b",]["collective-permute"] == 5 * BYTES
  assert "15" in collectives.table(found) and "a" in collectives.axis_table(found)


def test_the_bound_of_a_loop_is_found_without_a_known_trip_count(mesh):
  def f(x):
    return jax.lax.fori_loop(0, 7, lambda _, x: jax.lax.psum(x, "a") * 0.5, x)

  text = compiled(f, mesh, P("b")).as_text()
  (known,) = collectives.count(text, mesh)
  stripped = text.replace('"known_trip_count":{"n":"7"}', '"_":0')
  assert stripped != text
  (found,) = collectives.count(stripped, mesh)
  assert known.runs == found.runs == 7 and found.bounded


def test_a_loop_without_a_bound_is_told(mesh):
  def f(x):
    return jax.lax.while_loop(
      lambda x: x.sum() < 100.0, lambda x: jax.lax.all_gather(x, "a").sum(0), x
    )

  found = collectives.count(compiled(f, mesh, P("b")), mesh)
  assert [(c.runs, c.bounded) for c in found if c.kind == "all-gather"] == [(1, False)]


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("replica_groups={}", ()),
    ("replica_groups=[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("replica_groups=[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
    ("replica_groups=[4,2]<=[2,2,2]T(2,0,1)", ((0, 2), (4, 6), (1, 3), (5, 7))),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("replica_groups=mesh['a'=2,'b'=4,'c'=1] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    (
      "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
      ((0, 1, 2, 3), (4, 5, 6, 7)),
    ),
  ],
)
def test_replica_groups_in_every_notation(text, groups):
  found = replica_groups(f"%x), channel_id=1, {text}, dimensions={{0}}, use_global_device_ids=true")
  assert found == groups


HEAD = "HloModule m\n\n"
PROGRAM = (
  HEAD
  + """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[8,64]) -> bf16[2,64] {
  %input = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.2 = bf16[8,64]{1,0} all-reduce(%input), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %slice = bf16[2,64]{1,0} slice(%all-reduce.2), slice={[0:2], [0:64]}
}

%wrapped (p: f32[4]) -> f32[1] {
  %p = f32[4]{0} parameter(0)
  ROOT %rs = f32[1]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}

%begin (b: f32[2]) -> (f32[2], f32[8]) {
  %b = f32[2]{0} parameter(0)
  %gather.1 = f32[8]{0} all-gather(%b), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (f32[2]{0}, f32[8]{0}) custom-call(%b, %gather.1), custom_call_target="AsyncStart"
}

%async_collective_fusion.1 (c: f32[2]) -> f32[8] {
  %c = f32[2]{0} parameter(0)
  ROOT %gather.2 = f32[8]{0} all-gather(%c), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
}

%end (d: f32[2]) -> f32[8] {
  %d = f32[2]{0} parameter(0)
  ROOT %gather.3 = f32[8]{0} all-gather(%d), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (p: bf16[8,64], q: f32[4]) -> bf16[2,64] {
  %p = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  %q = f32[4]{0} parameter(1)
  %ag = (bf16[8,64]{1,0}, bf16[16,64]{1,0:T(8,128)(2,1)}) all-gather-start(%p), replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  %agd = bf16[16,64]{1,0} all-gather-done(%ag)
  %both = ((f32[4]{0}, bf16[8,64]{1,0}), (f32[8]{0}, bf16[16,64]{1,0})) all-gather-start(%q, %p), replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  %bothd = (f32[8]{0}, bf16[16,64]{1,0}) all-gather-done(%both)
  %cp = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%q), source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}
  %cpd = f32[4]{0} collective-permute-done(%cp)
  %ar = f32[4]{0} all-reduce-start(%q), replica_groups={}, to_apply=%add
  %ard = f32[4]{0} all-reduce-done(%ar)
  %w = ((f32[4]{0}), f32[1]{0}, u32[]) async-start(%q), calls=%wrapped
  %wd = f32[1]{0} async-done(%w), calls=%wrapped
  %r = f32[2]{0} slice(%q), slice={[0:2]}
  %async-collective-start = (f32[2]{0}, f32[8]{0}) fusion(%r), kind=kCustom, calls=%begin
  %fusion.1 = f32[8]{0} fusion(%r), kind=kCustom, calls=%async_collective_fusion.1
  %async-collective-done = f32[8]{0} fusion(%r), kind=kCustom, calls=%end
  %alone = f32[4]{0} all-reduce(%q), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %f = bf16[2,64]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(f)/mlp/dot"}
}
"""
)


def test_asynchronous_fused_and_joined_collectives_count_once():
  found = collectives.count(PROGRAM, SHAPE)
  told = [(c.kind, "".join(c.axes), [str(a) for a in c.arrays], c.bytes_sent) for c in found]
  assert told == [
    ("all-gather", "a", ["bf16[16,64]"], 1024.0),
    ("all-gather", "a", ["f32[8]", "bf16[16,64]"], 16 + 1024.0),
    ("collective-permute", "b", ["f32[4]"], 16.0),
    ("all-reduce", "ab", ["f32[4]"], 2 * 16 * 7 / 8),
    ("reduce-scatter", "b", ["f32[1]"], 12.0),
    ("all-gather", "b", ["f32[8]"], 24.0),
    ("reduce-scatter", "b", ["bf16[2,64]"], 3 * 256.0),
  ]
  assert found[-1].op_name == "jit(f)/mlp/dot"  # the fusion's: what is inside has none


@pytest.mark.parametrize(
  ("text", "bytes_"),
  [("bf16[3,5]", 30), ("pred[]", 1), ("f8e4m3fn[8]", 8), ("s4[3]", 2), ("c64[2]", 16)],
)
def test_bytes_of_arrays(text, bytes_):
  (array,) = hlo.arrays(text)
  assert array.bytes == bytes_ and str(array) == text


def test_other_text_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    collectives.count("module @jit_f {}")

"""The formulas of a plan give what real states and compiled steps have."""

import dataclasses
import math

import jax
import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig
from jaxlm.errors import UserError
from jaxlm.layers.config import Remat
from jaxlm.mesh import MESH_AXES, MeshConfig, Zero
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.lion import LionConfig
from jaxlm.plan import chips, collectives, communication, report, topology
from jaxlm.plan.memory import memory, params_on_device
from jaxlm.plan.step_time import Assumptions, bandwidth, step_time
from jaxlm.program import build_program
from jaxlm.sharding import make_layout

T = 96


def make_config(*, remat=Remat.NONE, microbatches=1, kv_heads=None, rows=16, optim=None, **mesh):
  config = RunConfig(
    model=DecoderConfig(
      vocab_size=250,
      num_layers=4,
      embed_dim=64,
      mlp_dim=176,
      num_heads=8,
      num_kv_heads=kv_heads,
      head_dim=8,
      max_seq_len=T,
      remat=remat,
    ),
    data=DataConfig(seq_len=T),
    global_batch_size=rows,
    num_microbatches=microbatches,
    mesh=MeshConfig(**{"fsdp": 1, **mesh}),
  )
  return config if optim is None else dataclasses.replace(config, optim=optim)


def on_device(tree):
  """Bytes on the first device of a tree of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if x.ndim
  )


MESHES = [
  {"fsdp": 8},
  {"model": 8},
  {"data": 2, "fsdp": 2, "model": 2},
  {"sequence": 2, "fsdp": 4, "kv_heads": 2},
  {"data": 8},
  {"fsdp": 8, "optim": LionConfig()},
  {"stage": 2, "fsdp": 4},
  {"fsdp": 8, "zero": Zero.ZERO1},
]


@pytest.mark.parametrize("options", MESHES, ids=str)
def test_state_is_exact(options):
  config = make_config(**options)
  sizes = config.validate_devices(8)
  layout = make_layout(config.mesh)
  with layout.activate():
    state = layout.eval_shape(build_program(config).init, jax.random.key(0))
  planned = memory(config, sizes)
  assert planned.params == on_device(state.params)
  # Single numbers aside, and the optimizer's values for norms' scales.
  assert planned.optimizer == pytest.approx(on_device(state.opt_state), rel=1e-3)


def counted(config):
  layout = make_layout(config.mesh)
  with layout.activate():
    lowered = topology.lower(config, build_program(config), layout)
    found = topology.compile_and_look(lowered, layout.mesh).collectives
  return found, dict(layout.mesh.shape)


@pytest.mark.parametrize(
  ("options", "axes"),
  [
    ({"fsdp": 8}, ("fsdp",)),
    ({"fsdp": 8, "remat": Remat.FULL}, ("fsdp",)),
    ({"fsdp": 8, "kv_heads": 2}, ("fsdp",)),
    ({"model": 8}, ("model",)),
    ({"data": 8}, ("data",)),
  ],
  ids=str,
)
def test_bytes_are_those_of_a_compiled_step(options, axes):
  """On the CPU: in float32, every reduce-scatter an all-reduce (twice the bytes)."""
  config = make_config(**options)
  config.model.compute_dtype = type(config.model.compute_dtype).FLOAT32
  found, sizes = counted(config)
  planned = sum(
    m.total_bytes_sent * (2 if m.kind == "reduce-scatter" else 1)
    for m in communication.messages(config, sizes)
    if m.axes == axes
  )
  real = sum(c.total_bytes_sent for c in found if c.axes == axes)
  assert planned == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("kind", collectives.KINDS)
def test_both_sides_count_a_ring_alike(kind):
  one = collectives.Collective(
    kind, (collectives.Array("f32", (8, 3)),), ((0, 1, 2, 3),), ("a",), 4, 1, True, ""
  )
  assert one.bytes_sent == communication.ring_bytes(kind, 4, 96)
  assert communication.ring_bytes(kind, 1, 96) == 0


def test_memory_falls_with_what_should_lower_it():
  sizes = dict.fromkeys(MESH_AXES, 1)

  def total(sizes=sizes, **options):
    return memory(make_config(**options), sizes).total

  kept = [
    memory(make_config(remat=r), sizes).activations
    for r in (Remat.NONE, Remat.MINIMAL, Remat.QKV, Remat.FULL)
  ]
  assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4
  assert total(microbatches=4) < total()
  assert total({**sizes, "fsdp": 8}) < total({**sizes, "data": 8})
  assert total({**sizes, "model": 8}) < total()
  assert total(offload_optimizer=True) < total()
  whole = params_on_device(make_config(), sizes)
  assert whole == make_config().model.num_params()


def test_step_time_by_hand():
  config = make_config(rows=64, fsdp=8)
  sizes = config.validate_devices(8)
  chip = chips.chip("h100")
  assumed = Assumptions(matmul=0.5, link=1.0)
  time = step_time(config, sizes, chip, assumed)
  flops = config.model.flops_per_token(T, causal=True) * 64 * T / 8
  assert time.compute == pytest.approx(flops / (0.5 * chip.flops))
  sent = sum(m.total_bytes_sent for m in communication.messages(config, sizes))
  assert time.links == {("fsdp",): pytest.approx(sent / chip.link_bandwidth)}
  assert time.fastest <= time.expected <= time.slowest
  assert time.mfu(time.compute) == pytest.approx(0.5)
  again = step_time(make_config(rows=64, fsdp=8, remat=Remat.FULL), sizes, chip, assumed)
  assert time.compute < again.compute < 4 / 3 * time.compute  # the output layer is not repeated


def test_axes_between_hosts_are_slow():
  sizes = {**dict.fromkeys(MESH_AXES, 1), "data": 4, "fsdp": 8, "model": 4}
  h100, v5p = chips.chip("h100"), chips.chip("v5p")
  assert bandwidth(("model",), sizes, h100) == 450e9
  assert bandwidth(("fsdp",), sizes, h100) == h100.slow_bandwidth  # 8 × 4 are 4 hosts
  assert bandwidth(("fsdp",), sizes, v5p) == 2 * v5p.link_bandwidth == pytest.approx(200e9)
  assert bandwidth(("data", "model"), sizes, h100) == h100.slow_bandwidth


def test_reports():
  config = make_config(fsdp=4, model=2, rows=64)
  text = report.plan(config, chips.chip("v5p"), 8)
  for word in ("fsdp=4 × model=2", "optimizer", "weights of a layer", "MFU", "tokens/s"):
    assert word in text
  listed = report.search(config, chips.chip("v5p"), 8)
  assert "fsdp=8" in listed and "model=2" in listed
  config.model.num_experts = 8
  for refuse in (report.plan, report.search):
    with pytest.raises(UserError, match="num_experts=8"):
      refuse(config, chips.chip("v5p"), 8)
  with pytest.raises(UserError, match="known are h100"):
    chips.chip("h1000")
  config.model.num_experts = None
  with pytest.raises(UserError, match="no mesh of 7"):
    report.search(config, chips.chip("v5p"), 7)

"""Each mesh sends what it promises, and a wrong rule is found.

On the CPU, whose compiler makes an all-reduce of every reduce-scatter that it wasn't asked for by
name: there the sums of gradients are pinned by their size. tests/plan/test_topology.py pins the
same promises on what the TPU's compiler makes.
"""

import dataclasses

import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig
from jaxlm.layers.config import Remat
from jaxlm.mesh import Context, MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.plan import promises, topology
from jaxlm.program import build_program
from jaxlm.sharding import make_layout

# Dims that are all different: an array is known by its shape.
T, D, F, H, K, V = 96, 64, 176, 8, 8, 256


def make_config(remat=Remat.NONE, microbatches=1, **mesh):
  return RunConfig(
    model=DecoderConfig(
      vocab_size=V - 6,
      num_layers=2,
      embed_dim=D,
      mlp_dim=F,
      num_heads=H,
      head_dim=K,
      max_seq_len=T,
      remat=remat,
    ),
    data=DataConfig(seq_len=T),
    global_batch_size=16,
    num_microbatches=microbatches,
    mesh=MeshConfig(**{"fsdp": 1, **mesh}),
  )


def compile_step(config, **wrong):
  """The collectives of the step; wrong: rules that are changed."""
  layout = make_layout(config.mesh)
  layout = dataclasses.replace(layout, rules={**layout.rules, **wrong})
  with layout.activate():
    lowered = topology.lower(config, build_program(config), layout)
    report = topology.compile_and_look(lowered, layout.mesh)
  return report.collectives, dict(layout.mesh.shape)


@pytest.mark.parametrize(
  "options",
  [
    {"fsdp": 8},
    {"fsdp": 8, "remat": Remat.FULL},
    {"fsdp": 4, "data": 2, "microbatches": 2, "remat": Remat.QKV},
    {"fsdp": 2, "model": 4},
    {"model": 8},
    {"sequence": 4, "fsdp": 2},
  ],
  ids=str,
)
def test_promises_hold(options):
  config = make_config(**options)
  found, sizes = compile_step(config)
  assert promises.broken(found, config, sizes) == []
  assert all(c.bounded for c in found)


def named(lines):
  return {line.split()[0].rstrip(":") for line in lines}


@pytest.mark.parametrize(
  ("options", "wrong", "broken"),
  [
    # The whole vocabulary on each device.
    ({"model": 8}, {"act_vocab": None}, "logits"),
    # Rows not spread over fsdp: every device works on all of them, and nothing is summed.
    ({"fsdp": 8}, {"act_batch": None}, "fsdp"),
    # Activations split along D: they come together before each product.
    ({"fsdp": 8}, {"act_batch": None, "act_residual": "fsdp"}, "fsdp"),
  ],
  ids=["logits", "rows", "tokens"],
)
def test_a_wrong_rule_is_found(options, wrong, broken):
  config = make_config(**options)
  found, sizes = compile_step(config, **wrong)
  assert broken in named(promises.broken(found, config, sizes))


def test_rematerialised_layers_gather_their_weights_again():
  config = make_config(fsdp=8, remat=Remat.FULL)
  found, sizes = compile_step(config)
  assert promises.broken(found, config, sizes, passes=2) == []
  assert "fsdp" in named(promises.broken(found, config, sizes, passes=1))
  # One gather a layer and pass of each weight: q, k, v; out; gate, up; down.
  gathers = [c for c in found if c.kind == "all-gather" and "loss" not in c.op_name]
  runs = {}
  for c in gathers:
    for array in c.arrays:
      runs[array.shape] = runs.get(array.shape, 0) + c.runs
  once = 2 * 2
  assert runs[D, F] == 2 * once and runs[F, D] == once
  assert runs[D, H, K] == 3 * once and runs[H, K, D] == once


@pytest.mark.parametrize(
  ("context", "gathers", "permutes"),
  # Two layers. RING: forward, a block of keys, one of values and one of segments go round 3 times;
  # backward again, with their gradients.
  [(Context.GATHER, 4, 0), (Context.RING, 0, 12)],
)
def test_keys_and_values_come_once_a_layer(context, gathers, permutes):
  """Broken by attention that is given keys and values gathered already, or gathers them again."""
  found, _ = compile_step(make_config(sequence=4, fsdp=2, context=context))
  rows, width = 16 // 2, H * K

  def count(kind):
    """How often an array of keys or values, whole or a device's part, is sent so."""
    sizes = (rows * T * width, rows * T * width // 4)
    arrays = [
      (a, c.runs) for c in found if c.kind == kind and "sequence" in c.axes for a in c.arrays
    ]
    return sum(runs for array, runs in arrays if array.size in sizes)

  assert count("all-gather") == gathers
  assert count("collective-permute") >= permutes

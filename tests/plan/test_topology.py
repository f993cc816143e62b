"""A step compiles for a TPU slice that is not there, and sends what its mesh promises."""

import importlib.util

import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig
from jaxlm.errors import UserError
from jaxlm.layers.config import Remat
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.plan import promises, topology
from jaxlm.program import build_program

MISSING = topology.available()
needs_libtpu = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def make_config(**mesh):
  return RunConfig(
    model=DecoderConfig(
      vocab_size=4090,
      num_layers=2,
      embed_dim=512,
      mlp_dim=1408,
      num_heads=4,
      max_seq_len=256,
      remat=Remat.FULL,
    ),
    data=DataConfig(seq_len=256),
    global_batch_size=32,
    mesh=MeshConfig(**mesh),
  )


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"fsdp": 4, "model": 2}], ids=str)
def test_compiles_and_keeps_its_promises(mesh):
  config = make_config(**mesh)
  with topology.layout_for(config, "v5e:2x4") as layout:
    lowered = topology.lower(config, build_program(config), layout)
    report = topology.compile_and_look(lowered, layout.mesh)
  assert "tpu_custom_call" in report.text  # splash attention
  sizes = dict(layout.mesh.shape)
  assert promises.broken(report.collectives, config, sizes) == []
  # The state: float32 parameters and two moments, over all chips.
  assert report.state_bytes == pytest.approx(12 * config.model.num_params() / 8, rel=0.05)
  assert 0 < report.temporary_bytes < 2**30
  # Here the compiler makes reduce-scatters, which the CPU's never shows.
  kinds = {c.kind for c in report.collectives}
  assert {"all-gather", "reduce-scatter"} <= kinds


@needs_libtpu
def test_slices_are_known_by_name():
  assert len(topology.devices("v5p:4x4x4")) == 64
  with pytest.raises(UserError, match="--topology=v5p:nine"):
    topology.devices("v5p:nine")


def test_without_libtpu_it_is_said_what_to_install(monkeypatch):
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="--topology=v5e:4x4: libtpu is missing: pip install libtpu"):
    topology.devices("v5e:4x4")

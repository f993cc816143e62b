"""Meshes that can not be: refused before anything is traced, with the numbers that don't fit."""

import re

import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.errors import UserError
from jaxlm.mesh import Context, MeshConfig
from jaxlm.models.config import DecoderConfig


def config(shape=(), seq_len=32, batch=16, **mesh):
  usual = dict(vocab_size=60, num_layers=4, embed_dim=32, mlp_dim=64, num_heads=8, max_seq_len=64)
  return RunConfig(
    model=DecoderConfig(**{**usual, **dict(shape)}),
    data=DataConfig(seq_len=seq_len, sources=[SyntheticConfig(name="s", vocab_size=60)]),
    global_batch_size=batch,
    mesh=MeshConfig(**{"fsdp": 1, **mesh}),
  )


REFUSED = {
  "devices": (config(data=3), ["3 devices", "8 are there"]),
  "rows": (config(data=8, batch=12), ["global_batch_size=12", "divisible by 8", "data=8"]),
  "heads": (config(dict(num_heads=4), model=8), ["num_heads=4", "mesh.model=8"]),
  "kv_heads": (config(dict(num_kv_heads=2), model=8), ["num_kv_heads=2", "mesh.model=8"]),
  "vocabulary": (config(dict(vocab_multiple=4), model=8), ["vocab_multiple=4", "mesh.model=8"]),
  "embed": (config(dict(embed_dim=36, head_dim=8), fsdp=8), ["embed_dim=36", "mesh.fsdp=8"]),
  "sequence": (config(seq_len=36, sequence=8), ["seq_len=36", "sequence=8"]),
  "zigzag": (config(seq_len=40, sequence=8), ["seq_len=40", "divisible by 16", "GATHER"]),
  "ulysses": (
    config(dict(num_heads=4), sequence=8, context=Context.ULYSSES),
    ["num_heads=4", "mesh.sequence=8", "GATHER and RING"],
  ),
  "experts": (config(dict(num_experts=6), expert=4, data=2), ["num_experts=6", "mesh.expert=4"]),
  "no experts": (config(expert=8), ["mesh.expert=8", "num_experts"]),
  "layers": (config(stage=8), ["num_layers=4", "mesh.stage=8"]),
  "unrolled": (config(dict(scan_layers=False), stage=2, data=4), ["scan_layers=true"]),
  "experts in stages": (config(dict(num_experts=4), stage=2, data=4), ["mixture-of-experts"]),
  "pipeline rows": (
    config(stage=2, data=4, batch=8),
    ["global_batch_size=8", "divisible by 16", "mesh.microbatches=4"],
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mesh_that_does_not_divide_is_refused(name):
  run, words = REFUSED[name]
  with pytest.raises(UserError) as caught:
    run.validate()
    run.validate_devices(8)
  assert "\n" not in str(caught.value)
  for word in words:
    assert re.search(re.escape(word), str(caught.value)), word


@pytest.mark.parametrize(
  ("mesh", "words"),
  [
    (dict(context=Context.RING), ["context=RING", "sequence above 1"]),
    (dict(stage=-1, fsdp=1), ["stage=-1"]),
    (dict(data=-1, fsdp=-1), ["only one axis"]),
    (dict(model=0), ["model=0", "positive"]),
    (dict(stage=4, microbatches=2), ["microbatches=2", "stage=4"]),
  ],
)
def test_settings_that_can_not_be_are_refused(mesh, words):
  with pytest.raises(UserError) as caught:
    MeshConfig(**mesh).validate("config.mesh")
  assert all(word in str(caught.value) for word in words)

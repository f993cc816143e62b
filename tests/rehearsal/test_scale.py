"""A config in small still has every axis, fits its mesh, and any number of processes shares it."""

import math

import jax
import pytest

from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.mesh import MESH_AXES, Context, MeshConfig, Zero
from jaxlm.models.config import DecoderConfig
from jaxlm.rehearsal import memory, scale

ONE = dict.fromkeys(MESH_AXES, 1)


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
@pytest.mark.parametrize(
  "sizes",
  [
    {},
    {"fsdp": 2},
    {"data": 2, "fsdp": 2},
    {"data": 16, "fsdp": 8},
    {"fsdp": 128, "model": 8},
    {"stage": 4, "data": 8, "model": 4},
    {"fsdp": 3, "sequence": 4},
    {"model": 8},
  ],
)
def test_axes_stay_and_processes_divide_them(sizes, processes):
  """Breaks if an axis is rehearsed away, or processes are left without a device."""
  sizes = ONE | sizes
  small, changes = scale.scale_mesh(sizes, processes)
  assert math.prod(small.values()) % processes == 0
  assert math.prod(small.values()) <= 8 * processes
  for axis in MESH_AXES:
    assert small[axis] > 1 or sizes[axis] == 1, axis
    assert sizes[axis] % small[axis] == 0 or axis == "data"
    assert (small[axis] == sizes[axis]) == (not any(line.startswith(axis) for line in changes))


@pytest.mark.parametrize(
  "mesh",
  [
    MeshConfig(data=4, fsdp=16),
    MeshConfig(stage=2, fsdp=4, model=2),
    MeshConfig(fsdp=2, sequence=4, model=4, context=Context.ULYSSES),
    MeshConfig(fsdp=2, sequence=8, context=Context.RING),
  ],
)
def test_what_is_scaled_fits_its_own_mesh(mesh):
  """Breaks if a dim is scaled to something that an axis does not divide."""
  config = RunConfig(
    model=DecoderConfig(
      vocab_size=32_000, num_heads=32, num_kv_heads=16, embed_dim=4096, mlp_dim=11_264
    ),
    data=DataConfig(seq_len=2048, sources=[SyntheticConfig(vocab_size=32_000)]),
    mesh=mesh,
    global_batch_size=512,
    num_microbatches=4,
  )
  devices = scale.devices_of(config, 4)
  sizes = config.validate_devices(devices)
  small, small_sizes, changes = scale.scaled(config, 4, sizes, config.data)
  small.validate()
  assert small.validate_devices(math.prod(small_sizes.values())) == small_sizes
  assert small.model.num_heads > small.model.num_kv_heads, "grouped queries stay grouped"
  assert small.model.num_params() < 5_000_000
  assert config.model.num_heads == 32, "the config itself is left alone"
  assert any(line.startswith("seq_len 2048 → ") for line in changes)


@pytest.mark.parametrize("zero", Zero)
def test_memory_of_a_device_is_the_closed_form(zero):
  """Breaks if a dim is divided by an axis that does not split it. AdamW has two moments."""
  config = RunConfig(
    model=DecoderConfig(vocab_size=1024, num_layers=2, embed_dim=128, num_heads=8, mlp_dim=256),
    data=DataConfig(seq_len=64, sources=[SyntheticConfig(vocab_size=1024)]),
    mesh=MeshConfig(data=2, fsdp=4, model=2, zero=zero),
  )
  found = memory.state_bytes(config, config.mesh.sizes(16))
  model = config.model
  norms = (2 * model.num_layers + 1) * model.embed_dim  # on every device
  matrices = model.num_params() - norms
  split = 8 if zero is Zero.ZERO3 else 2
  assert found["parameters"] == 4 * (matrices / split + norms)
  assert found["gradients"] == found["parameters"]
  if zero is Zero.ZERO3:
    counts = 2 * 4  # int32, in two places of the optimizer's chain, at most
    assert 0 <= found["optimizer state"] - 2 * found["parameters"] <= counts
  assert len(jax.live_arrays()) < 100, "nothing of that size is made"

"""What accelerators can do, as their makers publish it (imports no jax)."""

import dataclasses

from jaxlm.errors import UserError

GIB = 2.0**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One device, as JAX counts them.

  Attributes:
    name: how it is asked for.
    flops: dense bfloat16 FLOP/s.
    memory: bytes of its fast memory.
    memory_bandwidth: bytes/s of it.
    link_bandwidth: bytes/s that the device sends over one link of the fast network in one
      direction (GPUs: over all of NVLink, which is a switch).
    axis_links: links in one direction that a ring along one axis of the network uses. A torus has
      two a dim, one each way round; a switch has all of it.
    torus_dims: dims of the torus; 0: a switch.
    fast_devices: devices that the fast network connects.
    slow_bandwidth: bytes/s that one device sends to another such group in one direction.
    source: where the figures stand.
  """

  name: str
  flops: float
  memory: float
  memory_bandwidth: float
  link_bandwidth: float
  axis_links: int
  torus_dims: int
  fast_devices: int
  slow_bandwidth: float
  source: str


def _tpu(name: str, **values: float) -> Chip:
  """ici: bytes/s of all links of a chip, both directions, as Google's pages give it."""
  dims = int(values["dims"])
  links = 2 * dims
  return Chip(
    name=name,
    flops=values["flops"],
    memory=values["memory"],
    memory_bandwidth=values["memory_bandwidth"],
    link_bandwidth=values["ici"] / 2 / links,
    axis_links=2,
    torus_dims=dims,
    fast_devices=int(values["pod"]),
    slow_bandwidth=values["dcn"],
    source=f"cloud.google.com/tpu/docs/{name} (data centre network: jax-ml.github.io/scaling-book)",
  )


_H100 = Chip(
  name="h100",
  flops=989.4e12,
  memory=80e9,
  memory_bandwidth=3.35e12,
  link_bandwidth=450e9,
  axis_links=1,
  torus_dims=0,
  fast_devices=8,
  slow_bandwidth=50e9,
  source="NVIDIA H100 SXM data sheet and DGX H100 user guide (a 400 Gb/s port for each GPU)",
)

CHIPS = {
  chip.name: chip
  for chip in (
    _H100,
    dataclasses.replace(
      _H100,
      name="h200",
      memory=141e9,
      memory_bandwidth=4.8e12,
      source="NVIDIA H200 SXM data sheet; links as the H100's",
    ),
    Chip(
      name="a100",
      flops=312e12,
      memory=80e9,
      memory_bandwidth=2.039e12,
      link_bandwidth=300e9,
      axis_links=1,
      torus_dims=0,
      fast_devices=8,
      slow_bandwidth=25e9,
      source="NVIDIA A100 SXM data sheet and DGX A100 user guide (a 200 Gb/s port for each GPU)",
    ),
    _tpu(
      "v5e",
      flops=197e12,
      memory=16 * GIB,
      memory_bandwidth=819e9,
      ici=400e9,
      dims=2,
      pod=256,
      dcn=3.125e9,
    ),
    _tpu(
      "v5p",
      flops=459e12,
      memory=95 * GIB,
      memory_bandwidth=2765e9,
      ici=1200e9,
      dims=3,
      pod=8960,
      dcn=6.25e9,
    ),
    _tpu(
      "v6e",
      flops=918e12,
      memory=32 * GIB,
      memory_bandwidth=1600e9,
      ici=800e9,
      dims=2,
      pod=256,
      dcn=12.5e9,
    ),
  )
}


def chip(name: str) -> Chip:
  """The chip of a name. Raises UserError with the names that there are."""
  if name not in CHIPS:
    raise UserError(f"--chip={name}: not known; known are {', '.join(CHIPS)}")
  return CHIPS[name]

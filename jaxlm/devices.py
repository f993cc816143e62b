"""Which device stands where in the mesh.

Devices of one host (or TPU slice) have fast links; between hosts links are slow. The mesh puts the
slow links under the axes that send least: replicas of the data first, then stages, then fsdp.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

from jaxlm.errors import UserError
from jaxlm.mesh import MESH_AXES

# Which axis takes the slow links first.
SLOW_FIRST = ("data", "stage", "fsdp", "expert", "sequence", "model")


def groups(devices: Sequence[Any]) -> dict[int, list[Any]]:
  """The devices by the fast network they are on: TPU slices, else processes."""
  slices = {getattr(device, "slice_index", None) for device in devices}
  by_slice = len(slices) > 1 and None not in slices
  found: dict[int, list[Any]] = {}
  for device in devices:
    found.setdefault(device.slice_index if by_slice else device.process_index, []).append(device)
  return found


def slow_sizes(sizes: Mapping[str, int], num_groups: int) -> dict[str, int]:
  """How many of an axis's steps go over slow links, for every axis. Their product is num_groups.

  Raises:
    UserError: the axes don't divide so.
  """
  left, found = num_groups, {}
  for axis in SLOW_FIRST:
    found[axis] = math.gcd(left, sizes[axis])
    left //= found[axis]
  if left > 1:
    raise UserError(
      f"config.mesh={dict(sizes)}: can not be laid over {num_groups} hosts of equal size: make "
      f"config.mesh.data (or stage, fsdp) a multiple of {num_groups}"
    )
  return {axis: found[axis] for axis in sizes}


def arrange(sizes: Mapping[str, int], devices: Sequence[Any]) -> np.ndarray:
  """The devices in the shape of MESH_AXES. Raises UserError as `slow_sizes` does."""
  shape = tuple(sizes[axis] for axis in MESH_AXES)
  found = groups(devices)
  if len(found) == 1 or len({len(members) for members in found.values()}) > 1:
    return mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
  slow = slow_sizes(sizes, len(found))
  by_slice = getattr(devices[0], "slice_index", None) is not None and len(
    {device.slice_index for device in devices}
  ) == len(found)
  return mesh_utils.create_hybrid_device_mesh(
    tuple(sizes[axis] // slow[axis] for axis in MESH_AXES),
    tuple(slow[axis] for axis in MESH_AXES),
    list(devices),
    process_is_granule=not by_slice,
    allow_split_physical_axes=True,
  )


def describe(mesh: jax.sharding.Mesh) -> str:
  """A line on the mesh: its axes above 1, and which of them cross hosts."""
  sizes = dict(mesh.shape)
  found = groups(list(mesh.devices.flat))
  slow = slow_sizes(sizes, len(found)) if len(found) > 1 else dict.fromkeys(sizes, 1)
  parts = []
  for axis, size in sizes.items():
    if size > 1:
      across = f" ({slow[axis]} × between hosts)" if slow[axis] > 1 else ""
      parts.append(f"{axis} {size}{across}")
  return "mesh " + (" · ".join(parts) if parts else "of one device")

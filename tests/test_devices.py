"""Devices over hosts: slow links under the axes that send least."""

import types

import jax
import numpy as np
import pytest

from jaxlm import devices
from jaxlm.errors import UserError
from jaxlm.mesh import MESH_AXES, MeshConfig
from jaxlm.sharding import make_layout


def cluster(hosts, each):
  """Devices of GPU hosts, in an order that mixes the hosts."""
  found = [
    types.SimpleNamespace(
      id=i,
      process_index=i % hosts,
      platform="gpu",
      device_kind="a GPU",
      local_hardware_id=i // hosts,
    )
    for i in range(hosts * each)
  ]
  return found


def sizes(**given):
  return {axis: given.get(axis, 1) for axis in MESH_AXES}


@pytest.mark.parametrize(
  ("given", "slow"),
  [
    (dict(data=2, fsdp=4), "data"),
    (dict(fsdp=4, model=2), "fsdp"),
    (dict(stage=2, fsdp=2, model=2), "stage"),
    (dict(data=4, model=2), "data"),
  ],
)
def test_slow_links_go_under_the_axis_that_sends_least(given, slow):
  """Broken by devices taken in the order they come: here that order alternates between hosts, and
  the model axis would cross them."""
  mesh = devices.arrange(sizes(**given), cluster(2, 4))
  hosts = np.vectorize(lambda device: device.process_index)(mesh)
  for axis, name in enumerate(MESH_AXES):
    crosses = (hosts != hosts.take([0], axis=axis)).any()
    assert crosses == (name == slow), name


def test_a_mesh_that_can_not_be_laid_over_the_hosts_is_refused():
  with pytest.raises(UserError, match=r"3 hosts.*config\.mesh\.data.*multiple of 3"):
    devices.slow_sizes(sizes(data=4, fsdp=2), 3)


def test_two_axes_share_the_hosts():
  assert devices.slow_sizes(sizes(data=2, fsdp=8), 4) == sizes(data=2, fsdp=2)


def test_the_mesh_is_told_in_a_line():
  layout = make_layout(MeshConfig(data=2, fsdp=2, model=2), jax.devices()[:8])
  assert devices.describe(layout.mesh) == "mesh data 2 · fsdp 2 · model 2"

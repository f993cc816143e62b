"""A Ray cluster of this machine for tests, as one that is there already."""

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def running() -> Iterator[str]:
  """Its address. As on a cluster the program that joins it does not start it; here this process
  happens to be both. Skips where Ray is not installed."""
  ray = pytest.importorskip("ray", reason="pip install 'jaxlm[ray]'")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.init(
      address="local",
      num_cpus=4,
      object_store_memory=128 << 20,
      include_dashboard=False,
      log_to_driver=False,
      logging_level="ERROR",
    )
    yield context.address_info["address"]
    ray.shutdown()

"""Throughput, peaks, MFU and memory."""

import jax
import pytest

from jaxlm import metrics


class Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def test_throughput_is_a_ratio_of_sums_over_the_window():
  # Breaks if it averages rates (10 and 90 tok/s would give 50), or forgets to drop old steps.
  clock = Clock()
  throughput = metrics.Throughput(window=2, clock=clock)
  assert throughput.values() == {}
  for seconds, tokens, wait in [(100.0, 1, 50.0), (9.0, 90, 0.0), (1.0, 90, 0.5)]:
    clock.now += seconds
    throughput.add(tokens, wait)
  assert throughput.values() == {
    "tokens_per_second": 18.0,
    "step_seconds": 5.0,
    "data_wait_fraction": 0.05,
  }


def test_pauses_are_not_counted():
  # Breaks if an evaluation between two steps looks like a slow step.
  clock = Clock()
  throughput = metrics.Throughput(clock=clock)
  clock.now += 1
  throughput.add(10)
  clock.now += 500
  throughput.restart()
  clock.now += 1
  throughput.add(10)
  assert throughput.values()["tokens_per_second"] == 10


@pytest.mark.parametrize(
  ("kind", "dtype", "tera"),
  [
    ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
    ("NVIDIA H100 PCIe", "bfloat16", 756),
    ("NVIDIA H200", "float8_e4m3fn", 1979),
    ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
    ("NVIDIA A100-SXM4-40GB", "float32", 156),
    ("NVIDIA A100-SXM4-40GB", "float8_e4m3fn", None),
    ("NVIDIA B200", "float16", 2250),
    ("NVIDIA L4", "bfloat16", 121),
    ("NVIDIA L40S", "bfloat16", None),
    ("TPU v4", "bfloat16", 275),
    ("TPU v5 lite", "bfloat16", 197),
    ("TPU v5", "bfloat16", 459),
    ("TPU v5p", "bfloat16", 459),
    ("TPU v6 lite", "bfloat16", 918),
    ("TPU v6 lite", "float32", None),
    ("cpu", "bfloat16", None),
  ],
)
def test_peak_flops(kind, dtype, tera):
  peak = metrics.peak_flops(kind, dtype)
  assert peak == (None if tera is None else pytest.approx(tera * 1e12))


def test_mfu():
  assert metrics.mfu(1e6, 6e9, 4 * 1e15) == pytest.approx(1.5)
  assert metrics.mfu(1e6, 6e9, None) is None


def test_device_memory_counts_the_fullest_device(monkeypatch):
  assert metrics.device_memory()["process_bytes"] > 1e7

  class Device:
    def __init__(self, used):
      self.used = used

    def memory_stats(self):
      return {"bytes_in_use": self.used, "bytes_limit": 100}

  monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(7)])
  values = metrics.device_memory()
  assert (values["device_bytes_in_use"], values["device_bytes_limit"]) == (7, 100)
  assert "device_peak_bytes" not in values

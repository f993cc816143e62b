"""Throughput, model FLOPs utilisation and memory."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

# Dense bfloat16 peak, FLOP/s of one device (what JAX calls a device), from the makers' data sheets;
# their headline figures for GPUs count structured sparsity and are twice these.
# The first name found in jax.Device.device_kind counts: special cases come first.
_BFLOAT16_PEAK = (
  ("B200", 2250e12),
  ("H200", 989.5e12),
  ("H100 PCIe", 756e12),
  ("H100 NVL", 835e12),
  ("H100", 989.5e12),
  ("A100", 312e12),
  ("L4", 121e12),
  ("TPU v6 lite", 918e12),
  ("TPU v6e", 918e12),
  ("TPU v5 lite", 197e12),
  ("TPU v5e", 197e12),
  ("TPU v5p", 459e12),
  ("TPU v5", 459e12),  # a v5p by another name
  ("TPU v4", 275e12),
)
_HAS_FLOAT8 = ("B200", "H200", "H100", "L4")


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
  """The device's peak FLOP/s in matrix products, or None where it is not known (CPU, others).

  Args:
    device_kind: `jax.Device.device_kind`, e.g. "NVIDIA H100 80GB HBM3".
    dtype: of the factors: bfloat16 and float16; float32 (GPUs: TF32, half of bfloat16; TPUs: not
      known); float8_* (Hopper, Ada and Blackwell GPUs: twice bfloat16).
  """
  words = device_kind.replace("-", " ").split()

  def named(parts: list[str]) -> bool:
    # Whole words: an "L40S" is no "L4".
    return any(words[i : i + len(parts)] == parts for i in range(len(words)))

  known = [entry for entry in _BFLOAT16_PEAK if named(entry[0].split())]
  if not known:
    return None
  name, peak = known[0]
  if dtype in ("bfloat16", "float16"):
    return peak
  if dtype == "float32":
    return None if name.startswith("TPU") else peak / 2
  if dtype.startswith("float8"):
    return 2 * peak if name.split()[0] in _HAS_FLOAT8 else None
  return None


def mfu(tokens_per_second: float, flops_per_token: float, peak: float | None) -> float | None:
  """Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B), from 0 to 1.

  Args:
    tokens_per_second: of all devices together.
    flops_per_token: forward and backward, without recomputation.
    peak: FLOP/s of all devices together; None gives None.
  """
  return None if not peak else tokens_per_second * flops_per_token / peak


class _Step(NamedTuple):
  seconds: float
  data_seconds: float
  tokens: int


class Throughput:
  """Speed over the last `window` steps.

  Call `add` when a step has finished and `restart` after anything that is not training
  (evaluation, saving): the time since the last call is then not counted.
  """

  def __init__(self, window: int = 50, clock: Callable[[], float] = time.perf_counter):
    self._steps: deque[_Step] = deque(maxlen=window)
    self._clock = clock
    self._last = clock()

  def restart(self) -> None:
    """Starts timing the next step from now."""
    self._last = self._clock()

  def add(self, tokens: int, data_seconds: float = 0.0) -> None:
    """Counts a step of `tokens` tokens that waited `data_seconds` for its batch."""
    now = self._clock()
    self._steps.append(_Step(now - self._last, data_seconds, tokens))
    self._last = now

  def values(self) -> dict[str, float]:
    """tokens_per_second, step_seconds (mean), data_wait_fraction; empty before the first step."""
    seconds = sum(step.seconds for step in self._steps)
    if seconds <= 0:
      return {}
    return {
      "tokens_per_second": sum(step.tokens for step in self._steps) / seconds,
      "step_seconds": seconds / len(self._steps),
      "data_wait_fraction": sum(step.data_seconds for step in self._steps) / seconds,
    }


def device_memory() -> dict[str, float]:
  """Bytes in use now, at the peak, and available: of the fullest local device.

  Keys: device_bytes_in_use, device_peak_bytes, device_bytes_limit where the device counts them
  (a CPU does not), and always process_bytes, the resident memory of this process.
  """
  import jax
  import psutil

  values = {"process_bytes": float(psutil.Process().memory_info().rss)}
  names = {
    "device_bytes_in_use": "bytes_in_use",
    "device_peak_bytes": "peak_bytes_in_use",
    "device_bytes_limit": "bytes_limit",
  }
  all_stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
  for name, key in names.items():
    if counts := [float(stats[key]) for stats in all_stats if key in stats]:
      values[name] = max(counts)
  return values

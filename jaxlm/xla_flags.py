"""XLA flags and allocator settings: one table, set before JAX's backend starts (imports no jax).

XLA reads its flags once, from environment variables, and ends the process at one that it does not
know. `apply` therefore tries the flags in a process of its own first, where only the parsing runs
(0.2 s, no device is touched), and keeps the answer for each version of jaxlib. What the user has
set in the environment is never changed. JAXLM_XLA_FLAGS=off: nothing is set.
"""

import dataclasses
import enum
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path

SWITCH = "JAXLM_XLA_FLAGS"
PROBE_SECONDS = 60.0

# What makes XLA read XLA_FLAGS, lightest first: 0.15 s, against 0.7 s for JAX with its CPU client.
PROBE = """
try:
  from jaxlib import xla_client
  xla_client.CompileOptions()
except (ImportError, AttributeError):
  import jax
  jax.devices()
"""


class When(enum.Enum):
  """Where a setting is used: on all devices of its backend, with two or more, on one TPU type."""

  ALWAYS = "always"
  SEVERAL_DEVICES = "several devices"
  TPU_V6E = "v6e"


@dataclasses.dataclass(frozen=True)
class Flag:
  """One setting.

  Attributes:
    name: a flag (`--xla_…`) or, without dashes, an environment variable.
    value: as text.
    backend: "gpu" or "tpu".
    when: on which of them.
    why: what it does, and who says so.
    measured: the effect, with what it was measured on.
    yields_to: variables of the environment that, if set, keep this one from being set.
  """

  name: str
  value: str
  backend: str
  when: When
  why: str
  measured: str
  yields_to: tuple[str, ...] = ()

  @property
  def variable(self) -> str:
    """The environment variable that carries it."""
    if not self.name.startswith("--"):
      return self.name
    return "LIBTPU_INIT_ARGS" if self.backend == "tpu" else "XLA_FLAGS"

  @property
  def text(self) -> str:
    """How it is written: `--name=value` or `NAME=value`."""
    return f"{self.name}={self.value}"


_PUBLISHED = "not measured here; published in NVIDIA JAX-Toolbox, docs/GPU_performance.md"
_COMBINED = (
  "not measured here; published in NVIDIA JAX-Toolbox, rosetta/rosetta/projects/maxtext/README.md, "
  "and the rule (at least one layer's weights) in its docs/GPU_performance.md"
)

# Only what is known to help. Not here: --xla_gpu_enable_pipelined_reduce_scatter=true, which is the
# default of jaxlib 0.10 and 0.11.
TABLE = (
  Flag(
    "--xla_gpu_enable_triton_gemm",
    "false",
    "gpu",
    When.ALWAYS,
    "all matrix products by cuBLAS, none by kernels that XLA generates with Triton",
    "+4 % tokens/s: 57.3k to 59.8k in the training step of a 1.36B model on one H100, jax 0.11.2",
  ),
  Flag(
    "--xla_gpu_enable_latency_hiding_scheduler",
    "true",
    "gpu",
    When.SEVERAL_DEVICES,
    "orders the program so that communication runs beside computation",
    _PUBLISHED,
  ),
  Flag(
    "--xla_gpu_enable_pipelined_all_gather",
    "true",
    "gpu",
    When.SEVERAL_DEVICES,
    "gathers the next layer's weights while the scan over layers computes this one",
    _PUBLISHED,
  ),
  Flag(
    "--xla_gpu_enable_pipelined_all_reduce",
    "true",
    "gpu",
    When.SEVERAL_DEVICES,
    "reduces one layer's result while the scan over layers computes the next",
    _PUBLISHED,
  ),
  Flag(
    "--xla_gpu_all_gather_combine_threshold_bytes",
    str(1 << 30),
    "gpu",
    When.SEVERAL_DEVICES,
    "joins small all-gathers into one of up to 1 GiB: fewer, larger messages",
    _COMBINED,
  ),
  Flag(
    "--xla_gpu_all_reduce_combine_threshold_bytes",
    str(1 << 30),
    "gpu",
    When.SEVERAL_DEVICES,
    "joins small all-reduces into one of up to 1 GiB",
    _COMBINED,
  ),
  Flag(
    "--xla_gpu_reduce_scatter_combine_threshold_bytes",
    str(128 << 20),
    "gpu",
    When.SEVERAL_DEVICES,
    "joins small reduce-scatters into one of up to 128 MiB",
    _COMBINED,
  ),
  Flag(
    "XLA_CLIENT_MEM_FRACTION",
    "0.92",
    "gpu",
    When.ALWAYS,
    "the part of the GPU's memory that JAX takes at the start (default 0.75); the rest is left to "
    "CUDA, cuDNN and NCCL",
    "no matter of speed: of 80 GB, 73.6 GB are for the model instead of 60 GB",
    # Two names of one setting: JAX refuses to start with both. The others choose another allocator.
    (
      "XLA_PYTHON_CLIENT_MEM_FRACTION",
      "XLA_PYTHON_CLIENT_PREALLOCATE",
      "XLA_PYTHON_CLIENT_ALLOCATOR",
    ),
  ),
  Flag(
    "--xla_tpu_scoped_vmem_limit_kib",
    "98304",
    "tpu",
    When.TPU_V6E,  # for v5e and v5p lower limits are published, for v4 it changes nothing
    "96 MiB of on-chip memory for one fused operation: larger tiles",
    "not measured here; published in MaxText, benchmarks/xla_flags_library.py (dense models), and "
    "AXLearn, common/compiler_options.py (v6e); libtpu 0.0.42 accepts it",
  ),
)


@dataclasses.dataclass(frozen=True)
class Machine:
  """What the flags depend on: the backend ("gpu", "tpu", "cpu"), its devices here, their type."""

  backend: str = "cpu"
  num_devices: int = 1
  chip: str = ""


@dataclasses.dataclass(frozen=True)
class Applied:
  """What `apply` did: the settings made, those left out as unknown, and why nothing was done."""

  flags: tuple[Flag, ...] = ()
  dropped: tuple[Flag, ...] = ()
  nothing_because: str = ""


# ---- what to set ------------------------------------------------------------------------------


def chosen(machine: Machine, environ: Mapping[str, str]) -> list[Flag]:
  """The settings of the table that this machine gets and that the user has not set himself."""
  return [flag for flag in TABLE if _fits(flag, machine) and not _is_set(flag, environ)]


def _fits(flag: Flag, machine: Machine) -> bool:
  if flag.backend != machine.backend:
    return False
  if flag.when is When.SEVERAL_DEVICES:
    return machine.num_devices > 1
  return flag.when is When.ALWAYS or flag.when.value == machine.chip


def _is_set(flag: Flag, environ: Mapping[str, str]) -> bool:
  if any(name in environ for name in flag.yields_to):
    return True
  value = environ.get(flag.variable, "").strip()
  if flag.variable == flag.name:
    return flag.name in environ
  # What does not begin with a dash is the name of a file with flags: nothing can be added to it.
  if value and not value.startswith("-"):
    return True
  return flag.name.lstrip("-") in re.findall(r"(?:^|[\s'\"])--?(?:no_?)?(xla\w+)", value)


# ---- where we are -----------------------------------------------------------------------------


def _installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError):  # the package of a plugin is missing, too
    return False


_CUDA_PLUGINS = (
  "jax_cuda13_plugin",
  "jax_cuda12_plugin",
  "jax_plugins.xla_cuda13",
  "jax_plugins.xla_cuda12",
)
_GOOGLE, _V6E = "0x1ae0", "0x006f"  # PCI ids, as in jax/_src/hardware_utils.py


def find_machine(
  environ: Mapping[str, str],
  *,
  root: Path = Path("/"),
  installed: Callable[[str], bool] = _installed,
) -> Machine:
  """The backend that JAX will choose here, found without JAX: device files, and JAX's plugins.

  GPUs of the run's other processes (jaxlm/distributed.py) count as this one's do: with one GPU a
  process there is as much to send. TPUs of other hosts are not counted.

  Args:
    environ: JAX_PLATFORMS, CUDA_VISIBLE_DEVICES and the launchers' counts of processes.
    root: where dev/ and sys/ are.
    installed: whether a Python module can be imported.
  """
  # Unset, JAX takes the first of these that there is.
  platforms = environ.get("JAX_PLATFORMS", "").lower().replace("cuda", "gpu") or "tpu,gpu"
  for platform in (p.strip() for p in platforms.split(",")):
    if platform == "cpu":
      break
    if platform == "tpu" and (count := _tpus(root)) and installed("libtpu"):
      return Machine("tpu", count, _tpu_chip(root))
    if platform == "gpu":
      count = _visible(_nvidia_gpus(root), environ.get("CUDA_VISIBLE_DEVICES"))
      if count and any(map(installed, _CUDA_PLUGINS)):
        return Machine("gpu", count * _processes(environ))
  return Machine()


def _processes(environ: Mapping[str, str]) -> int:
  for name in ("JAXLM_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    if environ.get(name, "").isdigit():
      return max(int(environ[name]), 1)
  return 1


def _nvidia_gpus(root: Path) -> int:
  # Windows' Linux has one file for all GPUs.
  return len(list(root.glob("dev/nvidia[0-9]*"))) or int((root / "dev/dxg").exists())


def _visible(count: int, listed: str | None) -> int:
  """How many of `count` GPUs CUDA_VISIBLE_DEVICES leaves: those before its first invalid entry."""
  if listed is None:
    return count
  visible = 0
  for entry in map(str.strip, listed.split(",")):
    if not entry or entry.startswith("-") or (entry.isdigit() and int(entry) >= count):
      break
    visible += 1
  return visible


def _tpus(root: Path) -> int:
  return len(list(root.glob("dev/accel[0-9]*"))) or len(list(root.glob("dev/vfio/[0-9]*")))


def _tpu_chip(root: Path) -> str:
  for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
    try:
      ids = vendor.read_text().strip(), (vendor.parent / "device").read_text().strip()
    except OSError:
      continue
    if ids == (_GOOGLE, _V6E):
      return When.TPU_V6E.value
  return ""


# ---- what XLA knows ---------------------------------------------------------------------------


def probe(flags: Sequence[str]) -> bool:
  """Whether the installed XLA starts with these flags; tried in a process of its own (0.15 s)."""
  import subprocess

  try:
    done = subprocess.run(
      [sys.executable, "-c", PROBE],
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      timeout=PROBE_SECONDS,
      check=False,
    )
  except (OSError, subprocess.TimeoutExpired):
    return False
  return done.returncode == 0


def known(flags: Sequence[str]) -> dict[str, bool]:
  """Whether the installed XLA knows each flag (`--name=value`), from the cache where it is there.

  The cache is ~/.cache/jaxlm/xla_flags.json; without a writable home, all are tried every time.
  """
  version = _jaxlib_version()
  cache = _read_cache()
  answers = {flag: cache[key] for flag in flags if (key := f"{version} {flag}") in cache}
  missing = [flag for flag in flags if flag not in answers]
  if not missing:
    return answers
  if probe(missing):
    found = dict.fromkeys(missing, True)
  elif not probe([]):  # it fails for another reason: nothing is known, and nothing worth keeping
    return {**dict.fromkeys(missing, False), **answers}
  else:
    found = {flag: probe([flag]) for flag in missing}
  _write_cache({**cache, **{f"{version} {flag}": answer for flag, answer in found.items()}})
  return {**answers, **found}


def _jaxlib_version() -> str:
  spec = importlib.util.find_spec("jaxlib")
  if spec is not None and spec.origin is not None:
    # Read as text: an import, or importlib.metadata's, would take 30 ms and more.
    try:
      text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
      text = ""
    if match := re.search(r"^_release_version\b.*= *['\"](.+?)['\"]", text, re.MULTILINE):
      return match[1]
  from importlib import metadata

  return metadata.version("jaxlib")


def _cache_file() -> Path:
  return Path.home() / ".cache" / "jaxlm" / "xla_flags.json"


def _read_cache() -> dict[str, bool]:
  try:
    cache = json.loads(_cache_file().read_text(encoding="utf-8"))
  except (OSError, RuntimeError, ValueError):  # no file, no home, no JSON
    return {}
  return cache if isinstance(cache, dict) else {}


def _write_cache(cache: dict[str, bool]) -> None:
  try:
    file = _cache_file()
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    # Processes of one host start together: each replaces the whole file at once.
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(cache, indent=1), encoding="utf-8")
    temporary.replace(file)
  except (OSError, RuntimeError):
    pass  # no writable home


# ---- setting them -----------------------------------------------------------------------------


def apply(
  environ: MutableMapping[str, str] | None = None, *, machine: Machine | None = None
) -> Applied:
  """Sets in the environment what this machine gets; before JAX's backend starts, or not at all.

  Flags that the installed XLA does not know are left out, with a warning of one line on stderr.

  Args:
    environ: changed in place; None: os.environ.
    machine: None: found.
  """
  environ = os.environ if environ is None else environ
  if environ.get(SWITCH, "").lower() in ("off", "0", "false", "no"):
    return Applied(nothing_because=f"{SWITCH}={environ[SWITCH]}")
  if _backend_started():
    return Applied(nothing_because="JAX's backend has started already")
  machine = machine or find_machine(environ)
  if machine.backend == "cpu":
    return Applied(nothing_because="no accelerator")
  flags = chosen(machine, environ)
  # libtpu's own flags are unknown to jaxlib, and libtpu cannot be asked without taking the TPU.
  answers = known(sorted(flag.text for flag in flags if flag.variable == "XLA_FLAGS"))
  dropped = tuple(flag for flag in flags if not answers.get(flag.text, True))
  kept = tuple(flag for flag in flags if flag not in dropped)
  for flag in kept:
    if flag.variable == flag.name:
      environ[flag.name] = flag.value
    else:
      environ[flag.variable] = f"{environ.get(flag.variable, '')} {flag.text}".strip()
  if dropped:
    names = " ".join(flag.text for flag in dropped)
    print(
      f"warning: left out, as this jaxlib was not seen to accept them: {names}", file=sys.stderr
    )
  return Applied(flags=kept, dropped=dropped)


def _backend_started() -> bool:
  bridge = sys.modules.get("jax._src.xla_bridge")
  return bridge is not None and bool(bridge.backends_are_initialized())

"""XLA flags: who gets which, the user's own win, and none that this jaxlib would abort at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import xla_flags
from jaxlm.xla_flags import Flag, Machine, When

ROOT = Path(__file__).resolve().parent.parent
ONE, TWO = Machine("gpu", 1), Machine("gpu", 2)
V6E, V4 = Machine("tpu", 4, "v6e"), Machine("tpu", 4)
GOOD = "--xla_gpu_enable_triton_gemm=false"
BAD = "--xla_gpu_no_such_flag=true"


@pytest.fixture(autouse=True)
def fresh_home(monkeypatch, tmp_path):
  """An empty cache, and a process in which JAX seems not to have started."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setattr(xla_flags, "_backend_started", lambda: False)


def texts(machine: Machine, environ: dict[str, str] | None = None) -> list[str]:
  return [flag.text for flag in xla_flags.chosen(machine, environ or {})]


def gpu_flag(text: str) -> Flag:
  name, _, value = text.partition("=")
  return Flag(name, value, "gpu", When.ALWAYS, "", "")


def count_probes(monkeypatch) -> list[list[str]]:
  probes: list[list[str]] = []
  probe = xla_flags.probe

  def counted(flags):
    probes.append(list(flags))
    return probe(flags)

  monkeypatch.setattr(xla_flags, "probe", counted)
  return probes


# ---- what to set ------------------------------------------------------------------------------


def test_each_machine_gets_its_own():
  assert texts(ONE) == [GOOD, "XLA_CLIENT_MEM_FRACTION=0.92"]
  assert set(texts(ONE)) < set(texts(TWO)) and len(texts(TWO)) == 8
  assert texts(V6E) == ["--xla_tpu_scoped_vmem_limit_kib=98304"]
  assert texts(V4) == texts(Machine()) == []


@pytest.mark.parametrize(
  "users",
  [
    "--xla_gpu_enable_triton_gemm=true",
    "--xla_gpu_enable_triton_gemm",
    "--noxla_gpu_enable_triton_gemm",
    "-xla_gpu_enable_triton_gemm=1",
    "  --xla_dump_to=/tmp/x --xla_gpu_enable_triton_gemm=true ",
    "/home/me/flags.txt",
  ],
)
def test_the_users_flags_win(users):
  environ = {"XLA_FLAGS": users}
  assert texts(ONE, environ) == ["XLA_CLIENT_MEM_FRACTION=0.92"]
  xla_flags.apply(environ, machine=ONE)
  assert environ["XLA_FLAGS"] == users


def test_a_flag_of_a_longer_name_is_another():
  assert GOOD in texts(ONE, {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm_any=true"})


@pytest.mark.parametrize(
  "name",
  [
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
  ],
)
def test_the_users_memory_settings_win(name):
  environ = {name: "0.5"}
  xla_flags.apply(environ, machine=ONE)
  assert environ == {name: "0.5", "XLA_FLAGS": GOOD}


# ---- where we are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("environ", "modules", "devices", "expected"),
  [
    ({}, ["jax_cuda13_plugin"], ["nvidia0", "nvidia1", "nvidiactl"], TWO),
    ({}, ["jax_plugins.xla_cuda12"], ["nvidia3"], ONE),
    ({}, ["jax_cuda12_plugin"], ["dxg"], ONE),
    ({}, ["jax_cuda13_plugin"], ["nvidiactl"], Machine()),
    ({}, [], ["nvidia0"], Machine()),
    ({"JAX_PLATFORMS": "cpu"}, ["jax_cuda13_plugin"], ["nvidia0"], Machine()),
    ({"JAX_PLATFORMS": "cuda,cpu"}, ["jax_cuda13_plugin"], ["nvidia0"], ONE),
    ({"JAX_PLATFORMS": "cpu,cuda"}, ["jax_cuda13_plugin"], ["nvidia0"], Machine()),
    ({"JAX_PLATFORMS": "tpu"}, ["jax_cuda13_plugin"], ["nvidia0"], Machine()),
    ({"CUDA_VISIBLE_DEVICES": "1"}, ["jax_cuda13_plugin"], ["nvidia0", "nvidia1"], ONE),
    ({"CUDA_VISIBLE_DEVICES": "1,0"}, ["jax_cuda13_plugin"], ["nvidia0", "nvidia1"], TWO),
    ({"CUDA_VISIBLE_DEVICES": "0,2,1"}, ["jax_cuda13_plugin"], ["nvidia0", "nvidia1"], ONE),
    ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, ["jax_cuda13_plugin"], ["nvidia0", "nvidia1"], TWO),
    ({"CUDA_VISIBLE_DEVICES": ""}, ["jax_cuda13_plugin"], ["nvidia0"], Machine()),
    ({"CUDA_VISIBLE_DEVICES": "-1"}, ["jax_cuda13_plugin"], ["nvidia0"], Machine()),
    # One GPU a process, as launchers start them: there is as much to send.
    ({"JAXLM_NUM_PROCESSES": "2"}, ["jax_cuda13_plugin"], ["nvidia0"], TWO),
    ({"SLURM_STEP_NUM_TASKS": "2"}, ["jax_cuda13_plugin"], ["nvidia0"], TWO),
    ({"SLURM_STEP_NUM_TASKS": "x"}, ["jax_cuda13_plugin"], ["nvidia0"], ONE),
    ({}, ["libtpu"], ["accel0", "accel1", "accel2", "accel3"], V4),
    ({}, [], ["accel0"], Machine()),
    ({}, ["libtpu", "jax_cuda13_plugin"], ["nvidia0"], ONE),
  ],
)
def test_machines_are_found(tmp_path, environ, modules, devices, expected):
  (tmp_path / "dev").mkdir()
  for name in devices:
    (tmp_path / "dev" / name).touch()
  found = xla_flags.find_machine(environ, root=tmp_path, installed=modules.__contains__)
  assert found == expected


def test_the_type_of_a_tpu_is_found(tmp_path):
  for i, (vendor, device) in enumerate([("0x8086", "0x006f"), ("0x1ae0", "0x006f")]):
    where = tmp_path / f"sys/bus/pci/devices/{i}"
    where.mkdir(parents=True)
    (where / "vendor").write_text(f"{vendor}\n")
    (where / "device").write_text(f"{device}\n")
  (tmp_path / "dev/vfio").mkdir(parents=True)
  for name in ("0", "1", "2", "3", "vfio"):
    (tmp_path / "dev/vfio" / name).touch()
  assert xla_flags.find_machine({}, root=tmp_path, installed=lambda _: True) == V6E


# ---- what XLA knows ---------------------------------------------------------------------------


def test_this_jaxlib_knows_all_of_the_table():
  flags = [flag.text for flag in xla_flags.TABLE if flag.variable == "XLA_FLAGS"]
  assert flags and xla_flags.known(flags) == dict.fromkeys(flags, True)


def test_xla_aborts_at_an_unknown_flag():
  done = subprocess.run(
    [sys.executable, "-c", xla_flags.PROBE],
    env={**os.environ, "XLA_FLAGS": f"{GOOD} {BAD}"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode != 0 and f"Unknown flag in XLA_FLAGS: {BAD}" in done.stderr


def test_an_unknown_flag_is_dropped_and_named(monkeypatch, capsys):
  monkeypatch.setattr(xla_flags, "TABLE", (gpu_flag(GOOD), gpu_flag(BAD)))
  probes = count_probes(monkeypatch)
  environ = {"XLA_FLAGS": "--xla_dump_max_hlo_modules=1"}
  applied = xla_flags.apply(environ, machine=ONE)
  assert [flag.text for flag in applied.flags] == [GOOD]
  assert [flag.text for flag in applied.dropped] == [BAD]
  assert environ["XLA_FLAGS"] == f"--xla_dump_max_hlo_modules=1 {GOOD}"
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("warning: ") and line.endswith(f": {BAD}")
  assert probes == [[GOOD, BAD], [], [GOOD], [BAD]]

  # Again, and from the cache.
  assert xla_flags.apply({}, machine=ONE) == applied
  assert len(probes) == 4


def test_good_flags_take_one_probe_and_then_none(monkeypatch):
  probes = count_probes(monkeypatch)
  first, second = {}, {}
  applied = xla_flags.apply(first, machine=TWO)
  assert not applied.dropped and len(probes) == 1
  assert xla_flags.apply(second, machine=TWO) == applied and len(probes) == 1
  assert first == second and len(first["XLA_FLAGS"].split()) == 7
  # Applied to its own result, it changes nothing.
  assert xla_flags.apply(first, machine=TWO).flags == () and first == second
  cache = Path.home() / ".cache/jaxlm"
  assert cache.stat().st_mode & 0o777 == 0o700
  assert len(json.loads((cache / "xla_flags.json").read_text())) == 7


def test_another_jaxlib_is_asked_again(monkeypatch):
  probes = count_probes(monkeypatch)
  xla_flags.apply({}, machine=ONE)
  monkeypatch.setattr(xla_flags, "_jaxlib_version", lambda: "99.0")
  xla_flags.apply({}, machine=ONE)
  assert probes == [[GOOD], [GOOD]]


def test_the_version_is_jaxlibs():
  import jaxlib

  assert xla_flags._jaxlib_version() == jaxlib.__version__


def test_no_writable_home_and_no_working_probe(monkeypatch, tmp_path, capsys):
  (tmp_path / "home").touch()  # a file: no directory can be made in it
  assert xla_flags.apply({}, machine=ONE).dropped == ()
  monkeypatch.setattr(xla_flags, "PROBE", "raise SystemExit(1)")
  applied = xla_flags.apply({}, machine=ONE)
  assert [flag.text for flag in applied.dropped] == [GOOD]
  assert GOOD in capsys.readouterr().err


def test_a_broken_cache_is_made_anew(monkeypatch):
  file = Path.home() / ".cache/jaxlm/xla_flags.json"
  file.parent.mkdir(parents=True)
  file.write_text("{")
  assert xla_flags.apply({}, machine=ONE).dropped == ()
  assert len(json.loads(file.read_text())) == 1


# ---- when nothing is done ---------------------------------------------------------------------


def test_nothing_is_done_when_switched_off_or_without_an_accelerator(monkeypatch):
  probes = count_probes(monkeypatch)
  environ = {"JAXLM_XLA_FLAGS": "off"}
  assert xla_flags.apply(environ, machine=ONE).nothing_because == "JAXLM_XLA_FLAGS=off"
  assert environ == {"JAXLM_XLA_FLAGS": "off"}
  environ = {"JAX_PLATFORMS": "cpu"}
  assert xla_flags.apply(environ).nothing_because == "no accelerator"
  assert environ == {"JAX_PLATFORMS": "cpu"} and probes == []


def test_nothing_is_done_once_jax_has_started():
  code = (
    "import sys\n"
    "from jaxlm import xla_flags\n"
    "gpu = xla_flags.Machine('gpu', 1)\n"
    "xla_flags.probe = lambda flags: True\n"
    "assert xla_flags.apply({}, machine=gpu).flags and 'jax' not in sys.modules\n"
    "import jax\n"
    "assert xla_flags.apply({}, machine=gpu).flags\n"
    "jax.devices()\n"
    "assert 'started' in xla_flags.apply({}, machine=gpu).nothing_because\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr

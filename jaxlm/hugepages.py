"""Huge pages for arrays on CPUs.

XLA on CPUs asks for a fresh block of memory for the intermediate arrays of every step, and the
kernel hands it out and clears it in pages of 4 kB: a sixth of a small model's step (2.9k against
3.5k tokens/s with configs/tiny.py's shape on two cores, benchmarks/README.md). glibc (2.35 or
newer) asks for pages of 2 MB instead if GLIBC_TUNABLES says so, which it reads when a process
starts: a command begins again with it set.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from jaxlm import xla_flags

TUNABLE = "glibc.malloc.hugetlb"
OPT_OUT = "JAXLM_HUGE_PAGES"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def environment(environ: Mapping[str, str], libc: str, setting: str) -> dict[str, str] | None:
  """The environment to begin again with; None: stay as it is.

  Args:
    environ: the environment now.
    libc: such as "glibc 2.36", "" if it is another one.
    setting: what the kernel's file says, such as "always [madvise] never".
  """
  name, _, version = libc.partition(" ")
  if name != "glibc" or not version or tuple(map(int, version.split(".")[:2])) < (2, 35):
    return None
  tunables = environ.get("GLIBC_TUNABLES", "")
  if "[madvise]" not in setting or TUNABLE in tunables or environ.get(OPT_OUT) == "off":
    return None
  return {**environ, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{TUNABLE}=1")))}


def here() -> dict[str, str] | None:
  """`environment` of this machine and process, if it computes on its CPU."""
  if sys.platform != "linux":
    return None
  try:
    setting, libc = SETTING.read_text(encoding="ascii"), os.confstr("CS_GNU_LIBC_VERSION") or ""
  except (OSError, ValueError):
    return None
  wanted = environment(os.environ, libc, setting)
  return wanted if wanted and xla_flags.find_machine(os.environ).backend == "cpu" else None


def begin_again() -> None:
  """Replaces this process by itself with huge pages, where that helps; else returns.

  Call it first thing in a command: nothing that was done is kept.
  """
  wanted = here()
  if wanted is not None and sys.orig_argv:
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)

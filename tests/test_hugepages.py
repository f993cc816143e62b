"""When a command begins again with huge pages, and that it does."""

import os
import subprocess
import sys

import pytest

from jaxlm import hugepages

MADVISE = "always [madvise] never\n"


@pytest.mark.parametrize(
  "environ, libc, setting, expected",
  [
    ({}, "glibc 2.36", MADVISE, "glibc.malloc.hugetlb=1"),
    ({"GLIBC_TUNABLES": "a.b=1"}, "glibc 2.41", MADVISE, "a.b=1:glibc.malloc.hugetlb=1"),
    ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc 2.36", MADVISE, None),  # the user's wins
    ({"JAXLM_HUGE_PAGES": "off"}, "glibc 2.36", MADVISE, None),
    ({}, "glibc 2.31", MADVISE, None),
    ({}, "", MADVISE, None),  # musl
    ({}, "glibc 2.36", "[always] madvise never\n", None),  # has them already
    ({}, "glibc 2.36", "always madvise [never]\n", None),
  ],
)
def test_environment(environ, libc, setting, expected):
  found = hugepages.environment(environ, libc, setting)
  if expected is None:
    assert found is None
  else:
    assert found == {**environ, "GLIBC_TUNABLES": expected}


PROGRAM = """
import os, sys
from jaxlm import cli, hugepages
hugepages.environment = lambda environ, libc, setting: (
  None if "SEEN" in environ else {**environ, "SEEN": "1"}
)
hugepages.SETTING = __import__("pathlib").Path(__file__)
def main():
  print(os.environ.get("SEEN"), sys.argv[1:], os.getpid())
cli.run(main, doc="")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_command_begins_again_once_with_its_arguments(tmp_path):
  """Broken by an endless loop, lost arguments, or a child process that signals don't reach."""
  script = tmp_path / "command.py"
  script.write_text(PROGRAM, encoding="ascii")
  environ = {k: v for k, v in os.environ.items() if k != "SEEN"} | {"JAX_PLATFORMS": "cpu"}
  process = subprocess.Popen(
    [sys.executable, str(script)], env=environ, stdout=subprocess.PIPE, text=True
  )
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert out.split() == ["1", "[]", str(process.pid)]

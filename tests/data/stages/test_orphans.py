"""A command that is killed leaves no process behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.data.stages.sources.base import Source

pytest.importorskip("datatrove")
psutil = pytest.importorskip("psutil")

# The tasks tell their process and then take longer than the test.
PROGRAM = """
import os, sys, time
from pathlib import Path
from jaxlm.data.stages.executors import local
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.sources import parallel
from tests.data.stages.test_orphans import Slow, SlowCorpus

if __name__ == "__main__":
  where = Path(sys.argv[2])
  if sys.argv[1] == "stage":
    local.run([Slow(where)], str(where / "logs"), 2, int(sys.argv[3]), ExecutorConfig())
  else:
    from jaxlm.data.stages.sources.config import HtmlSourceConfig
    corpus = SlowCorpus(HtmlSourceConfig(paths=(str(where),)), strict=False, exclude="")
    list(parallel.documents(corpus, where / "work", int(sys.argv[3]), parallel.Place.first(corpus)))
"""


def tell(where):
  (Path(where) / f"{os.getpid()}.pid").write_text("")
  time.sleep(120)


class Slow:
  """A datatrove step."""

  name = type = "slow"

  def __init__(self, where):
    self.where = where

  def __call__(self, data, rank, world_size):
    tell(self.where)


class SlowCorpus(Source):
  """Of files that take longer than the test."""

  extensions = (".html",)

  def read(self, file):
    tell(file.parent)
    yield


@pytest.mark.parametrize(("what", "workers"), [("stage", 1), ("stage", 2), ("collect", 2)])
def test_a_killed_command_leaves_no_process(tmp_path, what, workers):
  """Broken by workers that wait at a pipe of which they hold both ends, and by managers."""
  for name in "ab":
    (tmp_path / f"{name}.html").write_text("x")
  root = Path(__file__).parents[3]
  command = [sys.executable, "-c", PROGRAM, what, str(tmp_path), str(workers)]
  program = subprocess.Popen(
    command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL
  )
  try:
    _wait(lambda: len(list(tmp_path.glob("*.pid"))) == workers)
    family = [program.pid, *(p.pid for p in psutil.Process(program.pid).children(recursive=True))]
    assert len(family) > workers - 1
  finally:
    program.send_signal(signal.SIGKILL)
    program.wait()
  _wait(lambda: not any(map(_lives, family)))


def _lives(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def _wait(true, seconds=40):
  end = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < end, "it took too long"
    time.sleep(0.1)

"""Slurm and Ray, real ones: the same bytes as on this machine, and no failure goes unnoticed."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxlm.data.stages import base
from jaxlm.data.stages.config import minimal
from jaxlm.data.stages.dedup_config import DedupConfig, MinhashConfig
from jaxlm.data.stages.executor_config import Executor, ExecutorConfig, RayConfig, SlurmConfig
from jaxlm.errors import UserError
from tests import ray_cluster
from tests import slurm as slurm_nodes
from tests.data.stages.made_up import document, write_lines

pytest.importorskip("datatrove")

from jaxlm.data.stages import clean, dedup
from jaxlm.data.stages.runner import Runner, begin

TASKS = 2


@pytest.fixture(scope="module")
def slurm():
  """The config of a Slurm of two nodes; SLURM_CONF is set meanwhile."""
  with slurm_nodes.cluster() as environment, pytest.MonkeyPatch.context() as patch:
    for name, value in environment.items():
      patch.setenv(name, value)
    yield ExecutorConfig(
      kind=Executor.SLURM,
      memory_gb_per_task=1,
      slurm=SlurmConfig(poll_seconds=0.2, time="5", sbatch=("comment=test",)),
    )


@pytest.fixture(scope="module")
def ray():
  """The config of a Ray cluster that is there already, joined by its address."""
  with ray_cluster.running() as address:
    yield ExecutorConfig(kind=Executor.RAY, memory_gb_per_task=1, ray=RayConfig(address=address))


@pytest.fixture(params=["slurm", "ray"])
def executor(request):
  return request.getfixturevalue(request.param)


def prose(seed):
  rng = random.Random(seed)
  return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(150)]


def collected(folder):
  """A stage of six files; each has a copy and a near copy of a page of the file before."""
  directory = folder / "collect-00000000"
  kept = 0
  for number in range(6):
    pages = [prose(f"{number}-{i}") for i in range(6)]
    copied = prose(f"{number - 1}-0")
    near = [*prose(f"{number - 1}-1")[:-2], "someone@example.com", "changed"]
    rows = [
      document(f"d{number}-{i}", " ".join(words)) for i, words in enumerate([*pages, copied, near])
    ]
    write_lines(directory / f"documents/{number:05d}.jsonl.gz", rows)
    kept += len(rows)
  base.write_stage_json(directory, {"stage": "collect", "fingerprint": "up", "kept": kept})
  return directory


def made(folder, executor):
  common = dict(executor=executor, tasks=TASKS, workers=2)
  first = clean.run(collected(folder), folder, minimal(), **common)
  config = DedupConfig(url=False, minhash=MinhashConfig(buckets=2, hashes=4))
  second = dedup.run(first, folder, config, **common)
  return {
    str(file.relative_to(folder)): file.read_bytes()
    for directory in (first, second)
    for part in ("documents", "removed")
    for file in sorted((directory / part).rglob("*.gz"))
  }


@pytest.fixture(scope="module")
def here(tmp_path_factory):
  return made(tmp_path_factory.mktemp("local"), "local")


def test_every_executor_writes_the_same_bytes(executor, here, tmp_path):
  """Breaks if a task gets another part of the input, or a pass begins before another ends."""
  assert sum("dedup" in name and "documents" in name for name in here) >= 3
  assert {"exact", "minhash"} <= {name.split("/")[2] for name in here if "/removed/" in name}
  assert made(tmp_path, executor) == here


def runner(folder, executor, tasks=TASKS):
  return Runner(folder / "clean-0", executor, tasks, tasks)


def failing(error):
  """A step that raises in task 1; nested, so that it is sent by value."""

  def step(data, rank, world_size):
    if rank == 1:
      raise error
    return data

  return step


def marks(folder):
  return sorted(p.name for p in (folder / "clean-0/logs/ops/completions").glob("*"))


def test_task_that_fails_ends_in_one_line_naming_its_log_and_the_rest_is_kept(executor, tmp_path):
  """Breaks if an error in a task is swallowed, or if its retry does the done tasks again."""
  with pytest.raises(UserError, match=r"task_00001\.log: task 1: ValueError: page 7") as caught:
    runner(tmp_path, executor)("ops", [failing(ValueError("page 7 is odd"))])
  log = Path(str(caught.value).partition(": task")[0])
  assert "page 7 is odd" in log.read_text(encoding="utf-8")
  assert "00001" not in marks(tmp_path)

  def note(data, rank, world_size):
    (tmp_path / f"again-{rank}").touch()
    return data

  before = marks(tmp_path)
  assert before
  runner(tmp_path, executor)("ops", [note])
  assert marks(tmp_path) == ["00000", "00001"]
  assert sorted(p.name for p in tmp_path.glob("again-*")) == [
    f"again-{rank}" for rank in range(TASKS) if f"{rank:05d}" not in before
  ]


def test_message_of_bad_input_arrives_as_it_was_written(executor, tmp_path):
  with pytest.raises(UserError, match=r"^/data/x\.gz: cut short; make it again \(task 1; "):
    error = UserError("/data/x.gz: cut short; make it again")
    runner(tmp_path, executor)("ops", [failing(error)])


def test_task_that_is_killed_is_noticed(executor, tmp_path):
  """Breaks if a task that can't leave word (out of memory) is waited for, or taken for done."""

  def die(data, rank, world_size):
    if rank == 1:
      os.kill(os.getpid(), 9)
    return data

  with pytest.raises(UserError, match=r"task 1 (was killed|is not done \(FAILED)") as caught:
    runner(tmp_path, executor)("ops", [die])
  assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_slurm_s_word_is_passed_on_and_queued_tasks_are_not_begun(slurm, tmp_path):
  """Breaks if what Slurm says of a task is lost, or a hopeless array runs to its end."""

  def cancelled(data, rank, world_size):
    if rank == 0:  # 22.05 does not find a task of an array by its SLURM_JOB_ID
      job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
      subprocess.run(["scancel", job], check=True)
      time.sleep(60)
    return data

  run = Runner(tmp_path / "clean-0", slurm, 6, 1)
  with pytest.raises(UserError, match=r"slurm_logs/\d+_0\.out: task 0 is not done \(CANCELLED"):
    run("ops", [cancelled])
  assert len(marks(tmp_path)) < 4


def test_more_tasks_than_an_array_holds(slurm, tmp_path):
  """Breaks if the second array does the tasks of the first again, or one more than there are."""
  short = dataclasses.replace(slurm.slurm, max_array_size=2)
  runner(tmp_path, dataclasses.replace(slurm, slurm=short), 3)("ops", [lambda data, r, w: data])
  assert len(marks(tmp_path)) == 3
  assert len(json.loads((tmp_path / "clean-0/logs/ops/slurm_jobs.json").read_text())) == 2


def test_sbatch_refusal_is_one_line(slurm, tmp_path):
  bad = dataclasses.replace(slurm, slurm=dataclasses.replace(slurm.slurm, partition="nowhere"))
  with pytest.raises(UserError, match=r"^--executor=slurm: .*partition.*: check config") as caught:
    runner(tmp_path, bad)("ops", [lambda data, rank, world_size: data])
  assert "\n" not in str(caught.value)


WAITS = """
  import sys
  from pathlib import Path
  from jaxlm.data.stages.executor_config import Executor, ExecutorConfig, SlurmConfig
  from jaxlm.data.stages.runner import Runner

  def main(folder):
    def step(data, rank, world_size):
      import time
      with (folder / f"begun-{rank}").open("a") as file:
        file.write("x")
      while not (folder / "go").exists():
        time.sleep(0.05)
      return data

    slurm = SlurmConfig(poll_seconds=0.2)
    options = ExecutorConfig(kind=Executor.SLURM, memory_gb_per_task=1, slurm=slurm)
    Runner(folder / "clean-0", options, 2, 2)("ops", [step])

  main(Path(sys.argv[1]))
"""


@contextlib.contextmanager
def killed_while_its_array_runs(folder):
  """The command that was killed when both of its tasks had begun."""
  script = folder / "stage.py"
  script.write_text(textwrap.dedent(WAITS), encoding="utf-8")
  environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
  command = [sys.executable, str(script), str(folder)]
  first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 40
    while len(list(folder.glob("begun-*"))) < 2 and time.monotonic() < deadline:
      time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.Popen
    yield lambda: second(command, env=environment, stderr=subprocess.PIPE, text=True)
  finally:
    first.kill()
    (folder / "go").touch()


def test_start_after_a_kill_waits_for_the_array_that_still_runs(slurm, tmp_path):
  """Breaks if a second array is submitted that writes the same files at the same time."""
  with killed_while_its_array_runs(tmp_path) as again, again() as second:
    assert second.stderr is not None
    assert "waiting for the array that an earlier start submitted" in second.stderr.readline()
    (tmp_path / "go").touch()
    rest = second.stderr.read()
    assert second.wait(timeout=60) == 0, rest
  assert [(tmp_path / f"begun-{rank}").read_text() for rank in range(2)] == ["x", "x"]


def test_stage_that_is_begun_anew_ends_the_array_of_the_old_one(slurm, tmp_path):
  """Breaks if tasks of another number go on writing into the directory that was made anew."""
  with killed_while_its_array_runs(tmp_path):
    begin(tmp_path / "clean-0", "another", 3)
    assert not (tmp_path / "clean-0/logs").exists()
    queue = [
      "squeue",
      "--noheader",
      "--states=RUNNING,PENDING,COMPLETING",
      "--name=jaxlm-clean-ops",
    ]
    assert subprocess.run(queue, capture_output=True, text=True).stdout == ""


def test_unknown_executor_and_absent_cluster_are_one_line(tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"^--executor=flink: one of local, slurm, ray$"):
    Runner(tmp_path, "flink", 1, 1)
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(UserError, match=r"^--executor=slurm: there is no sbatch on the PATH"):
    runner(tmp_path, "slurm")("ops", [lambda data, rank, world_size: data])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (dict(memory_gb_per_task=0), r"executor_options\.memory_gb_per_task=0"),
    (dict(slurm=SlurmConfig(time="a day")), r"executor_options\.slurm\.time='a day'"),
    (dict(slurm=SlurmConfig(sbatch=("--exclusive",))), r"slurm\.sbatch: '--exclusive'"),
  ],
)
def test_settings_that_can_not_work_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    ExecutorConfig(**change).validate("config.executor_options")

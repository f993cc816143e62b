"""Runs over two processes: rows and losses of one, resumed across the count, agreed or refused.

Two Python processes with gloo between them, started by launch/local.py as a user would.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxlm import configlib, resumption, run
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.testing import random_documents, write_dataset
from jaxlm.layers.config import DType
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tracking.config import TrackingConfig
from jaxlm.training.config import EvalConfig

ROOT = Path(__file__).resolve().parent.parent
STEPS, HALF, BATCH, SEQ_LEN = 6, 3, 8, 16


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A directory with data/small, a prepared dataset, and config.json, a run on four devices."""
  place = tmp_path_factory.mktemp("two")
  root = place / "data/small"
  tokenizer = ByteTokenizer()
  write_dataset(
    root,
    random_documents(0, 40, 256),
    splits=("train", "heldout"),
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(root / "tokenizer")
  config = RunConfig(
    model=DecoderConfig(
      vocab_size=0,
      num_layers=1,
      embed_dim=32,
      mlp_dim=32,
      num_heads=2,
      max_seq_len=SEQ_LEN,
      compute_dtype=DType.FLOAT32,
    ),
    data=DataConfig(seq_len=SEQ_LEN, sources=[TokenShardsConfig(name="small", path="data/small")]),
    optim=AdamWConfig(peak_lr=1e-2, schedule=ScheduleConfig(warmup_steps=2)),
    global_batch_size=BATCH,
    num_steps=STEPS,
    mesh=MeshConfig(data=2, fsdp=2),
    eval=EvalConfig(every_steps=HALF, batch_size=4, max_rows=10),
    tracking=TrackingConfig(tensorboard=False),
  )
  configlib.save_json(config, place / "config.json")
  return place


def alone(place, name, stop_at=None):
  """A start in this process, on four of its devices."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    run.train(
      configlib.load_json("config.json"),
      name,
      stop_at=stop_at,
      devices=jax.devices()[:4],
      on_batch=resumption.Record(place / "rows" / name / f"alone-{stop_at}" / "0.jsonl"),
    )


def launch(place, code_or_module, *arguments):
  """Two processes of two devices; (status, output of both streams)."""
  keep = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
  command = [sys.executable, str(ROOT / "launch/local.py"), "--processes=2"]
  command += ["--devices_per_process=2", "--", sys.executable, *code_or_module, *arguments]
  found = subprocess.run(
    command,
    cwd=place,
    env=keep | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=120,
  )
  return found.returncode, found.stdout


def together(place, name, *arguments):
  """A start in two processes; their rows go to rows/NAME/together."""
  status, text = launch(
    place,
    ["-m", "jaxlm.rehearsal"],
    "--config=config.json",
    f"--workdir={name}",
    f"--records={place / 'rows' / name / 'together'}",
    *arguments,
  )
  assert status == (75 if arguments else 0), text
  return text


def rows(place, name):
  """The rows that a run trained on, as (number, digest), sorted within each of its starts.

  The start that stopped after HALF steps had loaded the next batch too, which is left out.
  """
  starts = sorted((place / "rows" / name).iterdir())
  found = []
  for start in starts:
    lines = [resumption.read(file) for file in sorted(start.iterdir())]
    numbers = sorted(row for one in lines for row in resumption.rows_of(one))
    assert len({n for n, _ in numbers}) == len(numbers), "two processes were given one row"
    found.append(numbers)
  found.sort()
  if len(found) == 2:
    assert len(found[0]) == (HALF + 1) * BATCH
    del found[0][HALF * BATCH :]
  return [row for one in found for row in one]


def metrics(place, name):
  lines = (place / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  found = [json.loads(line) for line in lines]
  trained = [line for line in found if "loss" in line]
  assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
  return [line["loss"] for line in trained], [
    line["eval/loss"] for line in found if "eval/loss" in line
  ]


@pytest.fixture(scope="module")
def reference(place):
  """The rows, losses and held-out losses of the run in one process that was not stopped."""
  alone(place, "straight")
  losses, held_out = metrics(place, "straight")
  assert len(held_out) == 2
  expected = resumption.expected_rows(
    build_pipeline(
      DataConfig(
        seq_len=SEQ_LEN,
        sources=[TokenShardsConfig(name="small", path=str(place / "data/small"))],
      )
    ),
    0,
    STEPS * BATCH,
  )
  assert rows(place, "straight") == sorted(expected.items())
  return sorted(expected.items()), losses, held_out


@pytest.mark.parametrize("first", [2, 1])
def test_resume_across_the_number_of_processes(place, reference, first):
  """Two, then one; one, then two. Breaks if a row, a key or a checkpoint depends on the processes,
  or if the loader gives two processes one row, or evaluation counts a part twice."""
  name = f"from{first}"
  if first == 2:
    text = together(place, name, f"--stop_at={HALF}")
    assert text.count("4 × cpu") == 1, "one process speaks for all"
    alone(place, name)
  else:
    alone(place, name, stop_at=HALF)
    together(place, name)
  expected_rows, losses, held_out = reference
  assert rows(place, name) == expected_rows
  found, found_held_out = metrics(place, name)
  assert found == pytest.approx(losses, rel=1e-5)
  # At step 3 a run that stops there does not evaluate.
  assert found_held_out == pytest.approx(held_out[-len(found_held_out) :], rel=1e-5)
  assert found_held_out


# What rank 1 has another way: a version, an override, a folder in which the data is not.
OTHER = """
import os, sys
if os.environ["JAXLM_PROCESS_ID"] == "1":
  import jaxlm
  {change}
from jaxlm import cli, train
cli.run(train.main, doc="")
"""


def refused(place, change):
  arguments = ("--config=config.json", "--workdir=refused")
  status, text = launch(place, ["-c", OTHER.format(change=change)], *arguments)
  assert status == 2, text
  assert "Traceback" not in text
  assert not (place / "refused" / "config.json").exists()
  errors = re.findall(r"^\[(\d)\] error: (.*)$", text, re.MULTILINE)
  assert sorted(rank for rank, _ in errors) == ["0", "1"], text
  assert errors[0][1] == errors[1][1], "every host says the same"
  return errors[0][1]


def test_hosts_that_disagree_are_refused_with_the_difference(place):
  """Breaks if one host trains another model, or waits for one that runs other code."""
  line = refused(place, 'jaxlm.__version__ = "9.9"; sys.argv.append("--config.optim.peak_lr=0.5")')
  assert "process 1 has config.optim.peak_lr=0.5, process 0 has 0.01" in line
  assert re.search(r'process 1 has jaxlm="9\.9 \(.*process 0 has "0\.', line)


def test_what_one_host_lacks_ends_all_with_its_line(place, tmp_path):
  """Breaks if the others wait for a host that ended at a missing dataset."""
  (tmp_path / "config.json").write_text((place / "config.json").read_text())
  line = refused(place, f"os.chdir({str(tmp_path)!r})")
  assert line.startswith("process 1: ") and "data/small" in line


def test_damage_that_one_host_sees_is_fallen_back_from_by_all(place, reference):
  """Rank 1 can't read the checkpoint of step 3. Breaks if rank 0 goes on from it, or waits for
  rank 1 in a collective, or both rename it."""
  alone(place, "fallen", stop_at=2)
  alone(place, "fallen", stop_at=HALF)
  change = (
    "import orbax.checkpoint as ocp\n"
    "  original = ocp.StandardCheckpointHandler.restore\n"
    "  def restore(self, directory, *a, **k):\n"
    "    if directory.parent.name == '3': raise OSError('lost here')\n"
    "    return original(self, directory, *a, **k)\n"
    "  ocp.StandardCheckpointHandler.restore = restore"
  )
  code = OTHER.format(change=change)
  status, text = launch(place, ["-c", code], "--config=config.json", "--workdir=fallen")
  assert status == 0, text
  (warning,) = re.findall(r"WARNING: .*", text)
  assert "process 1: " in warning and "lost here" in warning
  assert warning.endswith("set aside as 3.damaged; going on from step 2")
  names = sorted(p.name for p in (place / "fallen/checkpoints").iterdir())
  assert names == ["2", "3.damaged", "6"]
  assert metrics(place, "fallen")[0] == pytest.approx(reference[1], rel=1e-5)


def test_one_that_fails_late_does_not_wait_for_the_others(place):
  """Rank 1 fails at its second batch, rank 0 is in a collective with it. Breaks if rank 1 stays in
  JAX's farewell, minutes long, and no launcher sees its status."""
  code = OTHER.replace("cli.run(train", "{change2}\ncli.run(train").format(
    change="pass",
    change2=(
      "from jaxlm import run\n"
      "original = run.Pipeline.iterator\n"
      "def broken(*a):\n"
      "  found = original(*a)\n"
      "  take = type(found).__next__\n"
      "  def failing(self):\n"
      "    if self.next_row and os.environ['JAXLM_PROCESS_ID'] == '1': raise KeyError('lost')\n"
      "    return take(self)\n"
      "  type(found).__next__ = failing\n"
      "  return found\n"
      "run.Pipeline.iterator = broken"
    ),
  )
  began = time.monotonic()
  status, text = launch(place, ["-c", code], "--config=config.json", "--workdir=late")
  assert status == 1, text
  assert "KeyError: 'lost'" in text and "process 1 ended with status 1: ending all" in text
  assert time.monotonic() - began < 60

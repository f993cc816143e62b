"""Perplexity by a jaxlm run: trained in the test, against its own evaluation of the same text.

Training and evaluation are in a process of their own: the stages fork, and JAX has threads.
"""

import dataclasses
import json
import math
import os
import pydoc_data.topics
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxlm.data.stages import base, clean, ops
from jaxlm.data.stages.clean_config import CleanConfig
from jaxlm.data.stages.ops import run_model
from jaxlm.data.testing import write_dataset
from jaxlm.errors import UserError
from jaxlm.tokenizers.byte import ByteTokenizer
from tests.data.stages.ops.conftest import write_upstream

SEQ_LEN = 96
TOPICS = [text.strip() for _, text in sorted(pydoc_data.topics.topics.items())]
ENGLISH = next(text for text in TOPICS if 1500 < len(text) < 2500)  # held out
SHUFFLED = "".join(random.Random(0).sample(ENGLISH, len(ENGLISH)))
# Many windows, a single short one, one whole window, and one more than a call takes.
TEXTS = (ENGLISH, SHUFFLED, "A short one.", ENGLISH[: SEQ_LEN - 1], ENGLISH[: 8 * SEQ_LEN])


def dataset(root, texts, splits):
  tokenizer = ByteTokenizer()
  write_dataset(
    root,
    [tokenizer.encode(text) for text in texts],
    splits=splits,
    shard_tokens=10**6,
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(root / "tokenizer")
  return str(root)


def train(root):
  """A byte model of Python's reference, 100 steps; checkpoints 50 and 100."""
  from jaxlm import run
  from jaxlm.config import RunConfig
  from jaxlm.data.config import DataConfig, TokenShardsConfig
  from jaxlm.layers.config import DType
  from jaxlm.models.config import DecoderConfig
  from jaxlm.optim.adamw import AdamWConfig
  from jaxlm.optim.schedules import ScheduleConfig
  from jaxlm.tracking.config import TrackingConfig
  from jaxlm.training.config import CheckpointConfig

  data = dataset(root / "data", [t for t in TOPICS if t != ENGLISH][:40], ("train", "heldout"))
  shape = dict(num_layers=1, embed_dim=48, mlp_dim=96, num_heads=4, max_seq_len=SEQ_LEN)
  config = RunConfig(
    model=DecoderConfig(vocab_size=0, compute_dtype=DType.FLOAT32, **shape),
    data=DataConfig(seq_len=SEQ_LEN, sources=[TokenShardsConfig(name="topics", path=data)]),
    optim=AdamWConfig(peak_lr=2e-2, schedule=ScheduleConfig(warmup_steps=4)),
    global_batch_size=16,
    num_steps=100,
    checkpoint=CheckpointConfig(every_steps=50),
    tracking=TrackingConfig(tensorboard=False),
  )
  run.train(config, root / "run")


def evaluate(root):
  """Bits per byte of each text, as the held-out split of a dataset that holds nothing else."""
  from jaxlm import trained

  opened = trained.open_run(root / "run")
  found = []
  for number, text in enumerate(TEXTS):
    path = dataset(root / f"text{number}", [text], ("heldout",))
    found.append(opened.evaluate(path)[0].bits_per_byte)
  (root / "bits.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  root = tmp_path_factory.mktemp("run")
  code = f"from {__name__} import *; from pathlib import Path; root = Path({str(root)!r})"
  command = [sys.executable, "-c", f"{code}; train(root); evaluate(root)"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return root / "run"


def test_the_op_gives_what_the_runs_own_evaluation_gives(run, workdir):
  """Breaks if windows overlap or lose their first token, or if the end of a text is left out."""
  texts = list(TEXTS)
  assert len(ENGLISH) > 8 * SEQ_LEN
  made = run({"perplexity": ops.PerplexityConfig(model=str(workdir), cuts=(20.0,))}, texts)
  found = [made.kept[i]["metadata"]["perplexity"] for i in range(len(texts))]
  assert np.log2(found) == pytest.approx(
    json.loads((workdir.parent / "bits.json").read_text()), abs=2e-4
  )
  assert 2 * found[0] < found[1]  # English against the same characters shuffled
  assert [made.kept[i]["metadata"]["perplexity_bucket"] for i in (0, 1)] == [0, 1]


def test_of_the_beginning_no_end_is_predicted(run, workdir):
  """Breaks if a text that was cut short is taken for a document that ends there."""
  config = ops.PerplexityConfig(model=str(workdir), characters=500)
  made = run({"perplexity": config}, [ENGLISH, ENGLISH[:500]])
  cut, whole = (made.kept[i]["metadata"]["perplexity"] for i in (0, 1))
  end = 500 * math.log2(whole / cut)  # bits that the end alone took
  assert 2 < end < 40
  drop = ops.PerplexityConfig(model=str(workdir), maximum=20.0)
  made = run({"perplexity": drop}, [ENGLISH, SHUFFLED])
  assert made.reasons("perplexity") == {1: "high_perplexity"}


def test_the_checkpoint_decides_the_fingerprint(tmp_path, workdir):
  """Breaks if only the path of a run were hashed: it may be trained on."""
  upstream = base.read_stage(write_upstream(tmp_path, [("text", {})]))["fingerprint"]

  def found(**options):
    op = ops.PerplexityConfig(model=str(workdir), **options)
    parts = clean.identity(CleanConfig(ops={"perplexity": op}), upstream)
    return parts["models"]

  assert found() == found(step=100) != found(step=50)
  with pytest.raises(UserError, match="no step 7; there are 50, 100"):
    found(step=7)


def test_tasks_change_no_byte(run, workdir):
  """Breaks if a score depends on what the process scored before it."""
  op = {"perplexity": ops.PerplexityConfig(model=str(workdir))}
  texts = [ENGLISH, SHUFFLED, *(TOPICS[i][:700] for i in range(4))]
  one = run(op, texts, files=3).record["files"]
  op["perplexity"].characters = 20_001  # another directory
  assert run(op, texts, files=3, tasks=3).record["files"] == one


def test_a_child_that_dies_is_one_line(run, workdir, monkeypatch):
  """Breaks if the stage waits for a process that was killed, or shows a traceback."""
  original = run_model.RunScorer.bits_per_byte

  def dying(self, text, ends):
    os.kill(self._process.pid, signal.SIGKILL)
    self._process.wait()
    return original(self, text, ends)

  monkeypatch.setattr(run_model.RunScorer, "bits_per_byte", dying)
  with pytest.raises(UserError) as error:
    run({"perplexity": ops.PerplexityConfig(model=str(workdir))}, [ENGLISH])
  assert "was killed by signal 9" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_run_is_one_line(run, tmp_path):
  for make, message in (
    (lambda d: None, r"ops\['perplexity'\]: .*gone: no such file"),
    (lambda d: d.mkdir(), r"ops\['perplexity'\]\.model: .*gone: no run \(config.json is missing"),
    (lambda d: (d / "config.json").write_text("{}"), r"checkpoints: no checkpoint yet"),
  ):
    make(tmp_path / "gone")
    with pytest.raises(UserError, match=message):
      run({"perplexity": ops.PerplexityConfig(model=str(tmp_path / "gone"))}, ["text"])


def copy_of(workdir, place):
  subprocess.run(["cp", "-r", workdir, place], check=True)
  return place


def test_a_damaged_checkpoint_is_one_line(run, workdir, tmp_path):
  """Breaks if a changed array is scored with: the digests are compared when it is read."""
  broken = copy_of(workdir, tmp_path / "broken")
  for file in (broken / "checkpoints/100/state").rglob("d/*"):
    data = bytearray(file.read_bytes())
    for at in range(500, len(data), 1000):  # parameters lie among the optimizer's state, unread
      data[at] ^= 64
    file.write_bytes(data)
  with pytest.raises(UserError) as error:
    run({"perplexity": ops.PerplexityConfig(model=str(broken))}, [ENGLISH])
  assert "checkpoints/100" in str(error.value) and "\n" not in str(error.value)


def test_the_device_is_the_cpu_unless_set(workdir, monkeypatch):
  """Breaks if each task's process would take the GPU that a training runs on."""
  seen = []

  class Stop(Exception):
    pass

  def popen(command, **options):
    seen.append(options["env"]["JAX_PLATFORMS"])
    raise Stop

  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setattr(run_model.subprocess, "Popen", popen)
  for options in ({}, {"device": "cuda"}):
    config = ops.PerplexityConfig(model=str(workdir), **options)
    with pytest.raises(Stop):
      run_model.RunScorer(config.model, config.step, config.device)
  assert seen == ["cpu", "cuda"]


def test_the_command_answers_line_by_line_and_refuses_in_one(workdir):
  command = [sys.executable, "-m", "jaxlm.score_documents", f"--workdir={workdir}"]
  asked = json.dumps({"text": "Hello."}) + '\n{"no": "text"}\n'
  done = subprocess.run(command, input=asked, capture_output=True, text=True)
  head, answer = map(json.loads, done.stdout.splitlines())
  assert head == {"step": 100, "seq_len": SEQ_LEN}
  assert (answer["tokens"], answer["bytes"]) == (7, 6)
  assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: line 2: ")


def test_steps_can_be_sent_to_a_task(workdir, tmp_path):
  """Breaks if an op holds its process while it is pickled for a worker."""
  import dill  # what the executors send with

  op = ops.PerplexityConfig(model=str(workdir))
  context = ops.base.OpContext(name="p", counts=tmp_path, removed=tmp_path)
  assert dill.loads(dill.dumps(op.build(context))).config == dataclasses.replace(op, step=100)

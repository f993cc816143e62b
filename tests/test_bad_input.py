"""What does not fit together is refused in one line that names it and the remedy.

Every case is checked for four things: status 2, exactly one line `error: …` on stderr, what this
line must name, and that nothing in the run's directory or the dataset was written.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from jaxlm import cli, configlib, evaluate, generate, train
from jaxlm.data.manifest import Manifest
from jaxlm.data.prep.train_tokenizer import train_sentencepiece
from jaxlm.data.testing import random_documents, write_dataset
from jaxlm.tokenizers.byte import ByteTokenizer

CONFIG = """
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tracking.config import TrackingConfig


def get_config():
  return RunConfig(
    model=DecoderConfig(
      vocab_size=0, num_layers=1, embed_dim=32, mlp_dim=32, num_heads=2, max_seq_len=16
    ),
    data=DataConfig(seq_len=16, sources=[TokenShardsConfig(name="small", path="DATASET")]),
    optim=AdamWConfig(peak_lr=1e-3, schedule=ScheduleConfig(warmup_steps=1)),
    global_batch_size=8,
    num_steps=2,
    tracking=TrackingConfig(tensorboard=False),
  )
"""


def make_dataset(root, tokenizer, *, seed=0):
  write_dataset(
    root,
    random_documents(seed, 40, 256),
    splits=("train", "heldout"),
    name="small",
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(root / "tokenizer")


@pytest.fixture(scope="module")
def other_tokenizer():
  return train_sentencepiece(["a small text for a small tokenizer, " * 50], 300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A directory with data/, config.py and run/: two steps, trained once for all tests."""
  root = tmp_path_factory.mktemp("trained") / "place"
  make_dataset(root / "data", ByteTokenizer())
  (root / "config.py").write_text(CONFIG.replace("DATASET", "data"), encoding="utf-8")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    argv = ["train", "--config=config.py", "--workdir=run", "--stop_at=1"]
    assert cli.execute(train.main, doc=train.__doc__, argv=argv) == cli.PREEMPTED
  return root


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
  """A copy to damage; it is the current directory, and the run knows its data by this path."""
  root = tmp_path / "place"
  shutil.copytree(trained, root)
  file = root / "run" / "config.json"
  file.write_text(file.read_text().replace(str(trained), str(root)), encoding="utf-8")
  monkeypatch.chdir(root)
  return root


@pytest.fixture
def refuses(place, capsys):
  """refuses(module, *flags, names=(…)) runs a command that must be refused as described above."""

  def snapshot():
    files = (p for p in place.rglob("*") if p.is_file() and p.name != ".lock")
    return {p: p.read_bytes() for p in files}

  def check(module, *flags, names):
    before = snapshot()
    capsys.readouterr()
    status = cli.execute(module.main, doc=module.__doc__, argv=[module.__name__, *flags])
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith("error: ")
    for name in names:
      assert re.search(name, error), f"{name} is not in: {error}"
    assert snapshot() == before
    return error

  return check


TRAIN = ("--config=config.py", "--workdir=run")
NEW = ("--config=config.py", "--workdir=new")
RUN = ("--workdir=run",)


def edit_json(file, change):
  values = json.loads(file.read_text(encoding="utf-8"))
  change(values)
  file.write_text(json.dumps(values), encoding="utf-8")


def truncate(file, size=None):
  data = file.read_bytes()
  file.write_bytes(data[: len(data) // 2 if size is None else size])


# ---- datasets -----------------------------------------------------------------------------------


def test_missing_dataset(refuses):
  refuses(
    train,
    *NEW,
    "--config.data.sources[0].path=nowhere",
    names=["nowhere: no such", "jaxlm.prepare"],
  )


@pytest.mark.parametrize("workdir", [NEW, TRAIN], ids=["new", "resume"])
def test_truncated_shard(refuses, place, workdir):
  truncate(place / "data" / "train" / "shard-00000.bin")
  refuses(train, *workdir, names=[r"data/train/shard-00000\.bin: truncated", "again"])


def test_missing_shard_at_evaluation(refuses, place):
  (place / "data" / "heldout" / "shard-00001.bin").unlink()
  refuses(evaluate, *RUN, names=[r"data/heldout/shard-00001\.bin: No such file", "again"])


def test_edited_manifest(refuses, place):
  def change(values):
    values["splits"]["train"]["tokens"] += 1

  edit_json(place / "data" / "manifest.json", change)
  refuses(train, *NEW, names=[r"manifest\.json: splits\.train\.tokens=", "again"])


def test_data_changed_since_the_run_began(refuses, place):
  """Same sizes of vocabulary and tokenizer, other text: only the seal can tell."""
  shutil.rmtree(place / "data")
  make_dataset(place / "data", ByteTokenizer(), seed=1)
  refuses(train, *TRAIN, names=["run/checkpoints/1: sealed with data", "restore the dataset"])


def test_no_heldout_split(refuses, place):
  """Said at the start, not at the first evaluation hours later."""
  edit_json(place / "data" / "manifest.json", lambda values: values["splits"].pop("heldout"))
  refuses(train, *NEW, "--config.eval.every_steps=5", names=["'heldout'", "choose one of: train"])


# ---- tokenizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workdir", [NEW, TRAIN], ids=["new", "resume"])
def test_tokenizer_of_the_dataset_swapped(refuses, place, other_tokenizer, workdir):
  """The classic: training on one tokenizer's ids, with another one's vocabulary beside them."""
  shutil.rmtree(place / "data" / "tokenizer")
  other_tokenizer.save(place / "data" / "tokenizer")
  refuses(train, *workdir, names=["data/tokenizer: tokenizer", "jaxlm.prepare"])


def test_tokenizer_of_the_dataset_edited(refuses, place):
  edit_json(place / "data/tokenizer/tokenizer.json", lambda card: card.update(vocab_size=300))
  refuses(
    train, *NEW, names=[r"data/tokenizer/tokenizer\.json: vocab_size is 300", "jaxlm.prepare"]
  )


def test_tokenizer_of_the_dataset_missing(refuses, place):
  shutil.rmtree(place / "data" / "tokenizer")
  refuses(train, *NEW, names=[r"data/tokenizer/tokenizer\.json: No such file", "jaxlm.prepare"])


def test_tokenizer_of_the_workdir_swapped(refuses, place, other_tokenizer):
  shutil.rmtree(place / "run" / "tokenizer")
  other_tokenizer.save(place / "run" / "tokenizer")
  names = ["run/checkpoints/1: sealed with tokenizer", "the run began with"]
  refuses(evaluate, *RUN, names=names)
  refuses(generate, *RUN, "--prompt=a", names=names)
  refuses(train, *TRAIN, names=["run/tokenizer: tokenizer", "the run began with", "delete"])


def test_tokenizer_of_the_workdir_edited(refuses, place):
  edit_json(place / "run/tokenizer/tokenizer.json", lambda card: card.update(sha256="0" * 64))
  for module, flags in ((evaluate, RUN), (train, TRAIN)):
    refuses(module, *flags, names=[r"run/tokenizer/tokenizer\.json: sha256 is", "changed"])


def test_dataset_of_another_tokenizer(refuses, place, other_tokenizer):
  make_dataset(place / "other", other_tokenizer)
  flag = "--config.data.sources[0].path=other"
  refuses(evaluate, *RUN, "--data=other", names=["other: made with tokenizer", "prepare it with"])
  refuses(train, *TRAIN, flag, names=["run: its run began with", r"model\.vocab_size", "--workdir"])
  refuses(train, *TRAIN, flag, "--accept_changes", names=["run/tokenizer: tokenizer", "began with"])
  refuses(
    train,
    *NEW,
    "--config.eval.path=other",
    "--config.eval.every_steps=1",
    names=[r"config\.eval\.path=.*/other: made with another tokenizer", "prepare it"],
  )


def test_checkpoint_in_a_workdir_of_another_tokenizer(refuses, place, other_tokenizer):
  """Shapes alone would not show it: both vocabularies are padded to the same size."""
  shutil.rmtree(place / "run" / "tokenizer")
  other_tokenizer.save(place / "run" / "tokenizer")
  config = configlib.load_json(place / "run" / "config.json")
  padded = config.model.padded_vocab_size
  config.model.vocab_size = other_tokenizer.vocab_size
  assert config.model.vocab_size != 257 and config.model.padded_vocab_size == padded
  configlib.save_json(config, place / "run" / "config.json")
  for module in (evaluate, generate):
    refuses(module, *RUN, names=["run/checkpoints/1: sealed with model", "workdir"])


def test_vocab_size_of_the_model(refuses):
  refuses(
    train,
    *NEW,
    "--config.model.vocab_size=256",
    names=[r"config\.model\.vocab_size=256", "257", "or to 0"],
  )


# ---- workdirs -----------------------------------------------------------------------------------


def test_workdir_of_another_model(refuses, place):
  flag = "--config.model.num_layers=2"
  refuses(
    train, *TRAIN, flag, names=["workdir=.*/run", "model.num_layers: 1 → 2", "another --workd"]
  )
  # The checkpoint is of no use to another model, whatever is accepted.
  error = refuses(train, *TRAIN, flag, "--accept_changes", names=["sealed with model"])
  assert "another --workdir" in error


def test_workdir_of_another_optimizer(refuses, place):
  """--accept_changes can't help: the checkpoint has no state for it."""
  text = (place / "config.py").read_text(encoding="utf-8")
  (place / "config.py").write_text(
    text.replace("adamw", "lion").replace("AdamW", "Lion"), encoding="utf-8"
  )
  names = ["workdir=.*/run", "LionConfig", "AdamWConfig", "another --workdir"]
  refuses(train, *TRAIN, "--accept_changes", names=names)


def test_workdir_is_a_file(refuses, place):
  (place / "new").write_text("mine", encoding="utf-8")
  refuses(train, *NEW, names=["workdir=.*/new: is a file", "choose another"])
  for module in (evaluate, generate):
    refuses(module, "--workdir=new", names=["workdir=.*/new"])


def test_workdir_holds_other_files(refuses, place):
  (place / "new").mkdir()
  (place / "new" / "thesis.tex").write_text("mine", encoding="utf-8")
  refuses(train, *NEW, names=[r"workdir=.*/new: holds other files \(thesis.tex\)", "empty"])


def test_no_run_yet(refuses, place):
  for module in (evaluate, generate):
    refuses(module, "--workdir=nowhere", names=["workdir=.*/nowhere: no such", "train first"])
    refuses(module, "--workdir=data", names=[r"workdir=.*/data: no run here", "train first"])


def test_no_checkpoint_yet(refuses, place):
  shutil.rmtree(place / "run" / "checkpoints" / "1")
  for module in (evaluate, generate):
    refuses(module, *RUN, names=["run/checkpoints: no checkpoint yet", "train first"])
  (place / "run" / "checkpoints").rmdir()
  refuses(evaluate, *RUN, names=["run/checkpoints: no checkpoint yet", "train first"])


def test_step_that_was_not_saved(refuses):
  for module in (evaluate, generate):
    refuses(module, *RUN, "--step=7", names=["--step=7", "there are 1"])


def test_damaged_config_of_the_run(refuses, place):
  truncate(place / "run" / "config.json")
  for module, flags in ((evaluate, RUN), (train, TRAIN)):
    refuses(module, *flags, names=[r"run/config\.json: not a JSON file"])


# ---- checkpoints --------------------------------------------------------------------------------


def damage(directory, how):
  state, meta = directory / "state", directory / "meta"
  if how == "truncated arrays":
    for file in [*state.glob("d/*"), *state.glob("ocdbt.process_0/d/*")]:
      truncate(file)
  elif how == "missing arrays":
    shutil.rmtree(state / "d")
    shutil.rmtree(state / "ocdbt.process_0")
  elif how == "truncated index":
    truncate(state / "manifest.ocdbt")
  elif how == "truncated metadata":
    truncate(state / "_METADATA")
  elif how == "missing state":
    shutil.rmtree(state)
  elif how == "truncated meta":
    truncate(meta / "metadata")
  elif how == "empty meta":
    truncate(meta / "metadata", 0)
  elif how == "missing meta":
    shutil.rmtree(meta)
  else:
    assert how == "seal without a part"
    edit_json(meta / "metadata", lambda values: values["seal"].pop("tokenizer"))


@pytest.mark.parametrize(
  "how",
  [
    "truncated arrays",
    "missing arrays",
    "truncated index",
    "truncated metadata",
    "missing state",
    "truncated meta",
    "empty meta",
    "missing meta",
    "seal without a part",
  ],
)
def test_damaged_checkpoint(refuses, place, how):
  """Orbax meets each of these with another exception, and with some of them late."""
  damage(place / "run" / "checkpoints" / "1", how)
  where = "run/checkpoints/1: "
  refuses(train, *TRAIN, names=[where, "it is the only one: restore one from a copy"])
  refuses(train, *TRAIN, "--nofallback", names=[where, "move this folder away"])
  refuses(evaluate, *RUN, names=[where, "move this folder away"])


def test_damaged_checkpoint_as_a_process(place):
  """Also what C++ and loggers write to stderr counts: one line is one line."""
  damage(place / "run" / "checkpoints" / "1", "truncated arrays")
  command = [sys.executable, "-m", "jaxlm.evaluate", *RUN]
  result = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert result.returncode == 2
  # The warning comes if jaxlm was edited since the fixture trained.
  line = r"(warning: .* was made by .*\n)?error: .*run/checkpoints/1: .*move this folder away.*\n"
  assert re.fullmatch(line, result.stderr), result.stderr


# ---- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "flags, names",
  [
    (["data.seq_len=32"], [r"config\.data\.seq_len=32", r"config\.model\.max_seq_len=16"]),
    (["model.num_heads=3"], [r"config\.model\.num_heads=3", "divide embed_dim=32"]),
    (["model.num_heads=4", "model.num_kv_heads=3"], [r"num_kv_heads=3", "divide num_heads=4"]),
    (["global_batch_size=12"], [r"config\.global_batch_size=12", "divisible by 8", "fsdp=8"]),
    (["num_microbatches=3"], [r"config\.num_microbatches=3", "divide", "global_batch_size=8"]),
    (["mesh.data=3"], [r"config\.mesh", "8 are there", "-1"]),
    (["mesh.model=8", "mesh.fsdp=1"], [r"config\.model", "model=8|mesh.model"]),
    (["num_steps=0"], [r"config\.num_steps=0", "at least 1"]),
  ],
)
def test_config_that_cannot_work(refuses, flags, names):
  refuses(train, *NEW, *[f"--config.{flag}" for flag in flags], names=names)


def test_unknown_key_is_answered_at_once(place):
  """Breaks if something heavy is imported before the flags are parsed."""
  command = [sys.executable, "-m", "jaxlm.train", *NEW, "--config.optim.peek_lr=1"]
  seconds = []
  for _ in range(2):  # the better of two: the machine may be busy
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    seconds.append(time.monotonic() - started)
    if seconds[-1] < 2:
      break
  assert result.returncode == 2
  assert re.fullmatch(r"error: .*peek_lr.*did you mean 'peak_lr'\?.*\n", result.stderr)
  assert not (place / "new").exists()
  assert min(seconds) < 2


def test_accepted_changes(place, capsys):
  """What changes the future, not the past, is refused once, and goes on with --accept_changes."""
  flags = [*TRAIN, "--config.optim.weight_decay=0.2"]
  assert cli.execute(train.main, doc=train.__doc__, argv=["train", *flags]) == 2
  error = capsys.readouterr().err
  assert "optim.weight_decay: 0.1 → 0.2" in error and "--accept_changes" in error
  flags.append("--accept_changes")
  assert cli.execute(train.main, doc=train.__doc__, argv=["train", *flags]) == 0
  assert configlib.load_json(place / "run" / "config.json").optim.weight_decay == 0.2
  steps = [json.loads(line)["step"] for line in (place / "run/metrics.jsonl").open()]
  assert steps == [1, 2]


def test_manifest_created_again_is_the_same_data(place):
  """The seal is of the rows: the date of a dataset or its name must not end a run."""
  manifest = Manifest.load(place / "data")
  dataclasses.replace(manifest, created="2001-01-01", name="renamed").save(place / "data")
  assert cli.execute(train.main, doc=train.__doc__, argv=["train", *TRAIN]) == 0

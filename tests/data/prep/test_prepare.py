"""The whole chain: text in, a dataset out that holds exactly that text, or nothing at all."""

import dataclasses
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data.manifest import Manifest
from jaxlm.data.prep import build
from jaxlm.data.prep.baseline import compressed_sizes
from jaxlm.data.prep.build import prepare
from jaxlm.data.prep.config import (
  PrepareConfig,
  StdlibSourceConfig,
  TextSourceConfig,
  TokenizerKind,
  TokenizerTrainConfig,
)
from jaxlm.data.shards import TokenShards
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import load_tokenizer

SENTENCE = "the model reads text and learns to write more of the same kind every day"
WORDS = SENTENCE.split()


def _text(i: int) -> str:
  words = [WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(60)]
  return f"# file {i}\n\n" + " ".join(words) + "\n\tü \u2581 </s>\r\n"


@pytest.fixture
def folder(tmp_path) -> Path:
  root = tmp_path / "texts"
  root.mkdir()
  for i in range(40):
    (root / f"{i:02d}.txt").write_text(_text(i), newline="")
  (root / "copy.txt").write_text(_text(3), newline="")
  (root / "empty.txt").write_text("")
  return root


def _config(folder, output, **values) -> PrepareConfig:
  values = {"tokenizer": TokenizerTrainConfig(vocab_size=400)} | values
  source = values.pop("source", None) or TextSourceConfig(paths=(str(folder),))
  return PrepareConfig(name="test", output=str(output), source=source, **values)


def _documents(directory, split) -> list[str]:
  shards = TokenShards(directory, split)
  tokenizer = load_tokenizer(Path(directory) / "tokenizer")
  return [tokenizer.decode(shards.document(i)) for i in range(shards.num_docs)]


@pytest.mark.parametrize("kind", TokenizerKind)
def test_the_dataset_holds_the_text(folder, tmp_path, kind):
  """Breaks when a document is lost, repeated or changed, or a count in the manifest is wrong."""
  tokenizer_config = TokenizerTrainConfig(kind=kind, vocab_size=400)
  out = tmp_path / "out"
  manifest = prepare(_config(folder, out, tokenizer=tokenizer_config, shard_tokens=1000))
  assert manifest == Manifest.load(out)
  manifest.verify(out, full=True)
  train, heldout = _documents(out, "train"), _documents(out, "heldout")
  assert sorted(train + heldout) == sorted(map(_text, range(40)))
  assert heldout and not set(train) & set(heldout)
  assert train != [t for t in map(_text, range(40)) if t in train]  # not the order of reading
  assert len(manifest.splits["train"].shards) > 1
  tokenizer = load_tokenizer(out / "tokenizer")
  assert (manifest.vocab_size, manifest.eos_id, manifest.tokenizer_sha256, manifest.dtype) == (
    tokenizer.vocab_size,
    tokenizer.eos_id,
    tokenizer.fingerprint(),
    "<u2",
  )
  for name, documents in (("train", train), ("heldout", heldout)):
    shards = TokenShards(out, name)
    ids = shards.tokens(0, shards.num_tokens)
    size = sum(len(d.encode()) for d in documents)
    assert manifest.splits[name].bytes == size == tokenizer.token_bytes()[ids].sum()
    assert (ids == tokenizer.eos_id).sum() == manifest.splits[name].docs == len(documents)
  assert manifest.splits["heldout"].baselines == {
    "gzip -9": sum(len(gzip.compress(d.encode(), 9, mtime=0)) for d in heldout),
    "xz -9": sum(len(lzma.compress(d.encode(), preset=9)) for d in heldout),
  }
  report = json.loads((out / "report.json").read_text())
  assert (report["files_read"], report["duplicates"], report["skipped"]) == (41, 1, {"empty": 1})
  assert {p.name for p in out.iterdir()} == {
    "manifest.json",
    "raw.sha256",
    "report.json",
    "tokenizer",
    "train",
    "heldout",
  }
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "texts"]


def test_same_config_gives_the_same_dataset(folder, tmp_path):
  """Breaks when hash order, threads or time leak into the ids."""
  a = prepare(_config(folder, tmp_path / "a"))
  b = prepare(_config(folder, tmp_path / "b"))
  other = prepare(_config(folder, tmp_path / "c", seed=1))
  assert a.fingerprint() == b.fingerprint()
  assert a.fingerprint() != other.fingerprint()


def test_existing_output(folder, tmp_path):
  """Same config and source: used. Anything else: an error that names what changed, and the flag."""
  out = tmp_path / "out"
  messages: list[str] = []
  first = prepare(_config(folder, out))
  before = (out / "manifest.json").stat().st_mtime_ns
  assert prepare(_config(folder, out), lambda p: messages.append(p.message)) == first
  assert (out / "manifest.json").stat().st_mtime_ns == before
  assert any("used as it is" in m for m in messages)
  with pytest.raises(UserError, match=r"seed: 0 → 5.*--config\.overwrite=true"):
    prepare(_config(folder, out, seed=5))
  (folder / "new.txt").write_text("new text")
  with pytest.raises(UserError, match=r"files of the source changed.*--config\.overwrite=true"):
    prepare(_config(folder, out))
  assert Manifest.load(out) == first
  assert prepare(_config(folder, out, overwrite=True)) != first
  assert prepare(_config(folder, out)) != first
  shard = out / "train/shard-00000.bin"
  shard.write_bytes(shard.read_bytes()[:-2])
  with pytest.raises(UserError, match=r"damaged dataset.*truncated.*--config\.overwrite=true"):
    prepare(_config(folder, out))


def test_a_folder_that_is_no_dataset_is_never_replaced(folder, tmp_path):
  for overwrite in (False, True):
    with pytest.raises(UserError, match="is not a dataset"):
      prepare(_config(folder, folder, overwrite=overwrite))
    with pytest.raises(UserError, match="is a file"):
      prepare(_config(folder, folder / "00.txt", overwrite=overwrite))
  assert len(list(folder.iterdir())) == 42
  (tmp_path / "empty").mkdir()
  prepare(_config(folder, tmp_path / "empty"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, OSError(28, "No space left")])
@pytest.mark.parametrize("stage", ["train tokenizer", "tokenise", "compress"])
def test_interruption_leaves_nothing_half(folder, tmp_path, error, stage):
  out = tmp_path / "out"

  def fail_at(progress):
    if progress.stage == stage:
      raise error

  with pytest.raises((KeyboardInterrupt, UserError)):
    prepare(_config(folder, out), fail_at)
  assert [p.name for p in tmp_path.iterdir()] == ["texts"]
  first = prepare(_config(folder, out))
  with pytest.raises((KeyboardInterrupt, UserError)):
    prepare(_config(folder, out, seed=3, overwrite=True), fail_at)
  assert Manifest.load(out) == first
  assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "texts"]


def test_killed_runs_are_cleaned_up(folder, tmp_path):
  """SIGKILL runs no `finally`: the next run removes what lies there, but not a living run's."""
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  out = tmp_path / "out"
  first = prepare(_config(folder, out))
  dead = tmp_path / f".out.tmp-{process.pid}"
  alive = tmp_path / f".out.tmp-{os.getppid()}"
  dead.mkdir()
  alive.mkdir()
  out.rename(tmp_path / f".out.tmp-{process.pid}-old")  # killed between the two renames
  messages: list[str] = []
  assert prepare(_config(folder, out), lambda p: messages.append(p.message)) == first
  assert any("used as it is" in m for m in messages)  # brought back, not made again
  assert not dead.exists() and alive.exists()


def test_few_files(tmp_path):
  """One file: its end is held out, and nothing is lost."""
  file = tmp_path / "book.txt"
  file.write_text("".join(map(_text, range(30))), newline="")
  messages: list[str] = []
  manifest = prepare(_config(file, tmp_path / "out"), lambda p: messages.append(p.message))
  (train,), (heldout,) = (
    _documents(tmp_path / "out", "train"),
    _documents(tmp_path / "out", "heldout"),
  )
  assert train + heldout == file.read_bytes().decode()
  assert manifest.source["cut_document"] is True
  assert any("end of the longest" in m for m in messages)


def test_undecodable_files_are_named(folder, tmp_path):
  (folder / "latin.txt").write_bytes(b"caf\xe9 " * 10)
  messages: list[str] = []
  manifest = prepare(_config(folder, tmp_path / "out"), lambda p: messages.append(p.message))
  assert manifest.source["skipped"]["undecodable"] == 1
  assert any("warning" in m and "latin.txt" in m for m in messages)
  with pytest.raises(UserError, match=r"latin\.txt"):
    prepare(_config(folder, tmp_path / "strict", strict=True))


def test_given_tokenizer(folder, tmp_path):
  """Datasets that are mixed in one run need one tokenizer."""
  first = prepare(_config(folder, tmp_path / "a"))
  wanted = TokenizerTrainConfig(path=str(tmp_path / "a/tokenizer"))
  second = prepare(_config(folder, tmp_path / "b", tokenizer=wanted, seed=4))
  assert second.tokenizer_sha256 == first.tokenizer_sha256
  with pytest.raises(UserError, match="not a tokenizer's directory"):
    prepare(_config(folder, tmp_path / "c", tokenizer=TokenizerTrainConfig(path=str(tmp_path))))


@pytest.mark.parametrize("kind", [TokenizerKind.SENTENCEPIECE, TokenizerKind.HUGGINGFACE])
def test_processes_change_nothing(folder, tmp_path, kind):
  """Two workers and none: the same files, byte for byte."""
  wanted = TokenizerTrainConfig(kind=kind, vocab_size=400)
  one = prepare(_config(folder, tmp_path / "a", tokenizer=wanted))
  two = prepare(_config(folder, tmp_path / "b", tokenizer=wanted, workers=2))
  assert one.fingerprint() == two.fingerprint()
  files = [f.relative_to(tmp_path / "a") for f in (tmp_path / "a").glob("*/shard-*")]
  assert files
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_published_tokenizer(folder, tmp_path):
  """A Hugging Face folder is used by its path; the dataset has a copy of its own."""
  tokenizers = pytest.importorskip("tokenizers")
  first = prepare(
    _config(folder, tmp_path / "a", tokenizer=TokenizerTrainConfig(kind=TokenizerKind.HUGGINGFACE))
  )
  data = (tmp_path / "a/tokenizer/huggingface.json").read_text()
  published = tmp_path / "published"
  published.mkdir()
  tokenizers.Tokenizer.from_str(data).save(str(published / "tokenizer.json"))
  second = prepare(
    _config(folder, tmp_path / "b", tokenizer=TokenizerTrainConfig(path=str(published)))
  )
  assert (second.vocab_size, second.eos_id) == (first.vocab_size, first.eos_id)
  assert _documents(tmp_path / "b", "train") == _documents(tmp_path / "a", "train")


def test_the_raw_files_are_listed(folder, tmp_path):
  """As sha256sum does, with the listing's own hash in the manifest."""
  manifest = prepare(_config(folder, tmp_path / "out"))
  listing = tmp_path / "out/raw.sha256"
  raw = manifest.source["raw"]
  assert raw["files"] == 42 and raw["sha256"] == hashlib.sha256(listing.read_bytes()).hexdigest()
  digest = hashlib.sha256((folder / "00.txt").read_bytes()).hexdigest()
  assert f"{digest}  {folder}/00.txt\n" in listing.read_text()


def test_large_vocabulary_uses_four_bytes(tmp_path, folder, monkeypatch):
  """An id above 65,535 in two bytes would wrap around."""

  class Wide:
    kind, vocab_size, eos_id = "wide", 70_000, 69_999

    def encode_batch(self, texts):
      return [[60_000 + b * 30 for b in t.encode()] for t in texts]

    def decode(self, ids):
      return bytes((i - 60_000) // 30 for i in ids).decode()

    def fingerprint(self):
      return "wide"

    def save(self, directory):
      pass

  monkeypatch.setattr(build, "_tokenizer", lambda *_: Wide())
  manifest = prepare(_config(folder, tmp_path / "out"))
  assert manifest.dtype == "<u4"
  ids = TokenShards(tmp_path / "out", "train").tokens(0, manifest.splits["train"].tokens)
  assert ids.max() == 69_999 and np.unique(ids).size > 20


def test_lossy_tokenizer_is_refused(folder, tmp_path, monkeypatch):
  from jaxlm.tokenizers.byte import ByteTokenizer

  class Lossy(ByteTokenizer):
    def decode(self, ids):
      return super().decode(ids).replace("\r", "")

  monkeypatch.setattr(build, "_tokenizer", lambda *_: Lossy())
  with pytest.raises(UserError, match="does not give back"):
    prepare(_config(folder, tmp_path / "out"))
  assert not (tmp_path / "out").exists()


FAR = os.urandom(70_000)


@pytest.mark.parametrize("data", [b"", b"a", b"abc" * 9000, FAR, FAR + b"x" + FAR, b"\0" * 65_536])
def test_baselines_are_the_compressors_own(data):
  """The smaller dictionary of xz must not change its output's size."""
  assert compressed_sizes([data, data]) == {
    "gzip -9": 2 * len(gzip.compress(data, 9, mtime=0)),
    "xz -9": 2 * len(lzma.compress(data, preset=9)),
  }


def test_stdlib_corpus(tmp_path):
  """Deterministic, capped, text only; and no package's tests."""
  source = StdlibSourceConfig(max_bytes=300_000, include_packages=False)
  one = source.build(strict=False, exclude="")
  documents = list(one.documents())
  again = list(source.build(strict=False, exclude="").documents())
  assert documents == again
  size = sum(len(d.text.encode()) for d in documents)
  assert 200_000 < size <= 300_000
  whole = StdlibSourceConfig(max_bytes=None, include_packages=True).build(strict=False, exclude="")
  names = [name for name, _ in whole._files()]
  assert any(n.startswith("packages/") for n in names) and len(set(names)) == len(names)
  assert not any("/test" in n and not n.endswith("testing.py") for n in names if "stdlib/" in n[:7])
  assert not any("site-packages" in n or "__pycache__" in n for n in names)


VALID = PrepareConfig(name="x", output="y", source=TextSourceConfig(paths=("z",)))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"name": ""}, r"config\.name=''"),
    ({"output": ""}, r"config\.output=''"),
    ({"heldout_fraction": 0.0}, r"config\.heldout_fraction=0\.0"),
    ({"heldout_fraction": float("nan")}, r"config\.heldout_fraction=nan"),
    ({"heldout_max_bytes": 0}, r"config\.heldout_max_bytes=0: must be at least 1"),
    ({"shard_tokens": 0}, r"config\.shard_tokens=0"),
    ({"seed": -1}, r"config\.seed=-1"),
    ({"source": TextSourceConfig()}, r"config\.source\.paths=\(\)"),
    ({"source": TextSourceConfig(paths=("",))}, r"empty path"),
    ({"source": TextSourceConfig(paths=("a",), text_field="")}, r"text_field"),
    ({"source": TextSourceConfig(paths=("a",), document_separator="")}, r"document_separator"),
    ({"source": TextSourceConfig(paths=("a",), max_doc_bytes=1)}, r"max_doc_bytes=1"),
    ({"source": StdlibSourceConfig(max_bytes=0)}, r"config\.source\.max_bytes=0"),
    ({"tokenizer": TokenizerTrainConfig(vocab_size=10)}, r"config\.tokenizer\.vocab_size=10"),
    ({"tokenizer": TokenizerTrainConfig(max_train_bytes=0)}, r"tokenizer\.max_train_bytes=0"),
  ],
)
def test_validate(change, message):
  VALID.validate()
  with pytest.raises(UserError, match=message):
    dataclasses.replace(VALID, **change).validate()


def _main(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "jaxlm.prepare", *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=Path(__file__).parents[3],
  )


def test_main(folder, tmp_path):
  """The command from end to end: a summary with the next command; a second call reuses."""
  arguments = (
    "--config=configs/data/text.py",
    f"--config.source.paths={folder}",
    f"--config.output={tmp_path}/out",
    "--config.tokenizer.vocab_size=400",
  )
  done = _main(*arguments)
  assert done.returncode == 0, done.stderr
  for word in (
    "41 files read",
    "1 duplicates",
    "bytes/token",
    "gzip -9",
    "xz -9",
    "next: ",
    "-m jaxlm.train",
  ):
    assert word in done.stdout
  again = _main(*arguments)
  assert again.returncode == 0 and "used as it is" in again.stdout
  other = _main(*arguments, "--config.tokenizer.kind=byte")
  assert other.returncode == 2 and not other.stdout.count("Traceback")
  assert other.stderr.startswith("error: ") and "--config.overwrite=true" in other.stderr
  assert len(other.stderr.splitlines()) == 1


def test_main_without_a_folder_says_what_to_name():
  done = _main("--config=configs/data/text.py")
  assert done.returncode == 2 and "--config.source.paths=" in done.stderr


@pytest.mark.parametrize(
  "module",
  ["jaxlm.data.prep.config", "jaxlm.data.prep.build", "jaxlm.data.prep.train_tokenizer"],
)
def test_imports(module):
  """prep never imports jax; its config module imports nothing heavy at all."""
  heavy = ["jax", "flax", "grain"]
  if module.endswith("config"):
    heavy += ["numpy", "pyarrow", "sentencepiece", "zstandard"]
  code = (
    f"import sys, {module}; from jaxlm.data.prep.config import *\n"
    "for c in (TextSourceConfig(paths=('.',)), StdlibSourceConfig()):\n"
    f"  {module.endswith('build')} and c.build(strict=True, exclude='x')\n"
    f"sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or None)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_every_document_is_named_beside_its_shard(tmp_path):
  """In the shard's order, with what its record says of it; broken by a label that stays behind when
  documents are shuffled, or by a shard that takes the next one's labels."""
  file = tmp_path / "documents.jsonl"
  with file.open("w") as lines:
    for i in range(40):
      record = {"id": f"doc-{i}", "text": _text(i), "metadata": {"url": f"https://a/{i}", "n": 1}}
      lines.write(json.dumps(record) + "\n")
  out = tmp_path / "out"
  manifest = prepare(
    _config(
      file,
      out,
      source=TextSourceConfig(paths=(str(file),)),
      tokenizer=TokenizerTrainConfig(kind=TokenizerKind.BYTE),
      shard_tokens=2000,
    )
  )
  assert len(manifest.splits["train"].shards) > 1
  for split, part in manifest.splits.items():
    labels = []
    for shard in part.shards:
      sidecar = (out / shard.file).with_suffix(".ids.jsonl.gz")
      with gzip.open(sidecar, "rt") as lines:
        labels += [json.loads(line) for line in lines]
    for label, text in zip(labels, _documents(out, split), strict=True):
      i = int(label["id"].removeprefix("doc-"))
      assert text == _text(i)
      assert label == {"id": f"doc-{i}", "url": f"https://a/{i}"}

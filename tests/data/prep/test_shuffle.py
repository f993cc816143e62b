"""The two passes of the shuffle: nothing lost, the order of no accident, bounded, resumable."""

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest

from jaxlm.data.manifest import Manifest, Split
from jaxlm.data.prep import encode, shuffle
from jaxlm.data.prep.runs import HELDOUT, OPEN, TRAIN, Record, read_meta, total
from jaxlm.data.prep.tokenise import encode_all, write_dataset
from jaxlm.data.shards import TokenShards
from jaxlm.errors import UserError
from jaxlm.tokenizers.byte import ByteTokenizer

TOKENIZER = ByteTokenizer()


def _text(i: int) -> str:
  return f"document {i} " + "word ü " * (i * 7 % 50)


@dataclasses.dataclass(frozen=True)
class MadeUp:
  """Documents first … last - 1; of two sources."""

  number: int
  first: int
  last: int
  split: int = OPEN
  size: int = 1000

  def records(self) -> Iterator[Record]:
    for i in range(self.first, self.last):
      label = json.dumps({"id": f"d{i}"})
      yield Record(i - self.first, _text(i), label, source="ab"[i % 2], split=self.split)


UNITS = [MadeUp(n, 50 * n, 50 * n + 50) for n in range(6)]
SETTINGS = dict(eos_id=256, vocab_size=257, bucket_bytes=5000, shard_tokens=9000)


def _make(tmp_path, units=UNITS, *, workers=1, seed=0, sources=None, fraction=0.02, **changes):
  settings = SETTINGS | changes
  work, root = tmp_path / "work", tmp_path / "out"
  done = encode_all(
    units,
    TOKENIZER,
    work,
    seed=seed,
    bucket_bytes=settings["bucket_bytes"],
    workers=workers,
  )
  shards = write_dataset(
    done,
    work,
    root,
    sources=sources,
    heldout_fraction=fraction,
    heldout_max_bytes=10**6,
    workers=workers,
    **settings,
  )
  manifest = Manifest(
    name="x",
    dtype="<u2",
    vocab_size=257,
    eos_id=256,
    tokenizer_sha256="x",
    shuffle_seed=seed,
    splits={name: Split.of(part) for name, part in shards.items()},
  )
  manifest.save(root)
  manifest.verify(root, full=True)
  return done, manifest, root


def _documents(root, split):
  shards = TokenShards(root, split)
  return [TOKENIZER.decode(shards.document(i)) for i in range(shards.num_docs)]


def _hashes(manifest):
  return [(s.file, s.sha256, s.index_sha256) for p in manifest.splits.values() for s in p.shards]


def test_every_document_once_with_its_label(tmp_path):
  done, manifest, root = _make(tmp_path)
  train, heldout = _documents(root, "train"), _documents(root, "heldout")
  assert sorted(train + heldout) == sorted(map(_text, range(300)))
  assert heldout and not set(train) & set(heldout)
  assert len(manifest.splits["train"].shards) > 2
  books = total(done)
  assert (books.docs, books.tokens) == (300, sum(len(_text(i).encode()) for i in range(300)))
  assert books.shares["source\ta"][0] == 150
  for split, texts in (("train", train), ("heldout", heldout)):
    labels = []
    for shard in manifest.splits[split].shards:
      with gzip.open((root / shard.file).with_suffix(".ids.jsonl.gz"), "rt") as lines:
        labels += [json.loads(line)["id"] for line in lines]
    assert [_text(int(label[1:])) for label in labels] == texts
  assert sorted(p.name for p in root.iterdir()) == ["heldout", "manifest.json", "train"]


def test_the_order_is_a_shuffle(tmp_path):
  """Neighbours of the input are not neighbours of the output, and each unit is everywhere."""
  _, _, root = _make(tmp_path, fraction=0.001)
  numbers = [int(t.split()[1]) for t in _documents(root, "train")]
  assert np.mean(np.abs(np.diff(numbers)) == 1) < 0.05
  first = [n // 50 for n in numbers[: len(numbers) // 2]]
  assert all(10 < first.count(unit) < 40 for unit in range(6))


def test_workers_and_buckets_change_no_byte(tmp_path):
  """Broken by an order of arrival; two processes and one give the same files."""
  _, one, root = _make(tmp_path / "1")
  _, two, _ = _make(tmp_path / "2", workers=2)
  assert _hashes(one) == _hashes(two)
  _, _, wide = _make(tmp_path / "3", bucket_bytes=10**6)
  assert _documents(wide, "train") == _documents(root, "train")  # other shards, the same order
  _, other, _ = _make(tmp_path / "4", seed=1)
  assert _hashes(other) != _hashes(one)


def test_one_source(tmp_path):
  _, _, root = _make(tmp_path, sources=frozenset("a"))
  found = _documents(root, "train") + _documents(root, "heldout")
  assert sorted(found) == sorted(map(_text, range(0, 300, 2)))


def test_equal_texts_are_held_out_together(tmp_path):
  """Otherwise a held-out text would also be trained on."""
  units = [MadeUp(n, 0, 60) for n in range(4)]
  _, _, root = _make(tmp_path, units, fraction=0.1)
  train, heldout = _documents(root, "train"), _documents(root, "heldout")
  assert heldout and not set(train) & set(heldout)
  assert all(heldout.count(text) == 4 for text in heldout)
  copies = [n for n, (a, b) in enumerate(itertools.pairwise(train)) if a == b]
  assert len(copies) < 8  # and copies do not stand beside each other


def test_given_splits_are_kept(tmp_path):
  units = [MadeUp(0, 0, 100, TRAIN), MadeUp(1, 100, 110, HELDOUT)]
  _, _, root = _make(tmp_path, units)
  assert sorted(_documents(root, "heldout")) == sorted(map(_text, range(100, 110)))


def test_runs_and_buckets_bound_the_memory(tmp_path, monkeypatch):
  """A run holds bucket_bytes and a batch; a bucket what lies in its range of keys."""
  monkeypatch.setattr(encode, "BATCH_BYTES", 500)
  done, _, _ = _make(tmp_path, bucket_bytes=2000)
  assert sum(d.runs for d in done) > 12
  for unit in done:
    for k in range(unit.runs):
      assert read_meta(tmp_path / "work/runs", unit.unit, k)["bytes"].sum() < 3500
  plan = shuffle.make_plan(
    tmp_path / "work/runs",
    done,
    sources=None,
    bucket_bytes=2000,
    shard_tokens=9000,
    fraction=0.02,
    max_bytes=10**6,
  )
  assert plan.buckets == -(-plan.bytes // 2000) and len(plan.groups) > 2
  assert plan.groups[0][0] == 0 and plan.groups[-1][1] == plan.buckets


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
  """Whole units are used as they are; a unit without its mark is encoded again."""
  _, whole, _ = _make(tmp_path / "whole")
  encoded: list[int] = []
  inner = MadeUp.records

  def records(self):
    encoded.append(self.number)
    for record in inner(self):
      if self.number == 3 and len(encoded) == 4 and record.number == 30:
        raise KeyboardInterrupt
      yield record

  monkeypatch.setattr(MadeUp, "records", records)
  with pytest.raises(KeyboardInterrupt):
    _make(tmp_path / "killed")
  assert encoded == [0, 1, 2, 3]
  # killed in the second pass too
  inner_write = shuffle._write_bucket

  def dies(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(shuffle, "_write_bucket", dies)
  with pytest.raises(KeyboardInterrupt):
    _make(tmp_path / "killed")
  assert encoded == [0, 1, 2, 3, 3, 4, 5]
  monkeypatch.setattr(shuffle, "_write_bucket", inner_write)
  _, again, _ = _make(tmp_path / "killed")
  assert encoded == [0, 1, 2, 3, 3, 4, 5]
  assert _hashes(again) == _hashes(whole)


@dataclasses.dataclass(frozen=True)
class Dies(MadeUp):
  def records(self) -> Iterator[Record]:
    import os

    os._exit(9)
    yield


def test_a_killed_worker_is_named(tmp_path):
  """A pool would wait for it for ever, or raise a traceback."""
  with pytest.raises(UserError, match=r"a worker was killed.*goes on at its tasks"):
    _make(tmp_path, [MadeUp(0, 0, 50), Dies(1, 50, 100)], workers=2)


def test_a_lost_run_is_found(tmp_path):
  """Broken when a missing document passes in silence."""
  done, _, root = _make(tmp_path)
  meta = next((tmp_path / "work/runs").glob("000002-*.meta"))
  plan = shuffle.make_plan(
    tmp_path / "work/runs", done, sources=None, bucket_bytes=5000, shard_tokens=9000,
    fraction=0.02, max_bytes=10**6,
  )  # fmt: skip
  assert plan.docs == 300
  meta.unlink()
  with pytest.raises(OSError):
    _make(tmp_path)
  assert root.exists()


def test_an_accelerator_that_differs_later_stops_the_stage(tmp_path):
  """One document in COMPARE is encoded by the reference too, whole."""

  class Accelerated(ByteTokenizer):
    reference, name = TOKENIZER, "fast"

    def encode_batch(self, texts):
      return [[*t.encode()][::-1] for t in texts]

    def decode(self, ids):
      return super().decode([*ids][::-1])

  with pytest.raises(UserError, match=r"fast makes other ids than the reference.*NONE"):
    encode_all(UNITS, Accelerated(), tmp_path, seed=0, bucket_bytes=5000)


def test_empty_documents_are_counted(tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Empty(MadeUp):
    def records(self):
      yield Record(0, "", "{}")
      yield Record(1, "x", "{}")

  done = encode_all([Empty(0, 0, 2)], TOKENIZER, tmp_path, seed=0, bucket_bytes=100)
  assert (done[0].docs, done[0].skipped) == (1, {"empty": 1})

"""Shards: what was written is read, across edges, by threads and copies; damage is named."""

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxlm.data.manifest import Manifest, Split, dtype_for
from jaxlm.data.shards import ShardWriter, TokenShards
from jaxlm.data.testing import EOS, random_documents, write_dataset
from jaxlm.errors import UserError


def test_any_range_is_read_across_shard_edges(dataset):
  """Breaks where an offset is not taken from the shard's own begin."""
  directory, ids = dataset
  shards = TokenShards(directory)
  assert len(shards.manifest.split("train").shards) > 3
  assert shards.num_tokens == ids.size
  for start in range(0, ids.size, 7):
    for count in (0, 1, 50, ids.size - start):
      count = min(count, ids.size - start)
      found = shards.tokens(start, count)
      assert found.dtype == np.int32
      np.testing.assert_array_equal(found, ids[start : start + count])
  for start, count in [(-1, 1), (0, ids.size + 1), (ids.size, 1)]:
    with pytest.raises(IndexError):
      shards.tokens(start, count)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_documents_come_back(tmp_path, dtype):
  vocab_size = 500 if dtype == "<u2" else 1 << 20
  documents = [*random_documents(1, 40, vocab_size), np.zeros(0, int)]
  write_dataset(tmp_path, documents, shard_tokens=300, dtype=dtype, vocab_size=vocab_size)
  shards = TokenShards(tmp_path)
  assert shards.num_docs == 41
  for i, ids in enumerate(documents):
    np.testing.assert_array_equal(shards.document(i), [*ids, EOS])
  with pytest.raises(IndexError):
    shards.document(41)
  shards.manifest.verify(tmp_path, full=True)


def test_shards_hold_whole_documents_and_counts(dataset):
  directory, _ = dataset
  split = Manifest.load(directory).split("train")
  for shard in split.shards:
    ids = np.fromfile(directory / shard.file, "<u2")
    assert ids[-1] == EOS and (ids == EOS).sum() == shard.docs
    ends = np.fromfile(directory / shard.index_file, "<u8")
    np.testing.assert_array_equal(ends, np.flatnonzero(ids == EOS) + 1)
    assert shard.bytes == 3 * (shard.tokens - shard.docs)
  assert split == Split.of(split.shards)


@pytest.mark.parametrize(
  "ids, message",
  [
    ([1, 500], r"token id 500 is out of range \[0, 500\)"),
    ([-1], r"token id -1 is out of range"),
    ([5, EOS, 5], r"holds the EOS id 3"),
    ([0.5], r"1-D array of integers"),
  ],
)
def test_bad_documents_are_refused_and_leave_no_file(tmp_path, ids, message):
  with (
    pytest.raises(UserError, match=message),
    ShardWriter(tmp_path, "train", "<u2", EOS, vocab_size=500) as writer,
  ):
    writer.add(np.array([7, 8]), 2)
    writer.add(np.array(ids), 1)
  assert not list((tmp_path / "train").iterdir())


def test_ids_beyond_the_dtype_are_refused(tmp_path):
  """Breaks where numpy wraps 65536 to 0."""
  writer = ShardWriter(tmp_path, "train", "<u2", 0)
  writer.add(np.array([65535]), 1)
  with pytest.raises(UserError, match="65536 is out of range"):
    writer.add(np.array([65536]), 1)
  assert dtype_for(65536) == "<u2" and dtype_for(65537) == "<u4"


def test_an_id_out_of_range_on_disk_is_refused_when_read(dataset):
  directory, _ = dataset
  file = directory / "train/shard-00001.bin"
  ids = np.fromfile(file, "<u2")
  ids[5] = 501
  ids.tofile(file)
  shards = TokenShards(directory)
  with pytest.raises(
    UserError, match=r"shard-00001.bin: holds id 501, but vocab_size is 500; make"
  ):
    shards.tokens(0, shards.num_tokens)


def _truncate(file):
  file.write_bytes(file.read_bytes()[:-2])


def _change(file):
  data = bytearray(file.read_bytes())
  data[8] ^= 1
  file.write_bytes(data)


@pytest.mark.parametrize(
  "name, damage, full, message",
  [
    ("shard-00001.bin", _truncate, False, "truncated: .* bytes, the manifest says .*; copy"),
    ("shard-00001.idx", _truncate, False, "truncated: "),
    ("shard-00000.bin", lambda f: f.write_bytes(f.read_bytes() * 2), False, "too long: "),
    ("shard-00000.bin", lambda f: f.unlink(), False, "No such file or directory; copy"),
    ("shard-00000.idx", lambda f: f.unlink(), False, "No such file or directory; copy"),
    ("shard-00002.bin", _change, True, "its bytes changed: sha256"),
    ("shard-00002.idx", _change, True, "its bytes changed: sha256"),
  ],
)
def test_damage_is_one_line_that_names_file_and_remedy(dataset, name, damage, full, message):
  """Breaks where a check is dropped; sizes must be checked without `full` too."""
  directory, _ = dataset
  manifest = Manifest.load(directory)
  manifest.verify(directory, full=True)
  damage(directory / "train" / name)
  if full:
    manifest.verify(directory, full=False)
  with pytest.raises(UserError, match=message) as e:
    manifest.verify(directory, full=full)
  assert name in str(e.value) and "\n" not in str(e.value)
  if not full:
    with pytest.raises(UserError, match=message):
      TokenShards(directory)


def test_a_wrong_index_is_found(dataset):
  """An index that does not increase, though its sha256 was recorded so."""
  directory, _ = dataset
  manifest = Manifest.load(directory)
  shard = manifest.split("train").shards[0]
  file = directory / shard.index_file
  ends = np.fromfile(file, "<u8")
  ends[0], ends[1] = ends[1], ends[0]
  ends.tofile(file)
  import hashlib

  shard.index_sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
  with pytest.raises(UserError, match=r"shard-00000.idx: not an increasing list"):
    manifest.verify(directory, full=True)
  with pytest.raises(UserError, match=r"shard-00000.idx: document 1 ends at"):
    TokenShards(directory, manifest=manifest).document(1)


@pytest.mark.parametrize(
  "edit, message",
  [
    (lambda m: m.update(format_version=99), "format_version is 99, this jaxlm reads 1"),
    (lambda m: m.pop("vocab_size"), "lacks vocab_size"),
    (lambda m: m.update(vocab_size="x"), "vocab_size='x': expected int"),
    (lambda m: m.update(vocab_size=70000), "vocab_size=70000 does not fit in dtype <u2"),
    (lambda m: m.update(eos_id=500), "eos_id=500 is not below vocab_size=500"),
    (lambda m: m.update(dtype="<f4"), "dtype='<f4'"),
    (lambda m: m.update(extra=1), "unknown key extra"),
    (
      lambda m: m["splits"]["train"].update(tokens=1),
      "splits.train.tokens=1 but its shards sum to",
    ),
    (lambda m: m["splits"]["train"]["shards"][0].pop("docs"), r"shards\[0\]: lacks docs"),
    (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.bin"), "must lie inside"),
    (lambda m: m.update(splits=[]), "splits: not an object"),
  ],
)
def test_a_bad_manifest_is_one_line(dataset, edit, message):
  directory, _ = dataset
  file = directory / "manifest.json"
  values = json.loads(file.read_text())
  edit(values)
  file.write_text(json.dumps(values))
  with pytest.raises(UserError, match=message) as e:
    TokenShards(directory)
  assert "\n" not in str(e.value) and str(file) in str(e.value)


def test_a_missing_dataset_manifest_or_split_is_one_line(dataset, tmp_path):
  directory, _ = dataset
  with pytest.raises(UserError, match=r"no such dataset directory; make it with `python -m"):
    TokenShards(tmp_path / "none")
  with pytest.raises(UserError, match="no split 'test'; choose one of: train"):
    TokenShards(directory, "test")
  (directory / "manifest.json").write_text("{")
  with pytest.raises(UserError, match="cannot be read as JSON"):
    TokenShards(directory)
  (directory / "manifest.json").unlink()
  with pytest.raises(UserError, match=r"manifest.json: missing"):
    TokenShards(directory)


def test_manifest_round_trip_and_fingerprint(dataset):
  directory, _ = dataset
  manifest = Manifest.load(directory)
  before = manifest.fingerprint()
  manifest.created = "later"
  assert manifest.fingerprint() == before
  manifest.source = {"files": 3}
  assert manifest.fingerprint() != before
  manifest.save(directory)
  assert Manifest.load(directory) == manifest
  assert sorted(p.name for p in directory.iterdir()) == ["manifest.json", "train"]


def test_a_copy_through_pickle_reads_the_same(dataset):
  """Breaks where a lock or a map goes along (workers get copies of an opened source)."""
  directory, ids = dataset
  shards = TokenShards(directory)
  shards.tokens(0, 10)
  data = pickle.dumps(shards)
  assert len(data) < 5000
  np.testing.assert_array_equal(pickle.loads(data).tokens(0, ids.size), ids)


def test_threads_open_maps_together(dataset):
  """Breaks where the map is published before it is complete."""
  directory, ids = dataset
  for _ in range(20):
    shards = TokenShards(directory)
    barrier = threading.Barrier(8)

    def read(i, shards=shards, barrier=barrier):
      barrier.wait()
      return shards.tokens(0, ids.size), shards.document(i)

    with ThreadPoolExecutor(8) as pool:
      for found, document in pool.map(read, range(8)):
        np.testing.assert_array_equal(found, ids)
        assert document[-1] == EOS

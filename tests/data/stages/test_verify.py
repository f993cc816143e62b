"""verify finds every kind of damage, and names the place."""

import gzip
import json

import numpy as np
import pytest

from jaxlm.data.stages import base
from jaxlm.data.stages.verify import verify
from jaxlm.data.testing import random_documents, write_dataset
from jaxlm.errors import UserError
from tests.data.stages.made_up import rewrite_record, write_lines, write_run


@pytest.fixture
def run(tmp_path):
  return tmp_path, *write_run(tmp_path)


def _problems(path):
  found = []
  with pytest.raises(UserError) as error:
    verify(path, found.append)
  assert "\n" not in str(error.value) and found[0] in str(error.value)
  return found


def test_good_stages(run):
  output, _, clean, _ = run
  assert len(verify(output)) == 3
  assert len(verify(clean)) == 1


def test_a_flipped_byte(run):
  output, _, clean, _ = run
  file = clean / "documents/00000.jsonl.gz"
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  found = _problems(output)
  assert str(file) in found[0] and "its bytes changed" in found[0]


def test_missing_and_extra_files(run):
  output, _, clean, _ = run
  (clean / "documents/00001.jsonl.gz").unlink()
  write_lines(clean / "documents/00002.jsonl.gz", [])
  found = _problems(output)
  assert any("00001.jsonl.gz: missing" in p for p in found)
  assert any("00002.jsonl.gz: not listed" in p for p in found)


def test_a_broken_chain(run):
  output, collect, _, _ = run
  rewrite_record(collect, fingerprint=base.fingerprint("another"))
  found = _problems(output)
  assert any("made from collect" in p for p in found)
  (collect / base.RECORD).unlink()
  assert any("now missing" in p for p in _problems(output))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda r: {"dropped": 2}, "total: 13 in is not 10 kept + 2 dropped + 0 errored"),
    (lambda r: {"ops": [r["ops"][0] | {"kept": 12}, r["ops"][1]]}, "words: 13 in is not 12 kept"),
    (lambda r: {"ops": [r["ops"][1]]}, "13 in, but language got 11"),
    (lambda r: {"by_source": {"web": {"in": 13, "kept": 3}}}, "by_source adds up to 3"),
    (lambda r: {"ops": [r["ops"][0] | {"reasons": {"x": 1}}, r["ops"][1]]}, "reasons add up to 1"),
    (lambda r: {"ops": None}, "damaged"),
  ],
)
def test_unbalanced_books(run, change, message):
  output, _, clean, _ = run
  rewrite_record(clean, **change(base.read_stage(clean)))
  assert any(message in p for p in _problems(output))


def test_lost_removed_documents(run):
  output, _, clean, _ = run
  write_lines(clean / "removed/words/00000.jsonl.gz", [{"id": "s0", "text": ""}])
  assert any("removed/words: 1 documents, stage.json says 2" in p for p in _problems(output))


def test_nothing_there(tmp_path):
  with pytest.raises(UserError, match="no finished stage"):
    verify(tmp_path)


def test_a_dataset(tmp_path):
  root = tmp_path / "set"
  write_dataset(root, random_documents(0, 60))
  assert len(verify(root)) == 1
  shards = sorted((root / "train").glob("*.bin"))
  for file in shards[:2]:
    ids = np.fromfile(file, "<u2")
    ids[3] += 1
    ids.tofile(file)
  shards[2].unlink()
  (root / "train/shard-00099.bin").write_bytes(b"")
  with gzip.open(root / "train/shard-00003.ids.jsonl.gz", "wt") as out:
    out.write(json.dumps({"id": "x"}) + "\n")
  found = _problems(root)
  assert len(found) == 5
  for file, problem in zip(shards[:3], found, strict=False):
    assert str(file) in problem
  assert "lists 1 documents" in found[3] and "shard-00099.bin: not listed" in found[4]


def test_a_record_without_books(run):
  """Broken by checks of each op that is listed: with none, there is nothing to check."""
  output, _, clean, _ = run
  rewrite_record(clean, ops=[])
  assert any("no books of its ops" in p for p in _problems(output))


def test_the_list_of_raw_files_and_a_manifest_without_splits(tmp_path):
  write_dataset(tmp_path, random_documents(0, 60))
  file = tmp_path / "manifest.json"
  values = json.loads(file.read_text())
  listing = tmp_path / "raw.sha256"
  listing.write_text("00  a.txt\n")
  values["source"]["raw"] = {"listing": listing.name, "sha256": base.file_sha256(listing)}
  file.write_text(json.dumps(values))
  assert verify(tmp_path)
  listing.write_text("00  b.txt\n")
  assert any("raw.sha256: its bytes changed" in p for p in _problems(tmp_path))
  listing.unlink()
  assert any("raw.sha256: missing" in p for p in _problems(tmp_path))
  file.write_text(json.dumps(values | {"splits": {}}))
  assert any("names no split" in p for p in _problems(tmp_path))

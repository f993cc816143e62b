"""The stage tokenize on made-up stages: nothing lost, one dataset or one a source, the chain."""

import json

import pytest

from jaxlm.data.manifest import Manifest
from jaxlm.data.prep.config import TokenizeConfig
from jaxlm.data.shards import TokenShards
from jaxlm.data.stages import base, tokenize, trace, verify
from jaxlm.errors import UserError
from jaxlm.tokenizers.byte import ByteTokenizer
from tests.data.stages.made_up import document, write_lines, write_stage

TOKENIZER = ByteTokenizer()
CONFIG = TokenizeConfig(bucket_bytes=2000, shard_tokens=4000, heldout_fraction=0.05)


def _documents(count=120):
  out = []
  for i in range(count):
    source = "code" if i % 3 == 0 else "web/en"
    text = f"page {i} " + "words of it ü\n" * (i % 9)
    licence = "MIT" if source == "code" else "CC-BY-4.0"
    out.append(document(f"d{i}", text, source=source, licence=licence))
  return out


@pytest.fixture
def stage(tmp_path):
  raw = tmp_path / "raw"
  raw.mkdir()
  (raw / "a.txt").write_text("raw text")
  config = {"name": "demo", "sources": {"web": {"paths": [str(raw)]}}}
  collect = write_stage(tmp_path / "out", "collect", _documents(), {"read": []}, config=config)
  kept = [{**d, "text": d["text"].strip()} for d in _documents()]
  return write_stage(tmp_path / "out", "clean", kept, {"words": []}, upstream=[collect])


@pytest.fixture
def tokenizer(tmp_path):
  TOKENIZER.save(tmp_path / "tokenizer")
  return tmp_path / "tokenizer"


def _run(stage, tokenizer, output=None, **values):
  config = values.pop("config", CONFIG)
  lines: list[str] = []
  output = output or stage.parent
  return tokenize.run(stage, output, config, tokenizer, say=lines.append, **values), lines


def _texts(root, split):
  shards = TokenShards(root, split)
  return [TOKENIZER.decode(shards.document(i)) for i in range(shards.num_docs)]


def test_the_dataset_holds_the_documents(stage, tokenizer):
  root, lines = _run(stage, tokenizer)
  manifest = Manifest.load(root)
  texts = _texts(root, "train") + _texts(root, "heldout")
  assert sorted(texts) == sorted(d["text"].strip() for d in _documents())
  assert len(verify.verify(root)) == 2
  source = manifest.source
  assert source["counts"] == {"in": 120, "encoded": 120, "skipped": {}}
  assert source["by_source"]["code"]["documents"] == 40
  assert source["licences"]["CC-BY-4.0"]["documents"] == 80
  size = sum(part.bytes for part in manifest.splits.values())
  assert sum(s["bytes"] for s in source["by_language"].values()) == size
  assert [s["stage"] for s in source["upstream"]] == ["collect", "clean"]
  assert source["upstream"][1]["sha256"] == base.file_sha256(stage / "stage.json")
  assert source["raw"]["files"] == 1 and "raw text" not in (root / "raw.sha256").read_text()
  assert manifest.splits["heldout"].baselines["gzip -9"] > 0
  assert not (root / "work.tmp").exists()
  assert any("100" not in line and "of" in line for line in lines)  # it says how far it is
  head, *pieces = trace.trace(root, row=0)  # a row leads back to its documents
  assert "row 0" in head and pieces
  assert all("https://www.a.org/d" in p and ("code" in p or "web/en" in p) for p in pieces)


def test_it_is_used_as_it_is(stage, tokenizer):
  """And another seed, tokenizer or setting makes another directory."""
  root, _ = _run(stage, tokenizer)
  before = (root / "manifest.json").stat().st_mtime_ns
  again, lines = _run(stage, tokenizer, workers=2)
  assert again == root and not lines
  assert (root / "manifest.json").stat().st_mtime_ns == before
  assert _run(stage, tokenizer, seed=1)[0] != root


def test_processes_change_no_byte(stage, tokenizer, tmp_path):
  one, _ = _run(stage, tokenizer, tmp_path / "1")
  two, _ = _run(stage, tokenizer, tmp_path / "2", workers=2)
  assert Manifest.load(one).fingerprint() == Manifest.load(two).fingerprint()
  files = sorted(f.relative_to(one) for f in one.glob("*/shard-*"))
  assert files == sorted(f.relative_to(two) for f in two.glob("*/shard-*"))
  assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)


def test_a_dataset_for_each_source(stage, tokenizer):
  config = TokenizeConfig(bucket_bytes=2000, split_by_source=True, heldout_fraction=0.05)
  root, _ = _run(stage, tokenizer, config=config)
  folders = json.loads((root / "datasets.json").read_text())
  assert folders == {"code": "code", "web/en": "web_en"}
  for source, folder in folders.items():
    manifest = Manifest.load(root / folder)
    manifest.verify(root / folder, full=True)
    texts = _texts(root / folder, "train") + _texts(root / folder, "heldout")
    wanted = [d["text"].strip() for d in _documents() if d["metadata"]["source"] == source]
    assert sorted(texts) == sorted(wanted)
    assert list(manifest.source["by_source"]) == [source] and len(manifest.source["licences"]) == 1
  assert _run(stage, tokenizer, config=config)[0] == root


def test_a_damaged_stage_is_named(stage, tokenizer):
  file = stage / "documents/00001.jsonl.gz"
  whole = file.read_bytes()
  file.write_bytes(whole[:-30])
  with pytest.raises(UserError, match=r"00001\.jsonl\.gz: its bytes changed"):
    _run(stage, tokenizer)
  file.unlink()
  with pytest.raises(UserError, match=r"00001\.jsonl\.gz: missing"):
    _run(stage, tokenizer)
  file.write_bytes(whole)
  assert _run(stage, tokenizer)[0].is_dir()
  base.write_stage_json(stage, base.read_stage(stage) | {"kept": 121})
  with pytest.raises(UserError, match=r"120 documents were read, but stage\.json says 121"):
    _run(stage, tokenizer, seed=5)


def test_few_documents(tmp_path, tokenizer):
  """One document can not be held out: it says so, and the dataset has no such split."""
  stage = write_stage(tmp_path / "few", "collect", [document("a", "only one here")], {})
  root, lines = _run(stage, tokenizer)
  assert list(Manifest.load(root).splits) == ["train"]
  assert any("too few documents to hold one out" in line for line in lines)


def test_empty_documents_are_counted(tmp_path, tokenizer):
  documents = [document("a", ""), *_documents(30)]
  stage = write_stage(tmp_path / "x", "collect", documents, {})
  root, _ = _run(stage, tokenizer)
  assert Manifest.load(root).source["counts"]["skipped"] == {"empty": 1}
  write_lines(stage / "documents/00000.jsonl.gz", [document("a", "")])
  write_lines(stage / "documents/00001.jsonl.gz", [])
  base.write_stage_json(stage, base.read_stage(stage) | {"kept": 1})
  with pytest.raises(UserError, match="all documents are empty"):
    _run(stage, tokenizer, seed=2)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"shard_tokens": 0}, r"t\.shard_tokens=0"),
    ({"bucket_bytes": 0}, r"t\.bucket_bytes=0"),
    ({"heldout_fraction": 0.0}, r"t\.heldout_fraction=0\.0"),
    ({"heldout_max_bytes": 0}, r"t\.heldout_max_bytes=0"),
  ],
)
def test_validate(values, message):
  with pytest.raises(UserError, match=message):
    TokenizeConfig(**values).validate("t")

"""A document is followed through the stages; a preview shows the rows that training gets."""

import pytest

from jaxlm.data.manifest import Manifest
from jaxlm.data.stages.inspect import find, preview
from jaxlm.data.testing import write_dataset
from jaxlm.errors import UserError
from jaxlm.tokenizers.byte import ByteTokenizer
from tests.data.stages.made_up import write_run


def test_a_document_that_was_removed(tmp_path):
  write_run(tmp_path)
  text = "\n".join(find(tmp_path, "copy"))
  assert "collect: kept" in text and "dedup: removed by minhash: near duplicate" in text
  assert "duplicate_of: None → 'd5'" in text
  lines = find(tmp_path, "low")
  assert any(line.startswith("clean: removed by language") for line in lines)
  assert not any(line.startswith("dedup") for line in lines)


def test_a_document_that_was_changed(tmp_path):
  write_run(tmp_path)
  lines = find(tmp_path, "https://www.a.org/d1")  # a url serves as well
  at = lines.index("  text changed, 47 → 46 characters")
  assert lines[at + 4 : at + 6] == [
    "  -page number 1 has words enough to be kept word ",
    "  +page number 1 has words enough to be kept word",
  ]
  assert lines[-2:] == ["dedup: kept (passed minhash)", "  text unchanged"]


def test_no_such_document(tmp_path):
  write_run(tmp_path)
  with pytest.raises(UserError, match="no stage has a document"):
    find(tmp_path, "nothing")


def test_preview(tmp_path):
  tokenizer = ByteTokenizer()
  texts = ["first text", "second", "and a third one, longer"]
  write_dataset(
    tmp_path,
    [tokenizer.encode(t) for t in texts],
    vocab_size=257,
    eos_id=256,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(tmp_path / "tokenizer")
  total = Manifest.load(tmp_path).splits["train"].tokens
  lines = preview(tmp_path, 1, total - 1)
  assert lines[0].startswith("row 0: source data, 3 segments, loss on 100.0%")
  at = [lines.index(f"  {t}") for t in texts]
  assert at == sorted(at) and lines.count("  ── end of document") == 3
  assert "100.00% (asked for 100.00% at row 0)" in lines[-1]

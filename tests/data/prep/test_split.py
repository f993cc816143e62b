"""No held-out text is in the training split, whatever the number and size of the documents."""

import random

import pytest

from jaxlm.data.prep.documents import Document, Spool
from jaxlm.data.prep.split import collect, split
from jaxlm.errors import UserError


def _split(tmp_path, texts, fraction=0.02, max_bytes=10**9, seed=0):
  with Spool(tmp_path / "spool") as spool:
    found = collect([Document(str(i), t) for i, t in enumerate(texts)], spool)
    splits = split(spool, found.digests, fraction, max_bytes, seed)
    train = [spool.read(i).decode() for i in splits.train]
    heldout = [spool.read(i).decode() for i in splits.heldout]
  return train, heldout, splits.cut_document, found


def _documents(number, seed=0):
  rng = random.Random(seed)
  return [f"{i}: " + "word " * rng.randrange(5, 200) for i in range(number)]


@pytest.mark.parametrize("number", [10, 100, 1000])
def test_whole_documents(tmp_path, number):
  """Every distinct document is on exactly one side, and about the fraction is held out."""
  texts = _documents(number)
  train, heldout, cut, _ = _split(tmp_path, texts)
  assert not cut
  assert sorted(train + heldout) == sorted(texts)
  size = sum(map(len, texts))
  assert 0 < sum(map(len, heldout)) <= max(0.04 * size, 0.1 * size)
  if number == 1000:
    assert 0.018 * size <= sum(map(len, heldout)) <= 0.025 * size


def test_duplicates_are_dropped_before_the_split(tmp_path):
  """Without it a document could be held out under one name and trained on under another."""
  texts = _documents(50)
  again = [t + "\n\n" for t in texts[:20]]
  train, heldout, _, found = _split(tmp_path, texts + again + texts[:5], fraction=0.3)
  assert found.duplicates == 25
  assert found.duplicate_bytes == sum(map(len, again + texts[:5]))
  assert sorted(train + heldout) == sorted(texts)


def test_choice_depends_on_content_and_seed_only(tmp_path):
  texts = _documents(200)
  _, heldout, _, _ = _split(tmp_path, texts)
  _, backwards, _, _ = _split(tmp_path, texts[::-1])
  _, other, _, _ = _split(tmp_path, texts, seed=1)
  assert heldout == backwards
  assert set(heldout) != set(other)


def test_bound_in_bytes(tmp_path):
  texts = _documents(300)
  _, heldout, cut, _ = _split(tmp_path, texts, fraction=0.5, max_bytes=5000)
  assert not cut and 0 < sum(map(len, heldout)) <= 5000


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize(
  "body", ["a line of text\n", "one two ", "日本語", "x", "é\r\n"], ids=lambda b: repr(b)
)
def test_few_documents_are_cut(tmp_path, number, body):
  """The end of the longest is held out: no text lost, none on both sides, no character cut."""
  texts = [f"{i}" + body * (200 + i) for i in range(number)]
  train, heldout, cut, _ = _split(tmp_path, texts, fraction=0.05)
  assert cut and len(heldout) == 1 and len(train) == number
  whole = texts[-1]
  head = next(t for t in train if whole.startswith(t))
  assert head + heldout[0] == whole
  size = sum(len(t.encode()) for t in texts)
  assert 0 < len(heldout[0].encode()) <= 0.05 * size + 3
  if "\n" in body:
    assert head.endswith("\n")


def test_one_long_line_end_far_away(tmp_path):
  """A line end that leaves almost nothing behind it is not used: the cut falls elsewhere."""
  text = "y" * 5000 + "\nz"
  _, heldout, _, _ = _split(tmp_path, [text], fraction=0.1)
  assert len(heldout[0]) > 100


@pytest.mark.parametrize("texts", [[], [""], ["tiny"]])
def test_too_little_text(tmp_path, texts):
  with pytest.raises(UserError, match="bytes of text were found"):
    _split(tmp_path, texts)


def test_smallest_corpus(tmp_path):
  train, heldout, cut, _ = _split(tmp_path, ["日" * 22])
  assert cut and train[0] + heldout[0] == "日" * 22 and heldout[0]

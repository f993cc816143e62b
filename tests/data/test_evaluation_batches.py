"""Evaluation: each token of a split is a target once, with its document as context."""

import numpy as np
import pytest

from jaxlm.data.config import SyntheticConfig, TokenShardsConfig
from jaxlm.data.pipeline import evaluation_batches
from jaxlm.data.testing import EOS, write_dataset
from jaxlm.errors import UserError


def _predicted(batches):
  return np.concatenate([b["targets"][b["loss_weights"] > 0] for b in batches])


@pytest.mark.parametrize("seq_len", [2, 16, 37, 5000])
@pytest.mark.parametrize("batch_size, shards", [(1, 1), (4, 1), (4, 2), (6, 3)])
def test_each_token_is_predicted_once_in_order(dataset, seq_len, batch_size, shards):
  """Breaks where the remainder of a row, of a batch, or the first token is lost or doubled."""
  directory, ids = dataset
  source = TokenShardsConfig(path=str(directory)).build(seq_len)
  hosts = [
    list(evaluation_batches(source, batch_size, shard_index=h, shard_count=shards))
    for h in range(shards)
  ]
  assert len({len(batches) for batches in hosts}) == 1
  found = []
  for step in zip(*hosts):
    assert all(b["inputs"].shape == (batch_size // shards, seq_len) for b in step)
    found += step
  np.testing.assert_array_equal(_predicted(found), ids)
  whole = np.concatenate([[EOS], ids])
  inputs = np.concatenate([b["inputs"][b["loss_weights"] > 0] for b in found])
  np.testing.assert_array_equal(inputs, whole[:-1])
  for b in found:
    padding = b["loss_weights"] == 0
    assert not any(values[padding].any() for values in b.values())
    assert (b["segment_ids"][~padding] > 0).all()


def test_max_rows_and_segments(dataset):
  directory, ids = dataset
  source = TokenShardsConfig(path=str(directory)).build(16)
  batches = list(evaluation_batches(source, 4, max_rows=6))
  assert len(batches) == 2
  np.testing.assert_array_equal(_predicted(batches), ids[:96])
  assert len(np.unique(batches[0]["segment_ids"])) > 1
  plain = next(evaluation_batches(source, 4, attend_across_documents=True))
  assert (plain["segment_ids"] == 1).all()


def test_a_split_shorter_than_a_row_is_evaluated(tmp_path):
  ids = write_dataset(tmp_path, [[10, 11, 12]])
  source = TokenShardsConfig(path=str(tmp_path)).build(64)
  (batch,) = evaluation_batches(source, 2)
  assert batch["targets"][0, :4].tolist() == ids.tolist()
  assert batch["loss_weights"].sum() == 4


def test_an_empty_split_is_refused(tmp_path):
  write_dataset(tmp_path, [])
  source = TokenShardsConfig(path=str(tmp_path)).build(8)
  with pytest.raises(UserError, match="no tokens to evaluate"):
    evaluation_batches(source, 2)


def test_other_sources_are_evaluated_by_rows():
  source = SyntheticConfig(vocab_size=9, num_rows=5).build(4)
  batches = list(evaluation_batches(source, 2))
  expected = np.concatenate([source[r][1:] for r in range(5)])
  np.testing.assert_array_equal(_predicted(batches), expected)

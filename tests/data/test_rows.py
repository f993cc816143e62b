"""The segment rule: which document, position and weight each target has."""

import numpy as np

from jaxlm.data.rows import batch_from_rows, clear_padding

E = 9
ROW = np.array([[1, 2, E, 3, 4, E, E, 5, 6]])


def test_segments_positions_and_weights_of_a_row():
  batch = batch_from_rows(ROW, E)
  assert batch["inputs"].tolist() == [[1, 2, E, 3, 4, E, E, 5]]
  assert batch["targets"].tolist() == [[2, E, 3, 4, E, E, 5, 6]]
  assert batch["segment_ids"].tolist() == [[1, 1, 2, 2, 2, 3, 4, 4]]
  assert batch["positions"].tolist() == [[0, 1, 0, 1, 2, 0, 0, 1]]
  assert batch["loss_weights"].tolist() == [[1] * 8]


def test_every_target_is_in_the_document_of_its_input():
  """Breaks where EOS is given to the document it ends: its target is then another document's."""
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 6, (20, 65))
  batch = batch_from_rows(rows, 0)
  for row, segments, positions in zip(rows, batch["segment_ids"], batch["positions"]):
    document, place = 1, -1
    for t in range(64):
      document, place = (document + 1, 0) if row[t] == 0 else (document, place + 1)
      assert (segments[t], positions[t]) == (document, place)


def test_first_tokens_can_be_left_out():
  batch = batch_from_rows(ROW, E, predict_first_token=False)
  assert batch["loss_weights"].tolist() == [[1, 1, 0, 1, 1, 0, 0, 1]]


def test_attention_across_documents_is_one_segment():
  batch = batch_from_rows(ROW, E, attend_across_documents=True, predict_first_token=False)
  assert batch["segment_ids"].tolist() == [[1] * 8]
  assert batch["positions"].tolist() == [list(range(8))]
  assert batch["loss_weights"].tolist() == [[1, 1, 0, 1, 1, 0, 0, 1]]


def test_a_source_without_eos_has_one_document_a_row():
  a = batch_from_rows(ROW, None, predict_first_token=False)
  b = batch_from_rows(ROW, E, attend_across_documents=True)
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def test_dtypes_and_padding():
  batch = batch_from_rows(np.repeat(ROW, 2, 0), E)
  clear_padding(batch, np.array([8, 3]))
  for key, values in batch.items():
    assert values.dtype == (np.float32 if key == "loss_weights" else np.int32)
    assert values.flags.c_contiguous and values.shape == (2, 8)
    assert not values[1, 3:].any()
    np.testing.assert_array_equal(values[0], batch_from_rows(ROW, E)[key][0])


def test_a_batch_of_one_row_has_memory_of_its_own():
  """Breaks where inputs and targets are views of one buffer: clearing one changes the other."""
  row = ROW.astype(np.int32)
  batch = batch_from_rows(row, E)
  assert not np.shares_memory(batch["inputs"], batch["targets"])
  assert not np.shares_memory(batch["inputs"], row)

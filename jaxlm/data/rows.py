"""Rows of ids to model inputs: shifted targets, documents, positions and loss weights."""

import numpy as np


def batch_from_rows(
  rows: np.ndarray,
  eos_id: int | None,
  *,
  attend_across_documents: bool = False,
  predict_first_token: bool = True,
) -> dict[str, np.ndarray]:
  """Cuts rows into inputs and targets and finds the documents in them.

  An EOS as input opens the next document: it serves as its first symbol, and is given the segment
  of the document that it precedes. So every target lies in its input's document.

  Args:
    rows: integers, shape (batch, seq_len + 1).
    eos_id: the id that ends a document; None: every row is one document.
    attend_across_documents: True: one segment a row, positions 0 … seq_len - 1.
    predict_first_token: False: weight 0 where the input is EOS.

  Returns:
    inputs, targets, segment_ids (from 1; 0 is padding), positions (from 0 in each segment): int32;
    loss_weights: float32; all of shape (batch, seq_len).
  """
  assert rows.ndim == 2 and rows.shape[1] >= 2
  # Always copies: a slice of a single row is contiguous already, and `ascontiguousarray` would
  # leave inputs and targets two views of the same memory.
  inputs = np.array(rows[:, :-1], np.int32, order="C")
  targets = np.array(rows[:, 1:], np.int32, order="C")
  steps = np.arange(inputs.shape[1], dtype=np.int32)
  is_eos = None if eos_id is None else inputs == eos_id
  if is_eos is None or attend_across_documents:
    segment_ids = np.ones(inputs.shape, np.int32)
    positions = np.tile(steps, (inputs.shape[0], 1))
  else:
    segment_ids = np.cumsum(is_eos, axis=1, dtype=np.int32) + np.int32(1)
    begins = np.maximum.accumulate(np.where(is_eos, steps, np.int32(0)), axis=1)
    positions = steps - begins
  if is_eos is None or predict_first_token:
    loss_weights = np.ones(inputs.shape, np.float32)
  else:
    loss_weights = (~is_eos).astype(np.float32)
  return {
    "inputs": inputs,
    "targets": targets,
    "segment_ids": segment_ids,
    "positions": positions,
    "loss_weights": loss_weights,
  }


def clear_padding(batch: dict[str, np.ndarray], lengths: np.ndarray) -> None:
  """Sets everything from column lengths[i] of row i on to 0, in place.

  lengths: integers, shape (batch,): predicted tokens of each row.
  """
  padding = np.arange(batch["inputs"].shape[1]) >= np.asarray(lengths)[:, None]
  for values in batch.values():
    values[padding] = 0

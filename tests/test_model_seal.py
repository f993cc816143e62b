"""Checkpoints from before a model's config got a field still fit their model."""

import dataclasses

from jaxlm.config import model_fingerprint
from jaxlm.models.config import DecoderConfig
from jaxlm.models.mup import MupConfig

# Of DecoderConfig(vocab_size=100) before the fields of MODEL_LATER were there.
BEFORE = "70a464d422005e040d9ceed07ea36972da056dc9e24b24e38f76a41423e0c478"


def test_new_fields_leave_old_seals_valid():
  """Broken by a new field of DecoderConfig that is not in MODEL_LATER: its runs could not go on."""
  config = DecoderConfig(vocab_size=100)
  assert model_fingerprint(config) == BEFORE
  # Once set, they count.
  for change in ({"mup": MupConfig()}, {"sliding_window": 4}, {"num_layers": 3}):
    assert model_fingerprint(dataclasses.replace(config, **change)) != BEFORE

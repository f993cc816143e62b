"""Prefix-LM: how much of each document is its prefix."""

import numpy as np

from jaxlm.data.chance import uniform
from jaxlm.data.task import PrefixConfig, Task


class Prefix(Task):
  """See PrefixConfig. Adds `prefix` to a batch: int32, 1 where a token is in its document's."""

  evaluated = True

  def __init__(self, config: PrefixConfig, seed: int):
    self._rate, self._seed = config.rate, seed

  def on_batch(self, batch: dict[str, np.ndarray], numbers: np.ndarray) -> None:
    segments, positions = batch["segment_ids"], batch["positions"]
    B, T = segments.shape
    # A batch with one segment a row has 1 there; others count up from 1. 0 is padding.
    lengths = np.zeros((B, T + 2), np.int64)
    np.add.at(lengths, (np.arange(B)[:, None], segments), 1)
    has = uniform(self._seed, "prefix/has", numbers, T + 2) < self._rate
    share = uniform(self._seed, "prefix/share", numbers, T + 2)
    cuts = np.where(has, np.floor(share * lengths), 0).astype(np.int64)
    cuts[:, 0] = 0
    cut = np.take_along_axis(cuts, segments.astype(np.int64), axis=1)
    batch["prefix"] = (positions < cut).astype(np.int32)
    # A target inside the prefix was seen already.
    batch["loss_weights"] *= positions + 1 >= cut

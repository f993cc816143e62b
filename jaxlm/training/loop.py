"""The training loop: launch a step, then look at the one before it. It never waits for a step that
it has just launched, so the device always has work."""

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from jaxlm.batch import Batch
from jaxlm.sharding import Layout, to_device
from jaxlm.training.state import TrainState

Metrics = dict[str, float]


class Listener(Protocol):
  """What looks at training from outside."""

  def on_step(self, step: int, metrics: Metrics, data_seconds: float) -> None:
    """Called once for each step, after it has finished. `step` counts updates, from 1."""

  def on_pause(self) -> None:
    """Called after time that was not spent on training (a save, an evaluation)."""


class Batches(Protocol):
  """A host's batches, and how many rows of all hosts were taken so far."""

  next_row: int

  def __next__(self) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(kw_only=True)
class Loop:
  """Trains from a state to a step.

  Attributes:
    step_fn: the jitted train step, its state donated.
    layout: the mesh that batches are spread over.
    batches: this host's rows.
    listener: sees every step.
    save: save(state, step, next_row) starts a checkpoint.
    save_every: steps between checkpoints, 0: none but the last.
    evaluate: evaluate(state, step), or None.
    evaluate_every: steps between evaluations, 0: none.
    preempted: preempted(step) tells whether to stop.
    use_segments: False: every row is one document.
  """

  step_fn: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  layout: Layout
  batches: Batches
  listener: Listener
  save: Callable[[TrainState, int, int], None]
  save_every: int
  evaluate: Callable[[TrainState, int], None] | None = None
  evaluate_every: int = 0
  preempted: Callable[[int], bool] = lambda step: False
  use_segments: bool = True

  def run(self, state: TrainState, start_step: int, num_steps: int) -> tuple[TrainState, bool]:
    """Runs steps start_step … num_steps - 1.

    Returns:
      The last state, and whether it was cut short. Either way the last state was saved.
    """
    pending: tuple[int, dict[str, jax.Array], float] | None = None
    batch, next_row, waited = self._next()
    for index in range(start_step, num_steps):
      state, metrics = self.step_fn(state, batch)
      step, consumed, step_waited = index + 1, next_row, waited
      if step < num_steps:
        batch, next_row, waited = self._next()
      self._report(pending)
      pending = (step, metrics, step_waited)

      stop = self.preempted(step)
      saves = stop or step == num_steps or bool(self.save_every and step % self.save_every == 0)
      evaluates = bool(
        self.evaluate and self.evaluate_every and step % self.evaluate_every == 0 and not stop
      )
      if saves or evaluates:
        self._report(pending)
        pending = None
        if saves:
          self.save(state, step, consumed)
        if evaluates and self.evaluate:
          self.evaluate(state, step)
        self.listener.on_pause()
      if stop and step < num_steps:
        return state, True
    return state, False

  def _next(self) -> tuple[Batch, int, float]:
    started = time.perf_counter()
    arrays = next(self.batches)
    waited = time.perf_counter() - started
    batch = to_device(arrays, self.layout, use_segments=self.use_segments)
    return batch, self.batches.next_row, waited

  def _report(self, pending: tuple[int, dict[str, jax.Array], float] | None) -> None:
    if pending is not None:
      step, metrics, waited = pending
      values = {name: float(value) for name, value in jax.device_get(metrics).items()}
      self.listener.on_step(step, values, waited)

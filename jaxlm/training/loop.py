"""The training loop: launch a step, then look at the one before it. It never waits for a step that
it has just launched, so the device always has work."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from jaxlm.batch import Batch
from jaxlm.errors import UserError
from jaxlm.sharding import Layout, to_device
from jaxlm.training.state import TrainState

Metrics = dict[str, float]


class NotFiniteError(UserError):
  """Training can't go on: a loss, a gradient or the weights are not finite.

  step: the step that was not. skippable: whether it may be its rows alone.
  """

  def __init__(self, text: str, step: int, *, skippable: bool = True):
    super().__init__(text)
    self.step = step
    self.skippable = skippable


@dataclasses.dataclass(frozen=True)
class _Launched:
  """A step that was launched: its number, metrics, wait for data, and rows (first, end)."""

  step: int
  metrics: dict[str, jax.Array]
  waited: float
  rows: tuple[int, int]


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
    max_skipped_steps: steps in a row that may be not finite. Above 0 only with a step_fn that then
      leaves the state as it was.
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
  max_skipped_steps: int = 0

  def run(self, state: TrainState, start_step: int, num_steps: int) -> tuple[TrainState, bool]:
    """Runs steps start_step … num_steps - 1.

    Returns:
      The last state, and whether it was cut short. Either way the last state was saved.

    Raises:
      NotFiniteError: the weights are not finite, or more than max_skipped_steps steps in a row were
        not. Nothing was saved after the first of them.
    """
    pending: _Launched | None = None
    self._skipped, self._in_a_row, due = 0, 0, False
    first_row = self.batches.next_row
    batch, next_row, waited = self._next()
    for index in range(start_step, num_steps):
      state, metrics = self.step_fn(state, batch)
      step, consumed, step_waited = index + 1, next_row, waited
      if step < num_steps:
        batch, next_row, waited = self._next()
      self._report(pending)
      pending = _Launched(step, metrics, step_waited, (first_row, consumed))
      first_row = consumed

      stop = self.preempted(step)
      ends = stop or step == num_steps
      due = due or bool(self.save_every and step % self.save_every == 0)
      saves = ends or due
      evaluates = bool(
        self.evaluate and self.evaluate_every and step % self.evaluate_every == 0 and not stop
      )
      if saves or evaluates:
        self._report(pending)
        pending = None
        # In a series of skipped steps the state may be one that no rows are good for: it must not
        # push out the checkpoint before it.
        if saves and (ends or not self._in_a_row):
          self.save(state, step, consumed)
          due = False
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

  def _report(self, launched: _Launched | None) -> None:
    """Waits for a step and shows it; ends the run where it must not go on."""
    if launched is None:
      return
    values = {name: float(value) for name, value in jax.device_get(launched.metrics).items()}
    bad = [n for n in ("loss", "objective", "grad_norm") if not math.isfinite(values.get(n, 0.0))]
    self._in_a_row = self._in_a_row + 1 if bad else 0
    self._skipped += bool(bad)
    if self._skipped and self.max_skipped_steps:
      values["skipped_steps"] = float(self._skipped)
    self.listener.on_step(launched.step, values, launched.waited)
    weights = values.get("param_norm", 0.0)  # before the step's update
    if not math.isfinite(weights):
      text = f"step {launched.step}: the weights are not finite (norm {weights})"
      raise NotFiniteError(text, launched.step, skippable=False)
    if self._in_a_row > self.max_skipped_steps:
      first, end = launched.rows
      series = f", as in the {self._in_a_row - 1} steps before" if self._in_a_row > 1 else ""
      shown = ", ".join(f"{name} {values[name]}" for name in bad)
      raise NotFiniteError(
        f"step {launched.step}: not finite ({shown}), on rows {first}-{end - 1}{series}",
        launched.step,
      )

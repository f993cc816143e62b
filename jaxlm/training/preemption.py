"""SIGTERM: finish the step, save, exit with the status that asks to be started again."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType

import jax


class Preemption:
  """Listens for SIGTERM while it is entered. A second SIGTERM ends the process at once.

  With several processes JAX's own service tells all of them, and all agree on the step: pass its
  `reached` (Orbax's reached_preemption). With one process that service does not run, so the signal
  is caught here.
  """

  def __init__(self, reached: Callable[[int], bool]):
    self._reached = reached
    self._signalled = False
    self._single = jax.process_count() == 1

  def __enter__(self) -> "Preemption":
    if self._single:
      self._previous = signal.signal(signal.SIGTERM, self._on_signal)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._single:
      signal.signal(signal.SIGTERM, self._previous)

  def _on_signal(self, number: int, frame: FrameType | None) -> None:
    if self._signalled:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
      signal.raise_signal(signal.SIGTERM)
    self._signalled = True

  def requested(self, step: int) -> bool:
    """Whether to stop now. Call it once a step, on every process, with the same step."""
    return self._signalled if self._single else self._reached(step)

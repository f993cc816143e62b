"""The live progress of a run: a bar on a terminal, a line now and then in a log."""

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

LINE_SECONDS = 10.0


class Progress:
  """Shows steps, loss, tokens/s and the time left, on stderr.

    with Progress(total_steps=100, initial_step=0, tokens_per_step=8192) as progress:
      progress.update(step=1, loss=4.2, tokens_per_second=1e5)

  `step` counts finished steps. Where stderr is no terminal: a plain line for the first update, the
  last step, and at most every 10 seconds between.
  """

  def __init__(
    self,
    total_steps: int,
    initial_step: int = 0,
    tokens_per_step: int = 0,
    *,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._total = total_steps
    self._initial = initial_step
    self._tokens_per_step = tokens_per_step
    self._stream = sys.stderr if stream is None else stream
    self._clock = clock
    self._last_line = -math.inf
    self._bar: Any = None
    self._task: Any = None

  def __enter__(self) -> "Progress":
    if self._stream.isatty():
      from rich.console import Console
      from rich.progress import BarColumn, TextColumn
      from rich.progress import Progress as Bar

      self._bar = Bar(
        TextColumn("step"),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}", markup=False),
        console=Console(file=self._stream),
        expand=True,
      )
      self._task = self._bar.add_task("", total=self._total, completed=self._initial, status="")
      self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._bar is not None:
      self._bar.stop()
      self._bar = None

  def update(self, step: int, loss: float, tokens_per_second: float) -> None:
    """Shows that `step` steps are finished, the last with this loss."""
    status = f"loss {loss:.4f}  {short(tokens_per_second)} tok/s"
    if tokens_per_second > 0 and self._tokens_per_step:
      seconds = (self._total - step) * self._tokens_per_step / tokens_per_second
      status += f"  {duration(seconds)} left"
    if self._bar is not None:
      self._bar.update(self._task, completed=step, status=status)
      return
    now = self._clock()
    if step >= self._total or now - self._last_line >= LINE_SECONDS:
      self._last_line = now
      self.message(f"step {step}/{self._total}  {status}")

  def message(self, text: str) -> None:
    """Prints a line (above the bar, where there is one)."""
    if self._bar is not None:
      self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
      print(text, file=self._stream, flush=True)


def short(value: float) -> str:
  """A number in three digits: 950, 12.3k, 4.56M."""
  for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if value >= limit:
      return f"{value / limit:.3g}{unit}" if value / limit < 999.5 else f"{value / limit:.0f}{unit}"
  return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def duration(seconds: float) -> str:
  """A time as 45s, 3m20s, 2h05m or 3d04h."""
  whole = max(round(seconds), 0)
  if whole < 60:
    return f"{whole}s"
  if whole < 3600:
    return f"{whole // 60}m{whole % 60:02d}s"
  if whole < 86400:
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
  return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"

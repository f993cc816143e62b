"""What a run shows and records of itself while it trains."""

import math
from collections.abc import Callable

from jaxlm.metrics import Throughput, device_memory, mfu
from jaxlm.tracking.base import Tracker
from jaxlm.tracking.progress import Progress

# How far the first loss may be from that of a uniform guess, in nats.
FIRST_LOSS_TOLERANCE = 1.0


class Monitor:
  """Turns the numbers of each step into a progress bar and records.

  Args:
    tracker: where records go.
    progress: the bar.
    learning_rate: step (from 0) -> learning rate.
    tokens_per_step: targets of a global batch, padding included.
    flops_per_token: forward and backward, of the formula 6 N_matmul + 12 L H K T.
    peak_flops: FLOP/s of all devices, or None where unknown.
    uniform_loss: ln(vocabulary): what an untrained model should show at its first step.
    log_every: steps between records.
    first_step: the first step that will be seen, from 1.
    start_tokens: targets of the steps before it (of other batch sizes perhaps).
  """

  def __init__(
    self,
    tracker: Tracker,
    progress: Progress,
    *,
    learning_rate: Callable[[int], float],
    tokens_per_step: int,
    flops_per_token: float,
    peak_flops: float | None,
    uniform_loss: float,
    log_every: int,
    first_step: int,
    start_tokens: int = 0,
  ):
    self.tracker, self.progress = tracker, progress
    self._learning_rate = learning_rate
    self._tokens_per_step = tokens_per_step
    self._flops_per_token, self._peak = flops_per_token, peak_flops
    self._uniform_loss, self._log_every = uniform_loss, log_every
    self._first_step, self._start_tokens = first_step, start_tokens
    self._throughput = Throughput()
    self._skipped = 0.0

  def on_step(self, step: int, metrics: dict[str, float], data_seconds: float) -> None:
    """See training.loop.Listener."""
    if step == self._first_step:
      # Most of the first step's time is compilation, which is not speed.
      self._throughput.restart()
      if step == 1:
        self._check_first_loss(metrics["loss"])
    else:
      self._throughput.add(self._tokens_per_step, data_seconds)
    speed = self._throughput.values()
    rate = speed.get("tokens_per_second", 0.0)
    self.progress.update(step, metrics["loss"], rate)
    if metrics.get("skipped_steps", 0.0) > self._skipped:
      self._skipped = metrics["skipped_steps"]
      self.progress.message(
        f"warning: step {step} skipped: loss {metrics['loss']}, gradient norm"
        f" {metrics.get('grad_norm')} ({self._skipped:.0f} skipped since this start)"
      )
    if step % self._log_every and step != self._first_step:
      return
    steps = step - self._first_step + 1
    values = {
      **metrics,
      "perplexity": math.exp(min(metrics["loss"], 700.0)),
      "learning_rate": float(self._learning_rate(step - 1)),
      "tokens": float(self._start_tokens + steps * self._tokens_per_step),
      "data_seconds": data_seconds,
      **speed,
      **device_memory(),
    }
    utilisation = mfu(rate, self._flops_per_token, self._peak)
    if utilisation is not None and rate:
      values["mfu"] = utilisation
    self.tracker.log(step, values)

  def on_pause(self) -> None:
    """See training.loop.Listener."""
    self._throughput.restart()

  def _check_first_loss(self, loss: float) -> None:
    if not math.isfinite(loss) or abs(loss - self._uniform_loss) > FIRST_LOSS_TOLERANCE:
      self.progress.message(
        f"warning: the first loss is {loss:.3f}, but an untrained model guesses uniformly: "
        f"ln(vocabulary) = {self._uniform_loss:.3f}. Suspects: a vocab_size that is not the "
        "tokenizer's, init_std too large, or loss_weights that are not 0 or 1"
      )

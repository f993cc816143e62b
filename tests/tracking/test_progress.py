"""Progress: a bar on a terminal, few plain lines elsewhere."""

import io

import pytest

from jaxlm.tracking.progress import Progress, duration, short


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_plain_lines_are_few():
  # Breaks if a log file gets a line a step, or loses its first or last step.
  stream, now = io.StringIO(), [0.0]
  with Progress(100, 0, 1000, stream=stream, clock=lambda: now[0]) as progress:
    for step in range(1, 101):
      now[0] += 0.25
      progress.update(step, loss=5 - step / 100, tokens_per_second=4000.0)
    progress.message("saved [step 100]")
  assert stream.getvalue().splitlines() == [
    "step 1/100  loss 4.9900  4k tok/s  25s left",
    "step 41/100  loss 4.5900  4k tok/s  15s left",
    "step 81/100  loss 4.1900  4k tok/s  5s left",
    "step 100/100  loss 4.0000  4k tok/s  0s left",
    "saved [step 100]",
  ]


def test_bar_on_a_terminal(monkeypatch):
  monkeypatch.setenv("COLUMNS", "100")
  stream = Terminal()
  with Progress(100, 40, 1000, stream=stream) as progress:
    progress.update(41, loss=4.25, tokens_per_second=0.0)
    progress.message("saved [step 41] to a/b")
    progress.update(42, loss=4.125, tokens_per_second=1000.0)
  text = stream.getvalue()
  assert "42/100" in text and "loss 4.1250" in text and "58s left" in text
  assert "saved [step 41] to a/b" in text, "square brackets are text, not markup"


def test_an_error_inside_leaves_the_terminal_in_order():
  stream = Terminal()
  with pytest.raises(RuntimeError), Progress(10, stream=stream):
    raise RuntimeError
  assert "\x1b[?25h" in stream.getvalue(), "the cursor is shown again"


def test_numbers():
  assert [short(x) for x in (0.5, 950, 999.9, 12345, 999_999, 4.56e6, 1.2e10)] == [
    "0.5", "950", "1000", "12.3k", "1000k", "4.56M", "12G",
  ]  # fmt: skip
  assert [duration(x) for x in (0.2, 59.6, 200, 7500, 273_600)] == [
    "0s", "1m00s", "3m20s", "2h05m", "3d04h",
  ]  # fmt: skip

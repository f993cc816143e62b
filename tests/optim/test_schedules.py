"""Schedules against their closed forms."""

import math

import jax
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind

PEAK, NUM_STEPS, WARMUP = 0.02, 50, 10


def closed_form(config: ScheduleConfig, step: int) -> float:
  """The same in plain Python, from the definition: no clipping, no where."""
  w, f, n = max(config.warmup_steps, 1), config.final_fraction, NUM_STEPS
  if step < w:
    return PEAK * (step + 1) / w
  t = (step - w + 1) / (n - w)
  decay_from = n - round(config.decay_fraction * n)
  return (
    PEAK
    * {
      ScheduleKind.COSINE: f + (1 - f) * (1 + math.cos(math.pi * t)) / 2,
      ScheduleKind.LINEAR: 1 - (1 - f) * t,
      ScheduleKind.WSD: 1.0
      if step < decay_from
      else 1 - (1 - f) * math.sqrt((step - decay_from + 1) / (n - decay_from)),
      ScheduleKind.INVERSE_SQRT: math.sqrt(w / (step + 1)),
      ScheduleKind.CONSTANT: 1.0,
    }[config.kind]
  )


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_closed_form_and_shape(kind, warmup):
  # Breaks on an off-by-one at either end of the warm-up or of the decay.
  config = ScheduleConfig(kind=kind, warmup_steps=warmup)
  schedule = config.build(PEAK, NUM_STEPS)
  steps = np.arange(NUM_STEPS)
  values = np.asarray(jax.jit(schedule)(steps))
  assert values.dtype == np.float32
  np.testing.assert_allclose(values, [closed_form(config, int(s)) for s in steps], rtol=2e-5)
  np.testing.assert_allclose(values, [schedule(int(s)) for s in steps], rtol=1e-6)
  peak_at = max(warmup, 1) - 1
  assert values[0] > 0
  assert values[peak_at] == pytest.approx(PEAK) and values.max() == values[peak_at]
  assert (np.diff(values[: peak_at + 1]) > 0).all() and (np.diff(values[peak_at:]) <= 0).all()
  if kind in (ScheduleKind.COSINE, ScheduleKind.LINEAR, ScheduleKind.WSD):
    assert values[-1] == pytest.approx(PEAK * config.final_fraction)
    assert float(schedule(10 * NUM_STEPS)) == values[-1], "the final value stays"


def test_wsd_is_flat_until_its_decay():
  config = ScheduleConfig(kind=ScheduleKind.WSD, warmup_steps=WARMUP, decay_fraction=0.2)
  values = np.asarray(config.build(PEAK, NUM_STEPS)(np.arange(NUM_STEPS)))
  np.testing.assert_allclose(values[WARMUP - 1 : 40], PEAK)
  assert values[40] < PEAK


@pytest.mark.parametrize("kind", list(ScheduleKind))
def test_a_run_of_one_step(kind):
  config = ScheduleConfig(kind=kind, warmup_steps=0, decay_fraction=0.2)
  if kind is ScheduleKind.WSD:  # no room for a peak and a decay
    with pytest.raises(UserError, match="decay_fraction"):
      config.build(PEAK, 1)
    return
  assert float(config.build(PEAK, 1)(0)) == pytest.approx(PEAK)


def test_what_does_not_fit_is_refused():
  with pytest.raises(UserError, match=r"warmup_steps=50: must be below num_steps=50"):
    ScheduleConfig(warmup_steps=50).build(PEAK, 50)
  ScheduleConfig(warmup_steps=50, kind=ScheduleKind.CONSTANT).build(PEAK, 50)
  with pytest.raises(UserError, match="warm-up and decay are longer than num_steps=50"):
    ScheduleConfig(kind=ScheduleKind.WSD, warmup_steps=45).build(PEAK, 50)
  for bad in ({"warmup_steps": -1}, {"final_fraction": 1.5}, {"decay_fraction": 0.0}):
    (name,) = bad
    with pytest.raises(UserError, match=f"s.{name}="):
      ScheduleConfig(**bad).validate("s")

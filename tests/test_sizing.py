"""Sizing: every choice fits the text, the time and the devices, and configs/tiny.py is the demo."""

import dataclasses
import itertools
import runpy
from pathlib import Path

import pytest

from jaxlm import configlib, sizing
from jaxlm.data.prep.config import TextSourceConfig, TokenizerKind
from jaxlm.sizing import Budget, Machine

ROOT = Path(__file__).resolve().parent.parent

LAPTOP = Machine(flops=1.5e11)
SLOW = Machine(flops=1e10)
GPU = Machine(flops=7e14, half_width=sizing.ACCELERATOR_HALF_WIDTH)
EIGHT = Machine(flops=5.6e15, half_width=sizing.ACCELERATOR_HALF_WIDTH, num_devices=8)
TOKENS = (700, 3_000, 30_000, 300_000, 3_000_000, 40_000_000)
SECONDS = (1.0, 6.0, 240.0, 3600.0)
CASES = list(itertools.product((SLOW, LAPTOP, GPU, EIGHT), TOKENS, SECONDS))


def choose(machine: Machine, tokens: int, seconds: float, vocab_size: int = 1024):
  budget = Budget(tokens=tokens, seconds=seconds, machine=machine)
  return sizing.run_config(budget, path="data/x", vocab_size=vocab_size)


def params(config) -> int:
  return config.model.num_params()


def seen(config) -> int:
  return config.num_steps * config.global_batch_size * config.data.seq_len


@pytest.mark.parametrize(("machine", "tokens", "seconds"), CASES)
def test_every_choice_is_valid_and_within_four_passes(machine, tokens, seconds):
  config = choose(machine, tokens, seconds)
  config.validate()
  config.validate_devices(machine.num_devices)
  assert config.num_steps >= 1 and seen(config) <= sizing.MAX_EPOCHS * tokens
  assert config.data.seq_len < tokens  # at least one row
  if machine.num_devices == 1:
    assert config.num_steps >= sizing.MIN_STEPS


@pytest.mark.parametrize(("machine", "tokens", "seconds"), CASES)
def test_time_is_exceeded_only_by_the_fewest_steps(machine, tokens, seconds):
  config = choose(machine, tokens, seconds)
  seq_len = config.data.seq_len
  step = machine.step_seconds(config.model, config.global_batch_size * seq_len, seq_len)
  assert config.num_steps * step <= seconds or config.num_steps <= sizing.MIN_STEPS


@pytest.mark.parametrize("machine", [SLOW, LAPTOP, GPU, EIGHT])
@pytest.mark.parametrize("seconds", SECONDS)
def test_more_text_never_gives_a_smaller_model_or_shorter_rows(machine, seconds):
  configs = [choose(machine, tokens, seconds) for tokens in TOKENS]
  for key in (params, lambda c: c.data.seq_len):
    values = [key(config) for config in configs]
    assert values == sorted(values)


@pytest.mark.parametrize("tokens", TOKENS)
def test_more_time_never_gives_a_smaller_model(tokens):
  values = [params(choose(LAPTOP, tokens, seconds)) for seconds in SECONDS]
  assert values == sorted(values)


def test_text_and_time_both_bound_the_model():
  # A rule that looked at one of them alone would give equal models.
  most = params(choose(LAPTOP, 40_000_000, 3600.0))
  assert params(choose(LAPTOP, 30_000, 3600.0)) < most
  assert params(choose(LAPTOP, 40_000_000, 6.0)) < most
  assert most < params(choose(GPU, 40_000_000, 3600.0))


def test_the_ladder_climbs():
  flops = [sizing.model(*rung, 1024).flops_per_token(256) for rung in sizing.LADDER]
  assert flops == sorted(set(flops))


def test_the_vocabulary_follows_the_root_of_the_text():
  sizes = [sizing.tokenizer(n) for n in (1_000, 31_999, 32_000, 10**6, 16 * 10**6, 10**9)]
  assert [s.kind is TokenizerKind.BYTE for s in sizes] == [True, True, False, False, False, False]
  assert [s.vocab_size for s in sizes[2:]] == [512, 2048, 8192, 8192]


@pytest.mark.parametrize("text_bytes", [1_000, 5_000, 100_000, 10**6, 10**8])
def test_datasets_are_valid_and_hold_out_a_little(text_bytes):
  source = TextSourceConfig(paths=("x",))
  config = sizing.prepare_config(source, text_bytes, name="x", output="y")
  config.validate()
  assert 0.02 <= config.heldout_fraction <= 0.1


def test_the_demo_is_configs_tiny():
  # The numbers stand in both files: configs/ must read from top to bottom, and is not installed.
  tiny = runpy.run_path(str(ROOT / "configs" / "tiny.py"))["get_config"]()
  demo = sizing.demo_config("data/stdlib")
  demo.data.sources[0].name = tiny.data.sources[0].name
  differences = configlib.diff(tiny, demo)
  ours = ("checkpoint.", "seed:", "data.seed:")
  assert [line for line in differences if not line.startswith(ours)] == []


def test_step_time_is_the_stated_formula():
  config = dataclasses.replace(sizing.model(128, 4, 1024))
  machine = Machine(flops=1e12, half_width=128)
  expected = config.flops_per_token(256) * 2048 / (sizing.EFFICIENCY * 0.5 * 1e12)
  assert machine.step_seconds(config, 2048, 256) == pytest.approx(expected + sizing.STEP_SECONDS)


def test_this_machine_is_measured():
  machine = sizing.measure(0.05)
  assert machine.num_devices >= 1 and 1e8 < machine.flops < 1e18

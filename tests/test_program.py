"""Compiling ahead of time: what is chosen, what is found in the program, what is refused."""

import dataclasses

import jax
import pytest

from jaxlm import program
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.errors import UserError
from jaxlm.kernels import attention
from jaxlm.layers.config import AttentionImpl, Remat
from jaxlm.models.config import DecoderConfig
from jaxlm.sharding import make_layout


@pytest.fixture
def config():
  return RunConfig(
    model=DecoderConfig(
      vocab_size=64, num_layers=2, embed_dim=16, mlp_dim=32, num_heads=2, max_seq_len=64
    ),
    data=DataConfig(seq_len=64, sources=[SyntheticConfig(name="ids", vocab_size=64)]),
    global_batch_size=8,
    num_steps=4000,
  )


@pytest.fixture
def layout(config, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  with make_layout(config.mesh, jax.devices()[:1]).activate() as layout:
    yield layout


@pytest.fixture
def compiled(monkeypatch):
  """The rematerialisations that were compiled, in order; each pretends to need what it says."""
  needs = {Remat.NONE: 400, Remat.MINIMAL: 300, Remat.QKV: 200, Remat.FULL: 100}
  order = []

  def compile_one(config, layout):
    order.append(config.model.remat)
    kernels = frozenset({AttentionImpl.XLA})
    limit = program._bytes_limit(layout)
    return program.CompiledStep(None, config.model.remat, kernels, needs[order[-1]], limit)

  monkeypatch.setattr(program, "_compile", compile_one)
  return order


def test_without_a_known_limit_nothing_is_recomputed(config, layout, compiled):
  assert program.compile_step(config, layout).remat is Remat.NONE
  assert compiled == [Remat.NONE]


def test_the_fastest_that_fits_is_taken_and_remembered(config, layout, compiled, monkeypatch):
  """Broken by a cache that is not read, or that another model's answer comes from."""
  monkeypatch.setattr(program, "_bytes_limit", lambda layout: 250)
  assert program.compile_step(config, layout).remat is Remat.QKV
  assert compiled == [Remat.NONE, Remat.MINIMAL, Remat.QKV]
  compiled.clear()
  assert program.compile_step(config, layout).remat is Remat.QKV
  assert compiled == [Remat.QKV]
  compiled.clear()
  other = dataclasses.replace(config, global_batch_size=16)
  program.compile_step(other, layout)
  assert compiled == [Remat.NONE, Remat.MINIMAL, Remat.QKV]


def test_what_fits_nowhere_is_refused_with_the_remedy(config, layout, compiled, monkeypatch):
  monkeypatch.setattr(program, "_bytes_limit", lambda layout: 50)
  with pytest.raises(UserError, match=r"set config\.num_microbatches=2"):
    program.compile_step(config, layout)


def test_an_explicit_choice_is_compiled_alone(config, layout, compiled):
  config.model.remat = Remat.FULL
  assert program.compile_step(config, layout).remat is Remat.FULL
  assert compiled == [Remat.FULL]


def test_a_kernel_missing_from_the_program_is_an_error(config, layout, monkeypatch):
  """Broken by taking what was asked for as what was compiled."""
  monkeypatch.setitem(attention.HLO_NAMES, AttentionImpl.XLA, "no_such_kernel")
  with pytest.raises(UserError, match="XLA was chosen, but the compiled step has no no_such_ker"):
    program.compile_step(config, layout)


def test_memory_of_a_real_step(config, layout):
  """More than parameters and two moments, and described in one line."""
  step = program.compile_step(config, layout)
  assert step.bytes_needed > 3 * 4 * config.model.num_params()
  assert step.describe().startswith("attention XLA, remat NONE, ")

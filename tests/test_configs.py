"""Every config file loads, is accepted, and its model has the shape that its closed form says."""

import importlib.util
from pathlib import Path

import jax
import pytest

from jaxlm import tree
from jaxlm.config import RunConfig

ROOT = Path(__file__).parent.parent / "configs"
FILES = sorted(ROOT.glob("*.py"))


def load(file):
  spec = importlib.util.spec_from_file_location(f"configs_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_there_are_configs():
  assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_run_config(file):
  """At full size, nothing allocated: broken by a mistyped field or an impossible shape."""
  config = load(file)
  assert isinstance(config, RunConfig)
  config.validate()
  if config.model.vocab_size == 0:
    config.model.vocab_size = 8192
    config.validate()
  shapes = jax.eval_shape(config.model.build().init, jax.random.key(0))
  assert tree.count(shapes) == config.model.num_params()


@pytest.mark.parametrize("file", sorted((ROOT / "data").glob("*.py")), ids=lambda file: file.stem)
def test_data_config(file):
  """Those of `prepare` and of the stages are accepted too, once they are told of a text."""
  config = load(file)
  if hasattr(config, "source") and getattr(config.source, "paths", None) == ():
    config.source.paths = (str(ROOT),)
  config.validate()

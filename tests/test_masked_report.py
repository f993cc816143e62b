"""Masked tokens: said to be masked wherever they are reported, and checked before anything runs."""

import types

import pytest

from jaxlm import report
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.data.manifest import Split
from jaxlm.data.task import MaskedConfig
from jaxlm.errors import UserError
from jaxlm.evals.perplexity import Score
from jaxlm.heldout import describe_score
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig


def make_config(model, task):
  data = DataConfig(sources=[SyntheticConfig(name="x", vocab_size=64)], task=task)
  return RunConfig(model=model, data=data)


@pytest.mark.parametrize(
  ("model", "task", "message"),
  [
    (EncoderConfig(vocab_size=64), None, "sees all of a row"),
    (DecoderConfig(vocab_size=64), MaskedConfig(), "sees only what is before a token"),
  ],
)
def test_a_task_that_the_model_can_not_do_is_refused_at_once(model, task, message):
  """By the config alone: no data is opened, no model is built."""
  with pytest.raises(UserError, match=message):
    make_config(model, task).validate()
  make_config(model, MaskedConfig() if task is None else None).validate()


@pytest.mark.parametrize("masked", [True, False])
def test_perplexity_of_masked_tokens_is_called_so(masked, capsys):
  task = MaskedConfig() if masked else None
  model = EncoderConfig(vocab_size=64) if masked else DecoderConfig(vocab_size=64)
  run = types.SimpleNamespace(config=make_config(model, task), step=3)
  split = Split(docs=1, tokens=9, bytes=90, shards=[], baselines={"gzip -9": 30})
  manifest = types.SimpleNamespace(name="x", splits={run.config.eval.split: split})
  values = report.evaluation(run, Score(nll=20.0, tokens=10, bytes=0), manifest)
  assert values["masked"] is masked
  report.print_evaluation(values)
  assert ("masked" in capsys.readouterr().out) is masked
  assert ("masked perplexity" in describe_score(Score(20.0, 10, 0), masked=masked)) is masked

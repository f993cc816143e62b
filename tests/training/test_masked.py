"""An encoder learns to find masked tokens, through the same commands as a decoder."""

import json

import jax
import numpy as np
import pytest

from jaxlm import configlib, run
from jaxlm.checkpoint import Checkpointer
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.task import FillInTheMiddleConfig, MaskedConfig, PrefixConfig
from jaxlm.data.testing import write_dataset
from jaxlm.errors import UserError
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tracking.config import TrackingConfig
from jaxlm.training.config import EvalConfig

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")

T, STEPS = 64, 60
SHAPE = {
  "vocab_size": 0,
  "num_layers": 2,
  "embed_dim": 64,
  "mlp_dim": 128,
  "num_heads": 4,
  "max_seq_len": T,
}


def write_text(directory):
  """The documentation of the standard library's modules: real text of every installation."""
  import argparse
  import collections
  import dataclasses
  import logging
  import os
  import random
  import subprocess
  import textwrap

  modules = (argparse, collections, dataclasses, json, logging, os, random, subprocess, textwrap)
  found = [getattr(v, "__doc__", "") for m in modules for _, v in sorted(vars(m).items())]
  texts = [text.encode() for text in found if isinstance(text, str)]
  tokenizer = ByteTokenizer()
  write_dataset(
    directory,
    [list(text) for text in texts if len(text) > 100],
    splits=("train", "heldout"),
    shard_tokens=50_000,
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(directory / "tokenizer")


def make_config(path, **overrides):
  return RunConfig(
    **{
      "model": EncoderConfig(**SHAPE),
      "data": DataConfig(
        seq_len=T, sources=[TokenShardsConfig(name="docs", path=str(path))], task=MaskedConfig()
      ),
      "optim": AdamWConfig(peak_lr=5e-3, schedule=ScheduleConfig(warmup_steps=10)),
      "global_batch_size": 16,
      "num_steps": STEPS,
      "mesh": MeshConfig(data=2, fsdp=1, model=2),
      "eval": EvalConfig(every_steps=20, max_rows=64),
      "tracking": TrackingConfig(tensorboard=False),
    }
    | overrides
  )


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "docs"
  write_text(path)
  return path


def params_of(workdir, step):
  reader = Checkpointer(workdir / "checkpoints", read_only=True)
  target = jax.eval_shape(
    configlib.load_json(workdir / "config.json").model.build().init, jax.random.key(0)
  )
  found = reader.restore_params(step, target)
  reader.close()
  return found


def test_masked_perplexity_falls_and_a_stopped_run_goes_on(text, tmp_path):
  """From 257 (nothing is known) by a third of its logarithm and more; the run that was stopped has
  the parameters of the one that was not, bit for bit, and bits per byte are not claimed."""
  devices = jax.devices()[:4]
  config = make_config(text)
  run.train(config, tmp_path / "a", devices=devices)
  lines = [json.loads(x) for x in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
  found = [x["eval/perplexity"] for x in lines if "eval/perplexity" in x]
  assert len(found) == 3
  assert found[0] > found[1] > found[2], found
  assert found[2] < 257 ** (2 / 3), found
  assert not any("eval/bits_per_byte" in x for x in lines)
  assert not run.train(config, tmp_path / "b", devices=devices, stop_at=25)
  assert run.train(config, tmp_path / "b", devices=devices)
  a, b = (params_of(tmp_path / name, STEPS) for name in "ab")
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  "task", [FillInTheMiddleConfig(), PrefixConfig()], ids=lambda task: type(task).__name__
)
def test_a_decoder_trains_on_its_tasks(text, tmp_path, task):
  data = DataConfig(seq_len=T, sources=[TokenShardsConfig(name="docs", path=str(text))], task=task)
  config = make_config(text, model=DecoderConfig(**SHAPE), data=data, num_steps=20)
  config.eval.every_steps = 20
  run.train(config, tmp_path / "run", devices=jax.devices()[:4])
  lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  (perplexity,) = [x["eval/perplexity"] for x in lines if "eval/perplexity" in x]
  assert perplexity < 100


def test_models_and_tasks_that_do_not_go_together(text, tmp_path):
  """A decoder can't see behind a mask; an encoder would copy the next token from its input."""
  with pytest.raises(UserError, match="DecoderConfig sees only"):
    run.train(
      make_config(text, model=DecoderConfig(**SHAPE)), tmp_path / "a", devices=jax.devices()[:4]
    )
  config = make_config(text)
  config.data.task = None
  with pytest.raises(UserError, match="EncoderConfig sees all"):
    run.train(config, tmp_path / "b", devices=jax.devices()[:4])

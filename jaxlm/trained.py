"""A trained run, opened again: score it, continue prompts with it."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm import configlib, lineage
from jaxlm.checkpoint import Checkpointer, Meta
from jaxlm.config import RunConfig, model_fingerprint
from jaxlm.data.manifest import Manifest
from jaxlm.data.task import PrefixConfig
from jaxlm.errors import UserError
from jaxlm.evals.perplexity import Score, make_scoring_step
from jaxlm.heldout import score_split
from jaxlm.inference.generate import Generator
from jaxlm.inference.sampling import Sampling
from jaxlm.mesh import MeshConfig
from jaxlm.models.base import ModelDef, Params
from jaxlm.models.config import DecoderConfig, ModelConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.program import make_loss_fn
from jaxlm.run import setup_jax
from jaxlm.sharding import Layout, make_layout
from jaxlm.tokenizers.base import Tokenizer, is_lossless, load_tokenizer
from jaxlm.training.step import make_eval_step
from jaxlm.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained run, opened for use.

  Attributes:
    config: what it was trained with.
    step: of the checkpoint that was read.
    model, params: the model, on `layout`. Experts have all the room they need, whatever
      config.model.expert_capacity was at training: what a text is worth, or how it goes on, must
      not depend on the texts beside it. (So a held-out score can differ from training's own.)
    tokenizer: the run's own copy.
    begin: ids that stand before every text: EOS, as jaxlm trains; of an import that was not trained
      since, what its own tokenizer puts there (BOS), or nothing.
  """

  config: RunConfig
  step: int
  model: ModelDef
  params: Params
  tokenizer: Tokenizer
  layout: Layout
  meta: Meta
  begin: tuple[int, ...]

  def evaluate(self, path: str | None = None) -> tuple[Score, Manifest]:
    """The score on a dataset's held-out split, and the dataset's manifest.

    Raises:
      UserError: the dataset was made with another tokenizer, is damaged or missing.
    """
    path = path or self.config.heldout_path()
    if path is None:
      raise UserError("this run's data has no held-out split: name a prepared dataset with --data")
    manifest = Manifest.load(path)
    if manifest.tokenizer_sha256 != self.tokenizer.fingerprint():
      raise UserError(
        f"{path}: made with tokenizer {manifest.tokenizer_sha256[:12]}, the run's is "
        f"{self.tokenizer.fingerprint()[:12]}: prepare it with the run's tokenizer "
        "(--config.tokenizer.path=WORKDIR/tokenizer)"
      )
    scorer = make_scoring_step(
      make_eval_step(self.model, make_loss_fn(self.config)),
      np.asarray(self.tokenizer.token_bytes()),
      self.layout,
    )
    with self.layout.activate():
      found = score_split(
        self.config,
        path,
        scorer,
        self.params,
        self.layout,
        count_bytes=is_lossless(self.tokenizer),
      )
    return found, manifest

  def generator(self) -> Generator:
    """What continues ids as the run was trained: a prompt is the prefix of a prefix-LM.

    Raises:
      UserError: the model is an encoder.
    """
    model: Any = self.config.model
    if isinstance(model, EncoderConfig):
      raise UserError(
        "an encoder fills gaps and does not continue text: use `jaxlm evaluate`, or train a "
        "DecoderConfig"
      )
    with self.layout.activate():
      return Generator(
        self.model,
        self.params,
        eos_id=self.tokenizer.eos_id,
        max_seq_len=model.max_seq_len,
        prefix=isinstance(self.config.data.task, PrefixConfig),
      )

  def generate(
    self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling, seed: int = 0
  ) -> list[str]:
    """What the model adds to each prompt, before which `begin` stands, as before every document."""
    generator, eos, known = self.generator(), self.tokenizer.eos_id, self.tokenizer.vocab_size
    # A model without anything before its texts can't begin with nothing.
    ids = [[*self.begin, *self.tokenizer.encode(prompt)] or [eos] for prompt in prompts]
    with self.layout.activate():
      new = generator(ids, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    # The table may have more rows than there are tokens. `decode` would take the first space away.
    texts = [self.tokenizer.decode_bytes([i for i in one if i < known]) for one in new]
    return [text.decode("utf-8", "replace") for text in texts]


def _dropless(config: ModelConfig) -> ModelConfig:
  """The config without a bound on what an expert takes; the parameters are the same."""
  if isinstance(config, DecoderConfig):
    return dataclasses.replace(config, expert_capacity=None)
  return config


def open_run(workdir: str | Path, *, step: int | None = None, all_devices: bool = False) -> Run:
  """Opens a run's checkpoint, checking its seal.

  Args:
    workdir: the run's directory.
    step: which checkpoint; None: the newest.
    all_devices: spread parameters over all devices; otherwise the first one is used.

  Raises:
    UserError: no run, no checkpoint, or something in it is not what the checkpoint was made from.
  """
  setup_jax()
  directory = Workdir(workdir).require()
  config: RunConfig = configlib.load_json(directory.config)
  checkpointer = Checkpointer(directory.checkpoints, read_only=True)
  steps = checkpointer.steps()
  if not steps:
    raise UserError(f"{directory.checkpoints}: no checkpoint yet; train first")
  if step is not None and step not in steps:
    raise UserError(f"--step={step}: no such checkpoint; there are {', '.join(map(str, steps))}")
  step = steps[-1] if step is None else step
  meta = checkpointer.meta(step)
  imported = lineage.imported(directory.path) if meta.seal.imported else None
  if meta.seal.tokenizer is None and imported is not None:
    raise UserError(
      f"{directory.path}: imported without a tokenizer, so there is no text to work on: import it "
      "again with --tokenizer=PATH, a folder that holds the model's own"
    )
  if meta.seal.tokenizer is None and not directory.tokenizer.is_dir():
    raise UserError(f"{directory.path}: trained on synthetic ids: there is no text to work on")
  tokenizer = load_tokenizer(directory.tokenizer, lossy=True)
  found = dataclasses.replace(
    meta.seal,
    model=model_fingerprint(config.model),
    tokenizer=tokenizer.fingerprint(),
    code=lineage.code_fingerprint(),
  )
  where = f"{directory.checkpoints}/{step}"
  for warning in lineage.check(meta.seal, found, where, ("model", "tokenizer")):
    print(f"warning: {warning}", file=sys.stderr)
  devices = jax.devices() if all_devices else jax.devices()[:1]
  mesh = MeshConfig()
  sizes = mesh.sizes(len(devices))
  try:
    config.model.validate_mesh("config.model", sizes)
  except UserError:
    devices = devices[:1]
  layout = make_layout(mesh, devices)
  with layout.activate():
    model = _dropless(config.model).build()
  target = layout.eval_shape(model.init, jax.random.key(0))
  params = checkpointer.restore_params(step, target)
  checkpointer.close()
  begin = (tokenizer.eos_id,) if imported is None else tuple(imported.get("begin", ()))
  return Run(config, step, model, params, tokenizer, layout, meta, begin)

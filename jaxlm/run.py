"""Training runs: put the parts together, check them against each other, train."""

import contextlib
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxlm import agreement, configlib, lineage, run_checks, tree, xla_flags
from jaxlm.checkpoint import REMEDY, Checkpointer, DamagedError, Meta
from jaxlm.config import RunConfig, model_fingerprint
from jaxlm.data.config import TokenShardsConfig
from jaxlm.data.pipeline import BatchIterator, Pipeline, build_pipeline
from jaxlm.data.task import MaskedConfig
from jaxlm.devices import describe
from jaxlm.errors import UserError
from jaxlm.evals.perplexity import Score, make_scoring_step
from jaxlm.heldout import describe_score, score_split
from jaxlm.lineage import Seal
from jaxlm.metrics import peak_flops
from jaxlm.models.base import Params
from jaxlm.program import build_program, compile_step
from jaxlm.sharding import Layout, make_layout
from jaxlm.tokenizers.base import is_lossless, load_tokenizer
from jaxlm.tracking.base import NoTracker
from jaxlm.tracking.progress import Progress, short
from jaxlm.training.loop import Loop, NotFiniteError
from jaxlm.training.monitor import Monitor
from jaxlm.training.preemption import Preemption
from jaxlm.training.state import TrainState, make_begin, state_shapes
from jaxlm.training.step import make_eval_step
from jaxlm.workdir import Workdir


def setup_jax() -> None:
  """Process-wide settings, before any model is built."""
  xla_flags.apply()
  # Modules are plain pytrees: no shared references, so none are looked for.
  nnx.set_graph_mode(False)
  nnx.set_graph_updates(False)
  if jax.config.values["jax_compilation_cache_dir"] is None:
    # Programs are kept from run to run. Whoever can write there can run code as this user.
    cache = Path.home() / ".cache" / "jaxlm" / "compiled"
    try:
      cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
      return  # no writable home: every run compiles anew
    jax.config.update("jax_compilation_cache_dir", str(cache))


def resolve(config: RunConfig, pipeline: Pipeline) -> RunConfig:
  """A copy with all that was left to be found: the vocabulary, and absolute paths.

  A model may have more ids than the data: published tables have rows that no token uses (Qwen's
  151,936 for 151,669).

  Raises:
    UserError: the config's vocab_size is less than the data's.
  """
  config = configlib.from_dict(configlib.to_dict(config))
  if config.model.vocab_size == 0:
    config.model.vocab_size = pipeline.vocab_size
  if config.model.vocab_size < pipeline.vocab_size:
    raise UserError(
      f"config.model.vocab_size={config.model.vocab_size}: the data has {pipeline.vocab_size} ids "
      "(its tokenizer's, and those that config.data.task adds); set it to that or more, or to 0 to "
      "take the data's"
    )
  for source in config.data.sources:
    if isinstance(source, TokenShardsConfig):
      source.path = str(Path(source.path).absolute())
  if config.eval.path is not None:
    config.eval.path = str(Path(config.eval.path).absolute())
  return config


# Called with the number of a batch's first row and the arrays, as they are loaded.
OnBatch = Callable[[int, dict[str, np.ndarray]], None]


def train(
  config: RunConfig,
  workdir: str | Path,
  *,
  accept_changes: bool = False,
  stop_at: int | None = None,
  fallback: bool = True,
  devices: Sequence[jax.Device] | None = None,
  on_batch: OnBatch | None = None,
) -> bool:
  """Trains a run to its end, from where it stands.

  Args:
    config: validated.
    workdir: made if missing; if a run is there, it is continued.
    accept_changes: go on although the config differs from the one the run began with.
    stop_at: save and stop after so many updates in all, as if preempted.
    fallback: where the newest checkpoint is damaged, go on from the newest that is not, and set the
      damaged ones aside. False: refuse.
    devices: train on these; None: on all.
    on_batch: sees this host's batches as they are loaded, which is a step ahead.

  Returns:
    True if the run is finished, False if it was stopped and can be continued.

  Raises:
    UserError: anything that does not fit together (nothing was overwritten then), or training that
      is no longer finite (the newest checkpoint is from before that).
  """
  setup_jax()
  agreement.check(agreement.facts(config, workdir=str(workdir), stop_at=stop_at, fallback=fallback))
  directory = Workdir(workdir)
  with contextlib.ExitStack() as held:
    with agreement.together():
      config.validate()
      pipeline = build_pipeline(config.data)
      config = resolve(config, pipeline)
      config.validate()
      devices = list(devices or jax.devices())
      config.validate_devices(len(devices))
      run_checks.check_tokenizers(config, pipeline)
      if jax.process_index() == 0:  # one process writes for all, and holds the lock for all
        held.enter_context(directory.lock())
      run_checks.check_config(config, directory, accept_changes=accept_changes)
      run_checks.check_copy(directory, pipeline)
      data = pipeline.fingerprint()
    agreement.check({"data": data})
    with make_layout(config.mesh, devices).activate() as layout:
      return _Training(config, directory, pipeline, layout).run(
        stop_at=stop_at, accept_changes=accept_changes, fallback=fallback, on_batch=on_batch
      )


class _Training:
  """One start of a run: everything that `train` needs at once."""

  def __init__(self, config: RunConfig, directory: Workdir, pipeline: Pipeline, layout: Layout):
    self.config, self.directory = config, directory
    self.pipeline, self.layout = pipeline, layout
    self.program = build_program(config)
    self.checkpointer = Checkpointer(
      directory.checkpoints,
      keep_last=config.checkpoint.keep_last,
      keep_every=config.checkpoint.keep_every,
    )
    self.is_main = jax.process_index() == 0
    self._scorer: Any = None
    self._count_bytes = True

  def seal(self, next_row: int) -> Seal:
    return Seal(
      model=model_fingerprint(self.config.model),
      tokenizer=self.pipeline.tokenizer_sha256,
      data=self.pipeline.fingerprint(next_row),
      code=lineage.code_fingerprint(),
    )

  def start(self, *, accept_changes: bool, fallback: bool) -> tuple[TrainState, int, int]:
    """The state to go on from, its step, and the rows consumed.

    Every process comes to the same: a DamagedError of one is one of all.
    """
    steps = self.checkpointer.steps()
    if not steps:
      return self.program.init(jax.random.key(self.config.seed)), 0, 0
    damaged: dict[int, str] = {}
    for step in reversed(steps):
      try:
        found = self._restored(step, accept_changes=accept_changes)
        break
      except DamagedError as error:
        if not fallback:
          raise
        damaged[step] = str(error).removesuffix(REMEDY)
    else:
      older = (
        f"nor can the older ones ({len(steps) - 1})" if len(steps) > 1 else "it is the only one"
      )
      raise UserError(
        f"{damaged[steps[-1]]}{older}: restore one from a copy, or choose another --workdir"
      )
    # Not before one was found that can be used: the run is as it was if there is none.
    for step, why in damaged.items():
      place = self.checkpointer.set_aside(step)
      if self.is_main:
        line = f"{why}set aside as {place.name}; going on from step {found[1]}"
        print(f"WARNING: {' '.join(line.split())}", file=sys.stderr, flush=True)
    return found

  def _restored(self, latest: int, *, accept_changes: bool) -> tuple[TrainState, int, int]:
    meta = self.checkpointer.meta(latest)
    where = f"{self.directory.checkpoints}/{latest}"
    parts = ("model", "tokenizer") if accept_changes else ("model", "tokenizer", "data")
    for warning in lineage.check(meta.seal, self.seal(meta.next_row), where, parts):
      if self.is_main:
        print(f"warning: {warning}", file=sys.stderr)
    shapes = state_shapes(self.program.init, self.layout)
    if meta.seal.imported:  # whatever optimizer's state it has, this run's begins anew
      params = self.checkpointer.restore_params(latest, shapes.params)
      begin = jax.jit(make_begin(self.program.model, self.program.tx), donate_argnums=0)
      return begin(params), 0, 0
    state = self.checkpointer.restore(latest, shapes)
    return state, meta.step, meta.next_row

  def run(
    self,
    *,
    stop_at: int | None,
    accept_changes: bool,
    fallback: bool,
    on_batch: OnBatch | None = None,
  ) -> bool:
    # Entered before anything is compiled, which may take longer than a scheduler's notice.
    with Preemption(self.checkpointer.reached_preemption) as preemption:
      state, step, row = self.start(accept_changes=accept_changes, fallback=fallback)
      return self._train(state, step, row, preemption, stop_at=stop_at, on_batch=on_batch)

  def _train(
    self,
    state: TrainState,
    start_step: int,
    start_row: int,
    preemption: Preemption,
    *,
    stop_at: int | None,
    on_batch: OnBatch | None,
  ) -> bool:
    config, directory = self.config, self.directory
    if self.is_main:
      configlib.save_json(config, directory.config)
      lineage.write(directory.path, lineage.datasets(lineage.dataset_paths(config.data.sources)))
      self._copy_tokenizer()
    if start_step >= config.num_steps:
      if self.is_main:
        print(f"{directory.path}: already trained to step {start_step}; nothing to do")
      self.checkpointer.close()
      return True
    if stop_at is not None and start_step >= stop_at:
      self.checkpointer.close()
      return False
    step = compile_step(config, self.layout)
    batch, seq_len = config.global_batch_size, config.data.seq_len
    model: Any = config.model
    device, num_devices = self.layout.mesh.devices.flat[0], self.layout.mesh.size
    peak = peak_flops(device.device_kind)
    tracker = config.tracking.build(directory.path, start_step + 1) if self.is_main else NoTracker()
    tracker.log_config(configlib.to_dict(config))
    # One process speaks for all.
    stream = sys.stderr if self.is_main else io.StringIO()
    print(
      f"{'resuming' if start_step else 'training'} {directory.path}: "
      f"{short(tree.count(state.params))} parameters, {num_devices} × {device.device_kind}, "
      f"{short(batch * seq_len)} tokens a step, steps {start_step}–{config.num_steps}\n"
      f"{describe(self.layout.mesh)}, {step.describe()}",
      file=stream,
      flush=True,
    )
    with (
      Progress(config.num_steps, start_step, batch * seq_len, stream=stream) as progress,
      self.pipeline.iterator(batch, start_row, *self.layout.row_shard()) as batches,
    ):
      monitor = Monitor(
        tracker,
        progress,
        learning_rate=config.optim.learning_rate(config.num_steps),
        tokens_per_step=batch * seq_len,
        flops_per_token=model.flops_per_token(seq_len),
        peak_flops=None if peak is None else peak * num_devices,
        uniform_loss=math.log(model.vocab_size),
        log_every=config.log_every,
        first_step=start_step + 1,
        start_tokens=start_row * seq_len,
      )

      def evaluate(state: TrainState, step: int) -> None:
        values = self.evaluate(state.params)
        tracker.log(step, {f"eval/{k}": v for k, v in values.to_dict().items() if v is not None})
        masked = isinstance(config.data.task, MaskedConfig)
        progress.message(f"step {step}: held-out {describe_score(values, masked=masked)}")

      loop = Loop(
        step_fn=step.call,
        layout=self.layout,
        batches=batches if on_batch is None else _Seen(batches, on_batch, batch, self.layout),
        listener=monitor,
        save=self.save,
        save_every=config.checkpoint.every_steps,
        evaluate=evaluate if config.heldout_path() else None,
        evaluate_every=config.eval.every_steps,
        preempted=lambda step: (
          (stop_at is not None and step >= stop_at) or preemption.requested(step)
        ),
        max_skipped_steps=config.checkpoint.max_skipped_steps,
        use_segments=not config.data.attend_across_documents,
      )
      try:
        state, stopped = loop.run(state, start_step, config.num_steps)
        self.checkpointer.wait()
      except NotFiniteError as error:
        self.checkpointer.wait()
        raise UserError(f"{error}: {self._advice(error)}") from error
      finally:
        tracker.close()
        self.checkpointer.close()
    return not stopped

  def _advice(self, error: NotFiniteError) -> str:
    latest, skips = self.checkpointer.latest(), self.config.checkpoint.max_skipped_steps
    kept = "no checkpoint was saved" if latest is None else f"the last good checkpoint is {latest}"
    options = ["start another run with a lower config.optim.peak_lr"]
    if error.skippable:
      options.append(
        f"look at the documents of these rows (python -m jaxlm.data trace --dataset="
        f"{self.directory.path} --step={error.step})"
      )
    if error.skippable and not skips:
      options.append("set config.checkpoint.max_skipped_steps=10 to skip such steps")
    return f"{kept} in {self.directory.checkpoints}; {', or '.join(options)}"

  def save(self, state: TrainState, step: int, next_row: int) -> None:
    # A finite gradient can still carry the weights beyond what their dtype holds.
    if not bool(_norm_is_finite(state.params)):
      text = f"step {step}: the weights are not finite after it"
      raise NotFiniteError(text, step, skippable=False)
    self.checkpointer.save(state, Meta(step, next_row, self.config.seed, self.seal(next_row)))

  def evaluate(self, params: Params) -> Score:
    path = self.config.heldout_path()
    assert path is not None
    if self._scorer is None:
      tokenizer = load_tokenizer(self.directory.tokenizer, lossy=True)
      self._count_bytes = is_lossless(tokenizer)
      self._scorer = make_scoring_step(
        make_eval_step(self.program.model, self.program.loss_fn),
        tokenizer.token_bytes(),
        self.layout,
      )
    return score_split(
      self.config, path, self._scorer, params, self.layout, count_bytes=self._count_bytes
    )

  def _copy_tokenizer(self) -> None:
    for source in self.config.data.sources:
      if isinstance(source, TokenShardsConfig):
        self.directory.copy_tokenizer(Path(source.path) / "tokenizer")
        return


@jax.jit
def _norm_is_finite(params: Params) -> jax.Array:
  return jnp.isfinite(tree.global_norm(params))


class _Seen:
  """Batches that someone looks at; see training.loop.Batches."""

  def __init__(self, batches: BatchIterator, on_batch: OnBatch, rows: int, layout: Layout):
    index, count = layout.row_shard()
    self._batches, self._on_batch, self._offset = batches, on_batch, index * (rows // count)

  @property
  def next_row(self) -> int:
    return self._batches.next_row

  @next_row.setter
  def next_row(self, value: int) -> None:
    self._batches.next_row = value

  def __next__(self) -> dict[str, np.ndarray]:
    first = self._batches.next_row + self._offset
    arrays = next(self._batches)
    self._on_batch(first, arrays)
    return arrays

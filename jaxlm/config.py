"""The config of a run: a composition of its parts' configs (plain data: imports no jax).

A config file is Python: `get_config()` returns a RunConfig, in which every part is named once.
What a run was started with is kept in WORKDIR/config.json.
"""

import dataclasses
import math

from jaxlm import configlib
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.task import MaskedConfig
from jaxlm.errors import UserError
from jaxlm.mesh import BATCH_AXES, MeshConfig, check_heads, check_tokens
from jaxlm.models.config import DecoderConfig, ModelConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.base import OptimizerConfig
from jaxlm.tracking.config import TrackingConfig
from jaxlm.training.config import CheckpointConfig, EvalConfig, ObjectiveConfig

# What may differ between two starts of one run: it changes speed, length or what is recorded, not
# what the parameters mean or which rows come next.
FREE = (
  "num_steps",
  "num_microbatches",
  "log_every",
  "mesh",
  "checkpoint",
  "eval",
  "tracking",
  "data.num_threads",
  "data.num_workers",
  "data.prefetch",
  "data.phases",  # the rows trained on so far are checked by the seal
  "data.sources",
  "model.compute_dtype",
  "model.matmul",
  "model.remat",
  "model.attention",
  "objective.loss_chunks",
)

# The parts of a model's config that do not say what its parameters mean.
MODEL_FREE = ("compute_dtype", "matmul", "remat", "attention", "dropout")

# Fields that DecoderConfig got later: left out while they have their defaults, so that the seals of
# checkpoints from before them hold.
MODEL_LATER = (
  "norm_placement",
  "norm_offset",
  "norm_bias",
  "embed_norm",
  "parallel_residual",
  "rotary_fraction",
  "rope_scaling",
  "sliding_window",
  "window_pattern",
  "local_rope_theta",
  "attention_scale",
  "attention_softcap",
  "logits_softcap",
  "embed_scale",
  "qk_norm_whole",
  "latent",
  "qkv_bias",
  "out_bias",
  "mlp_bias",
  "router",
  "normalize_gates",
  "router_scale",
  "router_bias",
  "expert_groups",
  "expert_groups_per_token",
  "num_shared_experts",
  "num_dense_layers",
  "dense_mlp_dim",
  "mup",
)


@dataclasses.dataclass(kw_only=True)
class RunConfig:
  """Everything that a run is made from.

  Attributes:
    model: vocab_size 0 stands for the data's.
    data, objective, optim: what is learned, from what, how.
    global_batch_size: sequences a step, over all devices.
    num_microbatches: parts of a step's batch that are run one after another (less memory).
    num_steps: length of the run and of the learning rate's schedule.
    seed: of the parameters and of dropout. (The order of the data has its own, data.seed.)
    mesh: how devices share the work.
    log_every: steps between records in metrics.jsonl and the trackers.
  """

  model: ModelConfig = dataclasses.field(default_factory=lambda: DecoderConfig(vocab_size=0))
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
  optim: OptimizerConfig = dataclasses.field(default_factory=AdamWConfig)
  global_batch_size: int = 32
  num_microbatches: int = 1
  num_steps: int = 1000
  seed: int = 0
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
  log_every: int = 1

  def validate(self, path: str = "config") -> None:
    """Raises UserError for whatever can be refused without looking at data or devices."""
    for name in ("global_batch_size", "num_microbatches", "num_steps", "log_every"):
      if getattr(self, name) < 1:
        raise UserError(f"{path}.{name}={getattr(self, name)}: must be at least 1")
    if self.seed < 0:
      raise UserError(f"{path}.seed={self.seed}: must not be negative")
    parts = ("model", "data", "objective", "optim", "mesh", "checkpoint", "eval", "tracking")
    for name in parts:
      getattr(self, name).validate(f"{path}.{name}")
    if self.global_batch_size % self.num_microbatches:
      raise UserError(
        f"{path}.num_microbatches={self.num_microbatches}: must divide "
        f"global_batch_size={self.global_batch_size}"
      )
    limit = getattr(self.model, "max_seq_len", self.data.seq_len)
    if self.data.seq_len > limit:
      raise UserError(
        f"{path}.data.seq_len={self.data.seq_len}: longer than {path}.model.max_seq_len={limit}; "
        "raise that, or shorten this"
      )
    if self.data.seq_len % self.objective.loss_chunks:
      raise UserError(
        f"{path}.objective.loss_chunks={self.objective.loss_chunks}: must divide "
        f"{path}.data.seq_len={self.data.seq_len}"
      )
    self.optim.schedule.validate_length(self.num_steps, f"{path}.optim.schedule")
    self.validate_task(path)

  def validate_task(self, path: str = "config") -> None:
    """Raises UserError where the model can not do the task, or would find its targets in its
    inputs."""
    is_encoder = isinstance(self.model, EncoderConfig)
    if is_encoder == isinstance(self.data.task, MaskedConfig):
      return
    what = (
      f"sees all of a row: set {path}.data.task=MaskedConfig()"
      if is_encoder
      else (
        f"sees only what is before a token: set {path}.data.task to none, or take an EncoderConfig"
      )
    )
    raise UserError(f"{path}.model: {type(self.model).__name__} {what}")

  def validate_devices(self, num_devices: int, path: str = "config") -> dict[str, int]:
    """The sizes of the mesh axes. Raises UserError for whatever doesn't divide by them."""
    sizes = self.mesh.sizes(num_devices)
    rows = math.prod(sizes[axis] for axis in BATCH_AXES) * self.num_microbatches
    if self.global_batch_size % rows:
      raise UserError(
        f"{path}.global_batch_size={self.global_batch_size}: must be divisible by {rows} = "
        + " × ".join(f"{axis}={sizes[axis]}" for axis in BATCH_AXES)
        + f" × num_microbatches={self.num_microbatches}"
      )
    if self.data.seq_len % sizes["sequence"]:
      raise UserError(
        f"{path}.data.seq_len={self.data.seq_len}: must be divisible by "
        f"{path}.mesh.sequence={sizes['sequence']}"
      )
    if self.data.seq_len % (sizes["sequence"] * self.objective.loss_chunks):
      raise UserError(
        f"{path}.objective.loss_chunks={self.objective.loss_chunks}: times "
        f"{path}.mesh.sequence={sizes['sequence']} must divide {path}.data.seq_len"
      )
    check_tokens(self.data.seq_len, sizes["sequence"], self.mesh.context)
    heads = getattr(self.model, "num_heads", 0)
    check_heads(heads, sizes["sequence"], sizes["model"], self.mesh.context)
    self._validate_stages(path, sizes)
    self.model.validate_mesh(f"{path}.model", sizes)
    return sizes

  def _validate_stages(self, path: str, sizes: dict[str, int]) -> None:
    if sizes["stage"] == 1:
      return
    parts = self.mesh.pipeline_microbatches
    rows = math.prod(sizes[axis] for axis in BATCH_AXES) * self.num_microbatches * parts
    if self.global_batch_size % rows:
      raise UserError(
        f"{path}.global_batch_size={self.global_batch_size}: must be divisible by {rows} = "
        + " × ".join(f"{axis}={sizes[axis]}" for axis in BATCH_AXES)
        + f" × num_microbatches={self.num_microbatches} × {path}.mesh.microbatches={parts}"
      )

  def heldout_path(self) -> str | None:
    """The dataset to evaluate on: eval.path, or the first source that is a prepared dataset."""
    if self.eval.path is not None:
      return self.eval.path
    for source in self.data.sources:
      if isinstance(source, TokenShardsConfig):
        return source.path
    return None

  def changes(self, other: "RunConfig") -> list[str]:
    """Lines `key: old → new` of what may not differ between two starts of one run."""
    lines = configlib.diff(self, other)

    def free(line: str) -> bool:
      key = line.split(":", 1)[0]
      return any(key == f or key.startswith((f + ".", f + "[")) for f in FREE)

    return [line for line in lines if not free(line)]


def model_fingerprint(model: ModelConfig) -> str:
  """sha256 (hex) of what a model's config says about its parameters' meaning."""
  fields = dataclasses.fields(model)
  later = [f.name for f in fields if f.name in MODEL_LATER and getattr(model, f.name) == f.default]
  free = [f.name for f in fields if f.name in MODEL_FREE]
  return configlib.fingerprint(model, exclude=[*free, *later])

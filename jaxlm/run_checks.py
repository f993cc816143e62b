"""Whether a run's config, its data and what lies in its directory belong together.

All raise UserError, before anything is written.
"""

from pathlib import Path

from jaxlm import configlib, lineage
from jaxlm.checkpoint import Checkpointer
from jaxlm.config import RunConfig
from jaxlm.data.config import TokenShardsConfig
from jaxlm.data.manifest import Manifest
from jaxlm.data.pipeline import Pipeline
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import load_tokenizer
from jaxlm.workdir import Workdir


def check_config(config: RunConfig, directory: Workdir, *, accept_changes: bool) -> None:
  """Refuses a config that changes what the directory's run began with."""
  if not directory.exists():
    return
  began: RunConfig = configlib.load_json(directory.config)
  if type(began.optim) is not type(config.optim) and not _is_import(directory):
    raise UserError(
      f"--workdir={directory.path}: config.optim is {type(config.optim).__name__}, the run's "
      f"checkpoints hold the state of {type(began.optim).__name__}: choose another --workdir"
    )
  changes = began.changes(config)
  if changes and not accept_changes:
    raise UserError(
      f"--workdir={directory.path}: its run began with another config ({'; '.join(changes[:4])}"
      f"{f'; {len(changes) - 4} more' if len(changes) > 4 else ''}): choose another --workdir, or "
      "add --accept_changes to go on with the new one"
    )


def _is_import(directory: Workdir) -> bool:
  """Whether the newest checkpoint is an import as it came: any optimizer may begin there."""
  if lineage.imported(directory.path) is None:
    return False
  checkpointer = Checkpointer(directory.checkpoints, read_only=True)
  latest = checkpointer.latest()
  found = latest is not None and checkpointer.meta(latest).seal.imported
  checkpointer.close()
  return found


def check_tokenizers(config: RunConfig, pipeline: Pipeline) -> None:
  """Refuses at the start what would otherwise end the run at its first evaluation."""
  for source in config.data.sources:
    if isinstance(source, TokenShardsConfig):
      _check_tokenizer(
        Path(source.path) / "tokenizer",
        pipeline.tokenizer_sha256,
        "restore it, or make the dataset again with `python -m jaxlm.prepare`",
      )
  path = config.heldout_path()
  if path is None or not config.eval.every_steps:
    return
  if not any(isinstance(source, TokenShardsConfig) for source in config.data.sources):
    raise UserError(
      f"config.eval.path={path}: the training data carries no tokenizer to score text with; set "
      "config.eval.every_steps=0"
    )
  manifest = Manifest.load(path)
  manifest.verify_split(path, config.eval.split, full=False)
  if manifest.tokenizer_sha256 != pipeline.tokenizer_sha256:
    raise UserError(
      f"config.eval.path={path}: made with another tokenizer than the training data: prepare it "
      "with that one"
    )


def check_copy(directory: Workdir, pipeline: Pipeline) -> None:
  """Refuses data of another tokenizer than the copy that the run keeps."""
  if directory.tokenizer.is_dir():
    _check_tokenizer(
      directory.tokenizer,
      pipeline.tokenizer_sha256,
      "train on the dataset that the run began with, or on one prepared with "
      f"--config.tokenizer.path={directory.tokenizer}; if this copy was edited, delete it and start"
      " again: it is copied from the dataset",
    )


def _check_tokenizer(directory: Path, sha256: str | None, remedy: str) -> None:
  found = load_tokenizer(directory, lossy=True).fingerprint()
  if found != sha256:
    raise UserError(
      f"{directory}: tokenizer {found[:12]}, but the data was made with "
      f"{'none' if sha256 is None else sha256[:12]}: {remedy}"
    )

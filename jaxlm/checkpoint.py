"""Checkpoints over Orbax: the state, and beside it what is needed to trust and continue it.

    DIR/<step>/state    arrays, in Orbax's format; any mesh may read what another wrote
    DIR/<step>/meta     JSON: format, step, next_row, seed, seal (see lineage), digests, sha256
    DIR/<step>.damaged  one that could not be read, set aside for one before it

Orbax notices a file that is missing or cut short, but mostly not a changed bit. So the meta holds a
digest of each array's bits, made on the devices at saving and compared at restoring; and one of
the meta itself.

Saving is asynchronous: the arrays are copied to the host, and written while training goes on. A
checkpoint appears under its name only once it is whole; what an interrupted save leaves behind is
removed at the next start.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from jaxlm import agreement
from jaxlm.errors import UserError
from jaxlm.lineage import Seal
from jaxlm.tree import path_str

FORMAT = 1
_META_KEYS = {"format", "step", "next_row", "seed", "seal", "digests", "sha256"}


# How the line of a DamagedError ends.
REMEDY = "move this folder away to fall back to the one before it"


class DamagedError(UserError):
  """A checkpoint is not what was saved: one before it may be good."""


@dataclasses.dataclass(frozen=True)
class Meta:
  """What a checkpoint says of itself.

  Attributes:
    step: updates made.
    next_row: global rows consumed: the whole state of the data pipeline.
    seed: the run's; every random key is a function of it and of the step.
    seal: what it was made from.
  """

  step: int
  next_row: int
  seed: int
  seal: Seal


class Checkpointer:
  """Saves and restores the training state of a run.

  Args:
    directory: made if missing.
    keep_last, keep_every: see training.config.CheckpointConfig.
    read_only: nothing is made, removed or saved.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    keep_last: int = 2,
    keep_every: int = 0,
    read_only: bool = False,
  ):
    # Orbax reports each save in dozens of lines, and a read-only manager as a warning.
    logging.getLogger("absl").setLevel(logging.ERROR)
    self.directory = Path(directory).absolute()
    policies = ocp.checkpoint_managers.preservation_policy
    keep: list[Any] = [policies.LatestN(keep_last)]
    if keep_every:
      keep.append(policies.EveryNSteps(keep_every))
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        enable_async_checkpointing=not read_only,
      ),
      item_names=("state", "meta"),
    )

  def latest(self) -> int | None:
    """The newest whole checkpoint's step, or None."""
    return self._manager.latest_step() if self.directory.is_dir() else None

  def steps(self) -> list[int]:
    """The steps of all whole checkpoints, oldest first."""
    return sorted(self._manager.all_steps()) if self.directory.is_dir() else []

  def save(self, state: Any, meta: Meta) -> None:
    """Starts saving. Blocks only while arrays are copied, or while an earlier save still runs.

    Raises:
      UserError: this save or the one before it failed (a full disk, mostly).
    """
    if meta.step in self.steps():
      return
    plain = _plain(state)
    values = dataclasses.asdict(meta) | {"format": FORMAT, "digests": digests(plain)}
    values["sha256"] = _sha256(values)
    try:
      self._manager.save(
        meta.step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(plain), meta=ocp.args.JsonSave(values)),
        force=True,
      )
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def wait(self) -> None:
    """Blocks until what was saved is on disk. Raises UserError if a save failed."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
      f"{self.directory}: saving a checkpoint failed ({first[:200]}): free space or check the"
      " folder, then run the same command again: it resumes from the last whole checkpoint"
    )

  def meta(self, step: int) -> Meta:
    """What the checkpoint of a step says of itself.

    Raises:
      DamagedError: it can't be read, or is not what was saved.
      UserError: it is of another format.
    """
    with self._reading(step):
      values = self._read_meta(step)
      seal = Seal.from_dict(values["seal"], f"{self.directory}/{step}")
      return Meta(int(values["step"]), int(values["next_row"]), int(values["seed"]), seal)

  def _read_meta(self, step: int) -> dict[str, Any]:
    where = self.directory / str(step)
    values: dict[str, Any] = dict(ocp.JsonCheckpointHandler().restore(where / "meta"))
    if values["format"] != FORMAT:
      raise UserError(
        f"{where}: checkpoint format {values['format']}, this jaxlm reads {FORMAT}: use the jaxlm"
        " that wrote it"
      )
    # Checkpoints from before it have no sha256. A key that a flipped bit renamed must not look so.
    if unknown := sorted(set(values) - _META_KEYS):
      raise ValueError(f"its meta has an unknown key {unknown[0]!r}")
    if values.get("sha256", digest := _sha256(values)) != digest:
      raise ValueError("its meta is not what was saved")
    if values["step"] != step:
      raise ValueError(f"its meta is of step {values['step']}")
    return values

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Whatever fails inside, on any host, is a DamagedError on all.

    Orbax raises OSError, ValueError, KeyError, AttributeError and bare Exception for files that are
    missing, cut or zeroed. Inside, nothing may wait for other hosts (Orbax's managers and
    checkpointers do, its handlers don't).
    """
    where, damage = f"{self.directory}/{step}", None
    try:
      yield
    except (UserError, jax.errors.JaxRuntimeError):
      raise  # another format; no memory left on a device
    except Exception as error:
      damage = _unreadable(where, error)
      damage.__cause__ = error
    try:
      with agreement.together():
        if damage is not None:
          raise damage
    except DamagedError:
      raise
    except UserError as error:
      raise DamagedError(str(error)) from damage

  def restore(self, step: int, target: Any) -> Any:
    """The state of a step, laid out as `target`, on whatever mesh the target names.

    Args:
      step: one of steps().
      target: a state of jax.ShapeDtypeStruct with shardings (jax.eval_shape of the init function).

    Raises:
      DamagedError: it can't be read, or is not what was saved.
      UserError: it holds other arrays than the target: another optimizer's, perhaps.
    """
    _ignore_late_reads()
    plain = _plain(target)
    with self._reading(step):
      saved = self._read_meta(step)["digests"]
      self._check_names(step, plain, saved)
      restored = ocp.StandardCheckpointHandler().restore(
        self.directory / str(step) / "state", args=ocp.args.StandardRestore(plain)
      )
    self._verify(step, restored, saved)
    return type(target)(**restored)

  def restore_params(self, step: int, target: Any) -> Any:
    """The parameters alone, laid out as the tree `target`: the optimizer's state is not read.

    Raises UserError as `restore` does.
    """
    _ignore_late_reads()
    with self._reading(step):
      saved = self._read_meta(step)["digests"]
      # PLACEHOLDER would need the names of the optimizer's leaves; a partial restore does not.
      restored = ocp.PyTreeCheckpointHandler().restore(
        self.directory / str(step) / "state",
        args=ocp.args.PyTreeRestore(
          item={"params": target},
          restore_args=ocp.checkpoint_utils.construct_restore_args({"params": target}),
          partial_restore=True,
        ),
      )
    self._verify(step, {"params": restored["params"]}, saved)
    return restored["params"]

  def _check_names(self, step: int, plain: dict[str, Any], saved: dict[str, int]) -> None:
    """Raises UserError if the checkpoint is of a state that is built otherwise."""
    names = {path_str(path) for path, _ in jax.tree_util.tree_flatten_with_path(plain)[0]}
    if names != set(saved):
      less, more = sorted(set(saved) - names), sorted(names - set(saved))
      parts = [f"it holds {less[0]}, which this config has not"] if less else []
      parts += [f"it lacks {more[0]}"] if more else []
      raise UserError(
        f"{self.directory}/{step}: not damaged, but of another optimizer or model ("
        f"{'; '.join(parts)}): take back what was changed in config.optim or config.model, or"
        " choose another --workdir"
      )

  def _verify(self, step: int, tree: dict[str, Any], saved: dict[str, int]) -> None:
    """Raises DamagedError if an array's bits are not those that were saved."""
    # The digests are made by all hosts together, so that all find the same.
    wrong = [name for name, digest in digests(tree).items() if saved.get(name) != digest]
    if wrong:
      error = ValueError(f"{wrong[0]} holds other bits than were saved")
      raise _unreadable(f"{self.directory}/{step}", error)

  def set_aside(self, step: int) -> Path:
    """Renames a damaged checkpoint, so that it is none any more; nothing is deleted.

    Returns:
      Its new place. Every host must call it.
    """
    source = self.directory / str(step)
    target = source.with_name(f"{step}.damaged")
    number = 2
    while target.exists():
      target, number = source.with_name(f"{step}.damaged{number}"), number + 1
    with agreement.together():
      if jax.process_index() == 0:
        try:
          source.rename(target)
        except OSError as error:
          raise UserError(
            f"{source}: damaged, and can't be renamed ({error.strerror}): move it away"
          ) from error
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"set aside {step}")
    self._manager.reload()
    return target

  def reached_preemption(self, step: int) -> bool:
    """Whether any host was told to stop, agreed on by all of them (see jax.distributed)."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits for running saves and stops the threads."""
    self._manager.close()


def digests(tree: Any) -> dict[str, int]:
  """A 32-bit digest of each array of a tree, by path: the same on every mesh.

  The sum, modulo 2^32, of each element's bits times an odd number made from its place. Integer sums
  don't depend on their order, so no array is gathered; an odd factor hides no single flipped bit.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  sharding = getattr(leaves[0][1], "sharding", None)
  mesh: Any = contextlib.nullcontext()
  if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, jax.sharding.Mesh):
    mesh = jax.set_mesh(sharding.mesh)
  with mesh:
    values = jax.device_get(_digest_all([leaf for _, leaf in leaves]))
  return {path_str(path): int(v) for (path, _), v in zip(leaves, values, strict=True)}


@jax.jit
def _digest_all(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_digest(x) for x in leaves]


def _digest(x: jax.Array) -> jax.Array:
  unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  place, stride = jnp.zeros((1,) * x.ndim, jnp.uint32), 1
  for dim in reversed(range(x.ndim)):
    index = jnp.arange(x.shape[dim], dtype=jnp.uint32) * jnp.uint32(stride % 2**32)
    place = place + index.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    stride *= x.shape[dim]
  return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _plain(state: Any) -> dict[str, Any]:
  """A dataclass of arrays as a dict, so that the format on disk is nobody's class."""
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


@functools.cache
def _ignore_late_reads() -> None:
  """Keeps a failed restore to one line.

  When one array can't be read, Orbax closes its event loop while TensorStore still reads the
  others; each of these then reports from a thread of its own, where nothing can catch it.
  """
  previous = sys.unraisablehook
  late = ("Event loop is closed", "Encountered error while reading array index")

  def hook(unraisable: "sys.UnraisableHookArgs") -> None:
    if not str(unraisable.exc_value).startswith(late):
      previous(unraisable)

  sys.unraisablehook = hook
  # Futures that nobody waits for any more, with specifications of a page each.
  unread = "exception was never retrieved"
  logging.getLogger("asyncio").addFilter(
    lambda record: not (unread in record.getMessage() and "tensorstore" in record.getMessage())
  )


def _sha256(values: dict[str, Any]) -> str:
  """Of a meta's other keys."""
  others = {key: value for key, value in values.items() if key != "sha256"}
  return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _unreadable(where: str, error: Exception) -> DamagedError:
  first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  return DamagedError(f"{where}: the checkpoint can't be read ({first[:300]}): {REMEDY}")

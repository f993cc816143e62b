"""Sealed lineage: what a checkpoint was made from, checked wherever it is used.

A trainer that only looks at shapes will train in silence on the wrong tokenizer's ids (and show a
better loss). Every checkpoint of jaxlm carries a Seal; training, resuming, evaluating, generating
and exporting compare it with what they were given.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

from jaxlm import __version__
from jaxlm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Seal:
  """Hashes (sha256, hex) of what a run is made from.

  Attributes:
    model: the model's shape, i.e. all of its config that decides what the parameters mean.
    tokenizer: the tokenizer's content; None where the data carries none (synthetic ids).
    data: what decided every row up to the checkpoint's.
    code: jaxlm's own source.
    version: jaxlm's version.
  """

  model: str
  tokenizer: str | None
  data: str
  code: str
  version: str = __version__

  def to_dict(self) -> dict[str, Any]:
    """Plain JSON values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any], where: str) -> "Seal":
    """Reads what to_dict wrote. Raises UserError when a field is missing."""
    try:
      return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
    except (KeyError, TypeError) as error:
      raise UserError(f"{where}: its seal is damaged ({error}); use an older checkpoint") from error


_REMEDY = {
  "model": "the model's shape differs: use the workdir's own config.json, or another --workdir",
  "tokenizer": "the tokenizer is another one: use the one that the run began with",
  "data": "the rows already trained on differ (data changed on disk, or its order, mixture or"
  " seq_len): restore the dataset, or start another --workdir",
}


def check(sealed: Seal, found: Seal, where: str, parts: tuple[str, ...]) -> list[str]:
  """Compares the named parts of a checkpoint's seal with what is there now.

  Returns:
    Warnings: the code changed since (never an error: fixing a bug must not end a run).

  Raises:
    UserError: a part differs; the line names it, the place and the remedy.
  """
  for part in parts:
    old, new = getattr(sealed, part), getattr(found, part)
    if old != new:
      raise UserError(
        f"{where}: sealed with {part} {_short(old)}, but {_short(new)} is here now: {_REMEDY[part]}"
      )
  if sealed.code != found.code:
    return [
      f"{where} was made by jaxlm {sealed.version} ({_short(sealed.code)}), this is {found.version}"
      f" ({_short(found.code)}): results may differ in their last digits"
    ]
  return []


def _short(digest: str | None) -> str:
  return "none" if digest is None else digest[:12]


@functools.cache
def code_fingerprint() -> str:
  """sha256 (hex) of all Python files of the installed jaxlm package."""
  root = Path(__file__).parent
  digest = hashlib.sha256()
  for file in sorted(root.rglob("*.py")):
    digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
  return digest.hexdigest()

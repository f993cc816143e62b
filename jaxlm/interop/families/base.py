"""What a family of models is: two functions between configs, and one table of weights.

A family is a file of this package that defines FAMILIES, a tuple of Family; nothing else names it.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.errors import UserError
from jaxlm.models.config import ModelConfig


class How(enum.Enum):
  """How the elements of a Hugging Face tensor lie in parameters.

  SAME: in the same order, whatever the shape (norms, biases; GPT-2's matrices).
  LINEAR: of a matrix (outputs, inputs), where a parameter has its inputs first.
  TABLE: a row for each id; the parameter may have more rows, which are 0.
  """

  SAME = "same"
  LINEAR = "linear"
  TABLE = "table"


@dataclasses.dataclass(frozen=True)
class Weight:
  """One tensor of Hugging Face and the parameters that it holds.

  Attributes:
    name: of the tensor; {layer} and {expert} stand for their numbers.
    paths: the parameters, from the root; with {layer} in the name, from the block. More than one:
      the tensor has their outputs one after another (its first dim for LINEAR, its last for SAME).
    how: see How.
    inputs: how many leading dims of a parameter are inputs (LINEAR, and SAME with several paths).
    interleaved: of several paths, how many groups of outputs (heads) there are: each has its part
      of every parameter. 1: the parameters stand whole, one after another.
    experts: of {expert} in the name, how many there are; the parameters' first dim.
    absent: layers that have no such tensor; nothing reads their parameters, which are 0.
  """

  name: str
  paths: tuple[str, ...]
  how: How = How.SAME
  inputs: int = 1
  interleaved: int = 1
  experts: int | None = None
  absent: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
  """How Hugging Face's models of one type become jaxlm's, and back.

  Attributes:
    model_type: as in config.json.
    architecture: the class that transformers loads it with, as in config.json.
    to_config: config.json -> config. Raises UserError for what jaxlm does not have.
    to_hf: config -> config.json without what all have in common (see `hf_config`). It may ignore
      what the family has not: `hf_config` sees to it that nothing is lost.
    weights: config -> the table.
    prefix: what published files may leave out at the start of tensors' names.
    ignored: a pattern of the names of tensors that say nothing new.
  """

  model_type: str
  architecture: str
  to_config: Callable[[Mapping[str, Any]], ModelConfig]
  to_hf: Callable[[Any], dict[str, Any]]
  weights: Callable[[Any], list[Weight]]
  prefix: str = "model."
  ignored: str = r".*\.rotary_emb\.inv_freq"

  def ignores(self, name: str) -> bool:
    """Whether a tensor of this name says nothing new."""
    return re.fullmatch(self.ignored, name) is not None


def refuse(hf: Mapping[str, Any], **allowed: Any) -> None:
  """Raises UserError when a key is neither missing nor as allowed (None is as good as missing)."""
  for key, expected in allowed.items():
    value = hf.get(key)
    values = expected if isinstance(expected, tuple) else (expected,)
    if value is not None and value not in values:
      raise UserError(
        f"config.json: {key}={value!r} is not supported for model_type={hf.get('model_type')!r}: "
        f"only {' or '.join(repr(one) for one in values)}"
      )


def need(hf: Mapping[str, Any], key: str) -> Any:
  """hf[key]. Raises UserError when it is missing."""
  if hf.get(key) is None:
    raise UserError(f"config.json: {key} is missing (model_type={hf.get('model_type')!r})")
  return hf[key]


def choose(hf: Mapping[str, Any], key: str, options: Mapping[str, Any], default: str) -> Any:
  """options[hf[key]]. Raises UserError for a value that has none."""
  value = hf.get(key) or default
  if not isinstance(value, str) or value not in options:
    raise UserError(f"config.json: {key}={value!r} is not supported: only {sorted(options)}")
  return options[value]

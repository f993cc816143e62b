"""Config dataclasses to JSON and back, type checks, fingerprints and diffs. Standard library only.

A config is a tree of dataclasses whose fields are int, float, bool, str, Enum, `X | None`,
tuples, lists, dicts with string keys, and other config dataclasses. In JSON each dataclass
carries its class (`"_class": "jaxlm.models.decoder.DecoderConfig"`), so that a file alone is enough
to rebuild the run. Only dataclasses defined inside the `jaxlm` package are ever looked up: a
config file that was downloaded cannot name any other code.
"""

import dataclasses
import difflib
import enum
import hashlib
import importlib
import json
import os
import tempfile
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError

CLASS_KEY = "_class"
_PACKAGE = "jaxlm."


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns " (did you mean 'x'?)" for the name closest to `name`, or "" when none is close."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
  return f" (did you mean {close[0]!r}?)" if close else ""


def is_config(value: Any) -> bool:
  """True for an instance (not the class) of a dataclass."""
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _field_types(cls: type) -> dict[str, Any]:
  hints = typing.get_type_hints(cls)
  return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def is_optional(tp: Any) -> bool:
  """True if the field type `tp` accepts None."""
  return _is_union(tp) and types.NoneType in typing.get_args(tp)


def _is_union(tp: Any) -> bool:
  return typing.get_origin(tp) in (typing.Union, types.UnionType)


def type_name(tp: Any) -> str:
  """How a field type is written: `int`, `float | None`, `tuple[str, ...]`."""
  if tp is types.NoneType:
    return "None"
  if _is_union(tp):
    return " | ".join(type_name(arg) for arg in typing.get_args(tp))
  if typing.get_origin(tp) is not None:
    args = ("..." if arg is ... else type_name(arg) for arg in typing.get_args(tp))
    return f"{typing.get_origin(tp).__name__}[{', '.join(args)}]"
  if isinstance(tp, type) and issubclass(tp, enum.Enum):
    return f"one of {', '.join(tp.__members__)}"
  return getattr(tp, "__name__", str(tp))


# ---- values to and from JSON ------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
  """The config as plain JSON values.

  Ints in float fields become floats, so that `peak_lr=1` and `peak_lr=1.0` have one fingerprint.

  Raises:
    UserError: a config class is defined outside the jaxlm package.
  """
  cls = type(config)
  if not cls.__module__.startswith(_PACKAGE) or "." in cls.__qualname__:
    raise UserError(
      f"{cls.__module__}.{cls.__qualname__}: config classes must be defined at the top level of a"
      " module of the jaxlm package, otherwise a saved config could not be loaded again"
    )
  out: dict[str, Any] = {CLASS_KEY: f"{cls.__module__}.{cls.__qualname__}"}
  for name, tp in _field_types(cls).items():
    out[name] = _plain(getattr(config, name), tp)
  return out


def _plain(value: Any, tp: Any) -> Any:
  if is_config(value):
    return to_dict(value)
  if isinstance(value, enum.Enum):
    return value.name
  members = typing.get_args(tp)
  if _is_union(tp):
    if value is not None and float in members and int not in members and type(value) is int:
      return float(value)
    member = [arg for arg in members if arg is not types.NoneType]
    return None if value is None else _plain(value, member[0] if len(member) == 1 else Any)
  if isinstance(value, list | tuple):
    return [_plain(item, members[0] if members else Any) for item in value]
  if isinstance(value, dict):
    return {key: _plain(item, members[1] if members else Any) for key, item in value.items()}
  if tp is float and type(value) is int:
    return float(value)
  return value


def from_dict(values: Mapping[str, Any], path: str = "config", expected: type | None = None) -> Any:
  """Builds the config that `to_dict` described.

  Args:
    values: plain JSON values. A nested config without "_class" is of its field's declared class.
    path: how error messages name the root.
    expected: the root must be of this class or a subclass of it.

  Raises:
    UserError: an unknown key or class, a wrong type, a missing key that has no default.
  """
  cls = _find_class(values, path, expected)
  hints = _field_types(cls)
  arguments: dict[str, Any] = {}
  for key, value in values.items():
    if key == CLASS_KEY:
      continue
    if key not in hints:
      raise UserError(f"{path}.{key}: no such key in {cls.__name__}{nearest(key, hints)}")
    arguments[key] = _convert(value, hints[key], f"{path}.{key}", from_json=True)
  for field in dataclasses.fields(cls):
    has_default = (
      field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    )
    if field.name not in arguments and not has_default:
      raise UserError(f"{path}.{field.name}: missing, and {cls.__name__} has no default for it")
  return cls(**arguments)


def _find_class(values: Any, path: str, expected: type | None) -> Any:
  if not isinstance(values, Mapping):
    raise UserError(f"{path}={values!r}: expected an object with the keys of a config")
  if CLASS_KEY not in values:
    if expected is None:
      raise UserError(f'{path}: no "{CLASS_KEY}" key; was this file written by jaxlm?')
    return expected
  full_name = values[CLASS_KEY]
  if not isinstance(full_name, str) or not full_name.startswith(_PACKAGE):
    raise UserError(f"{path}.{CLASS_KEY}={full_name!r}: only classes of jaxlm are loaded")
  module_name, _, name = full_name.rpartition(".")
  try:
    cls = vars(importlib.import_module(module_name)).get(name)
  except ImportError as error:
    raise UserError(f"{path}.{CLASS_KEY}={full_name!r}: cannot import {module_name}") from error
  # A class that the module merely imported is refused too: its own module is its one address.
  if (
    not isinstance(cls, type) or not dataclasses.is_dataclass(cls) or cls.__module__ != module_name
  ):
    raise UserError(f"{path}.{CLASS_KEY}={full_name!r}: {module_name} defines no such config class")
  if expected is not None and not issubclass(cls, expected):
    raise UserError(f"{path}.{CLASS_KEY}={full_name!r}: expected a {expected.__name__}")
  return cls


def check_types(config: Any, path: str = "config") -> None:
  """Checks a config built in Python against the declared types of its fields.

  Raises:
    UserError: e.g. `config.optim.peak_lr='x': expected float`.
  """
  for name, tp in _field_types(type(config)).items():
    _convert(getattr(config, name), tp, f"{path}.{name}", from_json=False)
  unknown = (
    set(vars(config)) - set(_field_types(type(config))) if hasattr(config, "__dict__") else ()
  )
  for name in sorted(unknown):
    # `config.peek_lr = 1` in a config file makes a new attribute that nothing would ever read.
    raise UserError(
      f"{path}.{name}: no such key in {type(config).__name__}"
      f"{nearest(name, _field_types(type(config)))}"
    )


def _convert(value: Any, tp: Any, path: str, *, from_json: bool) -> Any:
  """Returns `value` as type `tp`; from_json allows lists as tuples, names as enums, and objects."""

  def wrong() -> UserError:
    return UserError(f"{path}={value!r}: expected {type_name(tp)}")

  if tp is Any or tp is object:
    return value
  origin, args = typing.get_origin(tp), typing.get_args(tp)
  if _is_union(tp):
    if value is None and types.NoneType in args:
      return None
    members = [arg for arg in args if arg is not types.NoneType]
    if len(members) == 1 and (
      dataclasses.is_dataclass(members[0]) or typing.get_origin(members[0])
    ):
      return _convert(value, members[0], path, from_json=from_json)  # the inner message says more
    for member in members:
      try:
        return _convert(value, member, path, from_json=from_json)
      except UserError:
        continue
    raise wrong()
  if origin is tuple:
    if not isinstance(value, list | tuple if from_json else tuple):
      raise wrong()
    if args and args[-1] is not ...:
      if len(value) != len(args):
        raise wrong()
      item_types: Iterable[Any] = args
    else:
      item_types = [args[0] if args else Any] * len(value)
    return tuple(
      _convert(item, item_type, f"{path}[{i}]", from_json=from_json)
      for i, (item, item_type) in enumerate(zip(value, item_types, strict=True))
    )
  if origin is list:
    if not isinstance(value, list):
      raise wrong()
    return [
      _convert(item, args[0], f"{path}[{i}]", from_json=from_json) for i, item in enumerate(value)
    ]
  if origin is dict:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
      raise wrong()
    return {
      key: _convert(item, args[1], f"{path}.{key}", from_json=from_json)
      for key, item in value.items()
    }
  if dataclasses.is_dataclass(tp):
    if from_json:
      return from_dict(value, path, typing.cast(type, tp))
    if not isinstance(value, typing.cast(type, tp)):
      raise wrong()
    check_types(value, path)
    return value
  if isinstance(tp, type) and issubclass(tp, enum.Enum):
    if isinstance(value, tp):
      return value
    if from_json and isinstance(value, str) and value in tp.__members__:
      return tp[value]
    raise UserError(
      f"{path}={value!r}: expected {type_name(tp)}{nearest(str(value).upper(), tp.__members__)}"
    )
  if tp is float:
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise wrong()
    return float(value)
  # bool is a subclass of int, but `num_layers=True` is a slip.
  if not isinstance(value, tp) or (tp is int and isinstance(value, bool)):
    raise wrong()
  return value


def parse_text(text: str, tp: Any) -> Any:
  """Reads one command-line value as the field type `tp` (its None stripped).

  `none` reads as None except for str and for an enum that has a member of that name; tuples are
  written `a,b`; enum names in any case.

  Raises:
    ValueError: "expected int" and the like.
  """
  members: dict[str, Any] = {}
  if isinstance(tp, type) and issubclass(tp, enum.Enum):
    members = {name.lower(): member for name, member in tp.__members__.items()}
  if text.lower() == "none" and tp is not str and "none" not in members:
    return None
  try:
    if tp in (int, float, str):
      return tp(text)
    if tp is bool:
      return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if members:
      return members[text.lower()]
    if typing.get_origin(tp) is tuple:
      item_type = typing.get_args(tp)[0]
      inner = text.strip()
      if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
      parts = [part.strip().strip("'\"") for part in inner.split(",")]
      return tuple(parse_text(part, item_type) for part in parts if part)
  except (KeyError, ValueError):
    raise ValueError(f"expected {type_name(tp)}") from None
  raise ValueError(f"a {type_name(tp)} cannot be given on the command line")


# ---- files, fingerprints, differences ---------------------------------------------------------


def save_json(config: Any, file: str | os.PathLike[str]) -> None:
  """Writes the config as JSON; a reader sees the old file or the new one, never half of it."""
  file = Path(file)
  text = json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"
  handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
  try:
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
      stream.write(text)
      stream.flush()
      os.fsync(stream.fileno())
    # mkstemp makes files that only their owner can read; a run's config is no secret.
    Path(temporary).chmod(0o644)
    Path(temporary).replace(file)
  except BaseException:
    Path(temporary).unlink(missing_ok=True)
    raise


def load_json(file: str | os.PathLike[str], path: str = "config") -> Any:
  """Reads a config written by `save_json`; no code of the file is executed.

  Raises:
    UserError: the file is missing or unreadable, is not JSON, or does not describe a config.
  """
  try:
    values = json.loads(Path(file).read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"{file}: {error.strerror or error}") from error
  except ValueError as error:
    raise UserError(f"{file}: not a JSON file: {error}") from error
  try:
    return from_dict(values, path)
  except UserError as error:
    raise UserError(f"{file}: {error}") from error


def fingerprint(config: Any, exclude: Iterable[str] = ()) -> str:
  """sha256 (hex) of the config's canonical JSON, without the dotted paths in `exclude`."""
  values = to_dict(config)
  for dotted in exclude:
    *parents, last = dotted.split(".")
    holder: dict[str, Any] = values
    for parent in parents:
      holder = holder[parent]
    del holder[last]  # KeyError here: the caller excludes a key that does not exist
  text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()


def diff(a: Any, b: Any) -> list[str]:
  """Lines such as `model.num_layers: 4 → 6` for each value that differs (configs or dicts)."""
  left, right = (_flatten(to_dict(c) if is_config(c) else c) for c in (a, b))
  lines = []
  for key in [*left, *(key for key in right if key not in left)]:
    before, after = left.get(key, _ABSENT), right.get(key, _ABSENT)
    if type(before) is not type(after) or before != after:
      lines.append(f"{key}: {_show(before)} → {_show(after)}")
  return lines


_ABSENT = object()


def _show(value: Any) -> str:
  return "(absent)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _flatten(values: Any, path: str = "") -> dict[str, Any]:
  if isinstance(values, dict):
    items = [((f"{path}.{key}" if path else key), item) for key, item in values.items()]
  elif isinstance(values, list) and any(isinstance(item, dict | list) for item in values):
    items = [(f"{path}[{i}]", item) for i, item in enumerate(values)]
  else:
    return {path: values}
  return {key: leaf for inner, item in items for key, leaf in _flatten(item, inner).items()}

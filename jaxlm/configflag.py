"""The `--config` flag: a config from a file, with typed overrides from the command line.

ml_collections makes a flag of each `--config.key=value` and sets the value. What is done here
instead of there: `.json` files, errors of one line with the nearest key, the value types of
configlib (`none`, `a,b`), and no import of the config file as a module.
"""

import inspect
import re
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from jaxlm import configlib
from jaxlm.errors import UserError


class ConfigFlag:
  """What `cli.define_config` returns: `.value` and `.path`, once the command line is parsed."""

  def __init__(
    self,
    values: flags.FlagValues,
    default: str | None,
    example: str,
    expected: Callable[[], type] | None,
    needed: Callable[[], bool] = lambda: True,
  ):
    # No default for the flag itself: ml_collections would load it now, at import of the main.
    config_flags.DEFINE_config_file(
      "config",
      None,
      "FILE.py, FILE.py:argument or FILE.json; --config.key.key=value overrides a value of it",
      flag_values=values,
    )
    values["config"].parser = _ConfigParser()
    self._values = values
    self.default = default
    self.example = example
    self._expected = expected
    self._needed = needed

  @property
  def value(self) -> Any:
    """The config, with the overrides of the command line; its types and values are checked. None
    where none was given to a command that needs none."""
    return self._values["config"].value

  @property
  def path(self) -> str:
    """The file that was asked for (FILE.py, FILE.py:argument or FILE.json)."""
    return config_flags.get_config_filename(self._values["config"])

  def prepare_argv(self) -> None:
    """Before parsing: puts --config or its default first in sys.argv, where ml_collections wants it
    (overrides may stand anywhere); refuses a missing or repeated flag."""
    at = [i for i, argument in enumerate(sys.argv) if i and re.match(r"--?config(=|$)", argument)]
    given = len(at)
    if given > 1:
      raise UserError("--config is given twice: there is one config to a run")
    if given and at[0] == len(sys.argv) - 1 and "=" not in sys.argv[-1]:
      raise UserError(f"--config names no file; for example --config={self.example}")
    if given:
      end = at[0] + (1 if "=" in sys.argv[at[0]] else 2)
      sys.argv[1:] = sys.argv[at[0] : end] + sys.argv[1 : at[0]] + sys.argv[end:]
    if not given and self.default is not None:
      sys.argv.insert(1, f"--config={_in_workdir(self.default)}")
    elif not given and self._needed():
      raise UserError(f"--config is missing; for example --config={self.example}")

  def check(self) -> None:
    """Checks what flags alone cannot: types set in Python, and the config's own `validate`."""
    config = self.value
    if config is None:
      return
    overrides = config_flags.get_override_values(self._values["config"])
    for key, value in overrides.items():
      # `none` is a legal string; only where the field may be None does it mean None.
      if isinstance(value, str) and value.lower() == "none" and _is_optional(config, key):
        config_path.set_value(key, config, None)
    configlib.check_types(config)
    if self._expected is not None and not isinstance(config, expected := self._expected()):
      raise UserError(
        f"--config={self.path}: makes a {type(config).__name__}; this command wants a"
        f" {expected.__name__}"
      )
    if hasattr(config, "validate"):
      takes_path = bool(inspect.signature(config.validate).parameters)
      config.validate("config") if takes_path else config.validate()


def _in_workdir(path: str) -> str:
  """The path with WORKDIR replaced by what --workdir says."""
  if not path.startswith("WORKDIR/"):
    return path
  for argument, following in zip(sys.argv[1:], [*sys.argv[2:], ""]):
    name, equals, value = argument.partition("=")
    if name in ("--workdir", "-workdir"):
      return (value if equals else following) + path.removeprefix("WORKDIR")
  raise UserError("--workdir is missing: directory of the run")


class _ConfigParser(flags.ArgumentParser):
  """Loads the file and checks the keys of all overrides, before their flags are made."""

  def parse(self, path: Any) -> Any:
    config = load_config(path)
    for argument in sys.argv[1:]:
      if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
        tp = _field_type(config, match[1])
        config_flags.register_flag_parser_for_type(tp, _FieldParser(tp))
    return config

  def flag_type(self) -> str:
    return "config file"


class _FieldParser(flags.ArgumentParser):
  """Reads the value of an override as configlib does (ml_collections' own know no `none`)."""

  def __init__(self, tp: Any):
    self._type = tp

  def parse(self, argument: Any) -> Any:
    return configlib.parse_text(argument, self._type) if isinstance(argument, str) else argument

  def flag_type(self) -> str:
    return configlib.type_name(self._type)


def load_config(path: str) -> Any:
  """Loads FILE.py, FILE.py:argument or FILE.json.

  Raises:
    UserError: no such file, an error inside it (with its line), or it does not make a config.
  """
  file, colon, argument = path.partition(".py:")
  file, arguments = (f"{file}.py", (argument,)) if colon else (path, ())
  if not Path(file).is_file():
    what = "is a directory" if Path(file).is_dir() else "no such file"
    names = [str(p) for p in Path(file).parent.glob("*.py")] if Path(file).parent.is_dir() else []
    raise UserError(f"--config={path}: {what}{configlib.nearest(file, names)}")
  if file.endswith(".json"):
    return configlib.load_json(file)
  if not file.endswith(".py"):
    raise UserError(f"--config={path}: expected a .py or a .json file")
  # Compiled here, not by an import: no __pycache__ beside configs, and never a stale one.
  module = types.ModuleType("jaxlm_config_file")
  module.__file__ = file
  try:
    exec(compile(Path(file).read_text(encoding="utf-8"), file, "exec"), module.__dict__)
    if not hasattr(module, "get_config"):
      raise UserError(f"--config={path}: the file defines no get_config()")
    config = module.get_config(*arguments)
  except UserError:
    raise
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else 1
    message = error.msg if isinstance(error, SyntaxError) else error
    raise UserError(f"{file}:{line}: {type(error).__name__}: {message}") from error
  if not configlib.is_config(config):
    raise UserError(
      f"--config={path}: get_config() returned {type(config).__name__}, not a config dataclass"
    )
  return config


def _field_type(config: Any, key: str) -> Any:
  """The type of the field that an override sets (None stripped); UserError if there is none."""
  flag = f"--config.{key}"
  try:
    parts = config_path.split(key)
  except (ValueError, TypeError):
    raise UserError(
      f"{flag}: cannot read this key; write for example data.sources[0].path"
    ) from None
  holder = config
  for i, part in enumerate(parts):
    if isinstance(holder, list | tuple):
      if not isinstance(part, int) or not -len(holder) <= part < len(holder):
        raise UserError(f"{flag}: index [{part}] is outside a list of {len(holder)} values")
      child = holder[part]
    else:
      names = list(holder) if isinstance(holder, dict) else list(getattr(holder, "__dict__", ()))
      if part not in names:
        inside = f"in {type(holder).__name__}" if configlib.is_config(holder) else "here"
        raise UserError(f"{flag}: no such key {inside}{configlib.nearest(str(part), names)}")
      child = holder[part] if isinstance(holder, dict) else getattr(holder, str(part))
    if i < len(parts) - 1:
      if child is None:
        raise UserError(f"{flag}: {part} is None in this config; set it in the config file first")
      holder = child
  if configlib.is_config(child) or isinstance(child, list | dict):
    keys = (
      child if isinstance(child, dict) else range(len(child)) if isinstance(child, list) else ()
    )
    inner = next((f"[{k!r}]" for k in keys), "") or ".key" * configlib.is_config(child)
    raise UserError(f"{flag}: holds several values; set one of them, like {flag}{inner}=…")
  tp = config_path.get_type(key, config)
  if dict in (tp, getattr(tp, "__origin__", None)) or tp is types.NoneType:
    raise UserError(f"{flag}: cannot be set on the command line; set it in the config file")
  return tp


def _is_optional(config: Any, key: str) -> bool:
  parts = config_path.split(key)
  holder = config
  for part in parts[:-1]:
    holder = holder[part] if isinstance(holder, list | dict) else getattr(holder, str(part))
  if not configlib.is_config(holder):
    return False
  return configlib.is_optional(config_path.get_type(str(parts[-1]), holder, normalize=False))

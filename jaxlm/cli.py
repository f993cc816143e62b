"""Command lines: flags, `--config`, one-line errors and exit statuses of every `jaxlm` command.

A main is a module `jaxlm/<verb>.py` with a docstring (its `--help`), flags defined at module level
with the `define_*` functions below, and `main() -> int | None`, and ends in

    if __name__ == "__main__":
      cli.run(main, doc=__doc__)

Heavy imports (jax and all that needs it) belong inside `main()`: then `--help` and a mistyped key
answer at once, and environment variables can still be set before JAX starts.

Exit statuses: 0 done; 1 a bug (with its traceback), a verdict that something is wrong, or hosts
that did not come together (one line); 2 bad input (one line on stderr);
75 preempted, run the same command again to resume (EX_TEMPFAIL); 130 interrupted by Ctrl-C.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from jaxlm import configlib, hugepages
from jaxlm.configflag import ConfigFlag
from jaxlm.errors import UserError

OK = 0
USER_ERROR = 2
PREEMPTED = 75
INTERRUPTED = 130

VERBS = {
  "quickstart": "jaxlm.quickstart",
  "prepare": "jaxlm.prepare",
  "train": "jaxlm.train",
  "rehearse": "jaxlm.rehearse",
  "verify-resume": "jaxlm.verify_resume",
  "evaluate": "jaxlm.evaluate",
  "generate": "jaxlm.generate",
  "serve": "jaxlm.serve",
  "convert": "jaxlm.convert",
  "plan": "jaxlm.plan.__main__",
}

Main = Callable[[], int | None]

# Each main has its own flags: several mains may be imported in one process (tests, notebooks)
# and all of them define --config.
_flags_of: dict[str, flags.FlagValues] = {}
_configs: dict[str, ConfigFlag] = {}
_required: dict[str, dict[str, str]] = {}


def _flag_values(depth: int = 2) -> tuple[str, flags.FlagValues]:
  """The flags of the module that called the `define_*` function."""
  module = sys._getframe(depth).f_globals["__name__"]
  return module, _flags_of.setdefault(module, flags.FlagValues())


def define_string(
  name: str, default: str | None, help: str, *, required: bool = False
) -> flags.FlagHolder[Any]:
  """A flag of text. `required`: the command refuses to start without it."""
  module, values = _flag_values()
  if required:
    _required.setdefault(module, {})[name] = help
  return flags.DEFINE_string(name, default, help, flag_values=values)


def define_integer(name: str, default: int | None, help: str, **limits: int) -> Any:
  """A flag of an int; limits: lower_bound, upper_bound."""
  define: Any = flags.DEFINE_integer
  return define(name, default, help, flag_values=_flag_values()[1], **limits)


def define_float(name: str, default: float | None, help: str, **limits: float) -> Any:
  """A flag of a float; limits: lower_bound, upper_bound."""
  define: Any = flags.DEFINE_float
  return define(name, default, help, flag_values=_flag_values()[1], **limits)


def define_bool(name: str, default: bool, help: str) -> Any:
  """A flag that is on (`--name`) or off (`--noname`)."""
  return flags.DEFINE_bool(name, default, help, flag_values=_flag_values()[1])


def define_enum(name: str, default: str | None, choices: Sequence[str], help: str) -> Any:
  """A flag with one of the `choices`."""
  return flags.DEFINE_enum(name, default, choices, help, flag_values=_flag_values()[1])


def define_list(name: str, default: Sequence[str], help: str) -> Any:
  """A flag with several values: `--name=a,b`."""
  return flags.DEFINE_list(name, list(default), help, flag_values=_flag_values()[1])


def define_config(
  default: str | None = None,
  *,
  example: str = "configs/tiny.py",
  expected: Callable[[], type] | None = None,
  needed: Callable[[], bool] = lambda: True,
) -> ConfigFlag:
  """Defines `--config=FILE` and its typed overrides `--config.key.key=value`.

  FILE.py is executed and its `get_config()` called (FILE.py:x calls `get_config("x")`).
  FILE.json, as written into each run's directory, executes nothing.

  Args:
    default: the file that is used when the flag is absent; None: the flag is required. One that
      begins with WORKDIR/ lies in what --workdir names.
    example: the file that the error about a missing flag names.
    expected: returns the class that the config must have (called after parsing).
    needed: whether the flag is required where there is no default (called before parsing).
  """
  module, values = _flag_values()
  _configs[module] = ConfigFlag(values, default, example, expected, needed)
  return _configs[module]


def run_config() -> type:
  """What `expected` is for commands that take the config of a run."""
  # By name: those of data, which never import JAX, have this module too.
  found: type = importlib.import_module("jaxlm.config").RunConfig
  return found


# ---- running a main ---------------------------------------------------------------------------


def run(main: Main, *, doc: str | None) -> NoReturn:
  """Parses the command line, runs `main` and exits with its status; see the module docstring."""
  hugepages.begin_again()
  _exit(lambda: execute(main, doc=doc, argv=sys.argv))


def execute(main: Main, *, doc: str | None, argv: Sequence[str]) -> int:
  """`run` without the exit: returns the status. argv[0] is the program's name."""
  saved, sys.argv = sys.argv, list(argv)  # ml_collections finds the overrides in sys.argv
  try:
    if any(a in ("-h", "-help", "--help", "--helpfull", "-?") for a in _before_dashes(argv[1:])):
      print(_help(main.__module__, doc))
      return OK
    _parse(main.__module__)
    return main() or OK
  except UserError as error:
    return fail(str(error))
  except RuntimeError as error:  # jax is not imported here, and would name no class of its own
    if not str(error).startswith("Unable to initialize backend"):
      raise
    return fail(str(error))
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return INTERRUPTED
  finally:
    sys.argv = saved


def fail(message: str) -> int:
  """Prints `error: message` in one line on stderr; returns the status of bad input."""
  print(f"error: {' '.join(message.split())}", file=sys.stderr)
  return USER_ERROR


def module_command(verb: str) -> str:
  """How a reader starts a verb with this very interpreter: `.venv/bin/python -m jaxlm.train`."""
  found = shutil.which("python")
  if found is not None and Path(found).absolute() == Path(sys.executable).absolute():
    python = "python"
  else:
    executable = Path(sys.executable)
    near = executable.is_relative_to(Path.cwd())
    python = shlex.quote(str(executable.relative_to(Path.cwd()) if near else executable))
  return f"{python} -m jaxlm.{verb}"


def _before_dashes(arguments: Sequence[str]) -> list[str]:
  arguments = list(arguments)
  return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _parse(module: str) -> None:
  """Parses sys.argv into the flags of a main."""
  values = _flags_of.setdefault(module, flags.FlagValues())
  for name in [name for name in values if name.startswith("config.")]:
    delattr(values, name)  # overrides of an earlier command line in this process
  values.unparse_flags()
  config = _configs.get(module)
  if config is not None:
    config.prepare_argv()
  try:
    extra = values(sys.argv)[1:]
  except flags.UnrecognizedFlagError as error:
    hint = configlib.nearest(error.flagname, list(values)).replace("'", "--", 1).replace("'", "")
    raise UserError(f"unknown flag --{error.flagname}{hint}; --help lists all flags") from None
  except flags.Error as error:
    # absl wraps a parser's ValueError, and UserError is one: show the message it had.
    if isinstance(error.__context__, UserError):
      raise error.__context__ from None
    raise UserError(re.sub(r"^flag (?=--)", "", str(error))) from None
  if extra:
    raise UserError(f"unexpected argument {extra[0]!r}: values are given as --name=value")
  for name, help in _required.get(module, {}).items():
    if not values[name].value:
      raise UserError(f"--{name} is missing: {help}")
  if config is not None:
    config.check()
  if not flags.FLAGS.is_parsed():  # libraries (Grain's worker processes) ask absl's global flags
    flags.FLAGS(sys.argv[:1])


def _help(module: str, doc: str | None) -> str:
  values = _flags_of.get(module, flags.FlagValues())
  lines = [inspect.cleandoc(doc or ""), "", "flags:"]
  # Override flags (config.x) exist only after a parse in this process.
  for name in sorted(n for n in values if "." not in n):
    flag = values[name]
    default = flag.default
    if name == "config":
      default = _configs[module].default
    required = name in _required.get(module, {}) or (name == "config" and default is None)
    note = "" if default in (None, "", []) else f" (default: {_show(default)})"
    lines.append(f"  --{'[no]' if flag.boolean else ''}{name}")
    lines.append(f"      {flag.help}{' (required)' if required else note}")
  return "\n".join([*lines, "  --help", "      this text"])


def _show(default: Any) -> str:
  if isinstance(default, bool):
    return "on" if default else "off"
  return ",".join(default) if isinstance(default, list) else str(default)


# ---- the `jaxlm` command ----------------------------------------------------------------------


def console() -> NoReturn:
  """The `jaxlm` script: `jaxlm VERB flags…` is `python -m jaxlm.VERB flags…`."""
  hugepages.begin_again()
  _exit(lambda: dispatch(sys.argv))


def _exit(command: Callable[[], int]) -> NoReturn:
  try:
    status = command()
  except Exception:
    traceback.print_exc()
    status = 1
  joined = sys.modules.get("jaxlm.distributed")  # not imported here: it knows JAX
  if joined is not None and status not in (OK, PREEMPTED):
    joined.leave(status)
  sys.exit(status)


def dispatch(argv: Sequence[str]) -> int:
  """Runs `jaxlm VERB …`; argv[0] is the program's name. Returns the exit status."""
  verbs = {verb: module for verb, module in VERBS.items() if _exists(module)}
  if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
    width = max(map(len, verbs), default=0)
    print("jaxlm: pretrain a language model from scratch on JAX.\n\nusage: jaxlm VERB [flags]\n")
    for verb, module in verbs.items():
      print(f"  {verb:<{width}}  {_summary(module)}")
    print("\n`jaxlm VERB --help` shows its flags and examples.")
    return OK if len(argv) > 1 else USER_ERROR
  if argv[1] == "--version":
    print(importlib.import_module("jaxlm").__version__)
    return OK
  if argv[1] not in verbs:
    hint = configlib.nearest(argv[1], verbs)
    return fail(f"jaxlm: no such verb {argv[1]!r}{hint}; `jaxlm --help` lists them")
  main_module = importlib.import_module(verbs[argv[1]])
  return execute(main_module.main, doc=main_module.__doc__, argv=[f"jaxlm {argv[1]}", *argv[2:]])


def _exists(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # the package of a package's own main
    return False


def _summary(module: str) -> str:
  """The first line of a module's docstring, without importing the module."""
  spec = importlib.util.find_spec(module)
  assert spec is not None and spec.origin is not None
  doc = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
  return doc.partition("\n")[0]

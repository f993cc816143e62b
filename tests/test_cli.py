"""Every wrong command line ends in one line and status 2, and fast; overrides are typed."""

import dataclasses
import enum
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from jaxlm import cli, configlib
from jaxlm.errors import UserError

pytestmark = pytest.mark.smoke


class Kind(enum.Enum):
  COSINE = 1
  LINEAR = 2


@dataclasses.dataclass(kw_only=True)
class Source:
  path: str = "a"
  paths: tuple[str, ...] = ()


@dataclasses.dataclass(kw_only=True)
class Phase:
  weights: dict[str, float] = dataclasses.field(default_factory=lambda: {"web": 1.0, "code-x": 2.0})


@dataclasses.dataclass(kw_only=True)
class Optim:
  peak_lr: float = 1e-3
  kind: Kind = Kind.COSINE
  clip: float | None = 1.0
  note: str | None = None
  nesterov: bool = True
  steps: int = 4
  kind_or_none: Kind | None = None


@dataclasses.dataclass(kw_only=True)
class Run:
  optim: Optim = dataclasses.field(default_factory=Optim)
  missing: Optim | None = None
  sources: list[Source] = dataclasses.field(default_factory=lambda: [Source(), Source()])
  phases: list[Phase] = dataclasses.field(default_factory=lambda: [Phase()])
  name: str = "run"

  def validate(self) -> None:
    if self.optim.steps < 1:
      raise UserError(f"optim.steps={self.optim.steps}: must be at least 1")


CONFIG_FILE = """
from jaxlm.fake_configs import Run
def get_config(size="small"):
  return Run(name=size)
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
  """jaxlm.fake_main with --config, --workdir (required), --limit and --fast; a config file."""
  configs = types.ModuleType("jaxlm.fake_configs")
  for cls in (Source, Phase, Optim, Run):
    monkeypatch.setattr(cls, "__module__", configs.__name__)
    setattr(configs, cls.__name__, cls)
  configs.Kind = Kind
  monkeypatch.setitem(sys.modules, configs.__name__, configs)
  module = types.ModuleType("jaxlm.fake_main")
  source = """
from jaxlm import cli
CONFIG = cli.define_config(example="configs/tiny.py")
WORKDIR = cli.define_string("workdir", None, "where the run is written", required=True)
LIMIT = cli.define_integer("limit", 7, "how many", lower_bound=1)
FAST = cli.define_bool("fast", False, "skip the slow part")
def main():
  return 0
"""
  exec(source, module.__dict__)
  module.file = tmp_path / "tiny.py"
  module.file.write_text(CONFIG_FILE)
  yield module
  cli._flags_of.pop("jaxlm.fake_main"), cli._configs.pop("jaxlm.fake_main")
  cli._required.pop("jaxlm.fake_main")


def call(fake, *arguments, workdir="w", config=True, main=None):
  argv = ["prog"]
  if config:
    argv.append(f"--config={fake.file if config is True else config}")
  if workdir:
    argv.append(f"--workdir={workdir}")
  return cli.execute(main or fake.main, doc="Trains.\n\nExample: x", argv=[*argv, *arguments])


def error(capsys, status) -> str:
  assert status == cli.USER_ERROR
  text = capsys.readouterr().err
  assert text.startswith("error: ") and text.count("\n") == 1, text
  return text.removeprefix("error: ").strip()


def test_typed_overrides(fake):
  status = call(
    fake,
    "--config.optim.peak_lr=2",
    "--config.optim.kind=linear",
    "--config.optim.clip=none",
    "--config.optim.note=hello",
    "--noconfig.optim.nesterov",
    "--config.optim.steps",
    "9",
    "--config.optim.kind_or_none=cosine",
    "--config.sources[1].path=b",
    "--config.sources[0].paths=x,y",
    "--config.sources[1].paths=dir/z",
    "--config.phases[0].weights.web=0.5",
    "--config.phases[0].weights['code-x']=0.25",
    "--config.name=none",
  )
  assert status == 0
  config = fake.CONFIG.value
  assert config.optim == Optim(
    peak_lr=2.0,
    kind=Kind.LINEAR,
    clip=None,
    note="hello",
    nesterov=False,
    steps=9,
    kind_or_none=Kind.COSINE,
  )
  assert [s.path for s in config.sources] == ["a", "b"]
  assert [s.paths for s in config.sources] == [("x", "y"), ("dir/z",)]
  assert config.phases[0].weights == {"web": 0.5, "code-x": 0.25}
  assert config.name == "none", "none is a legal string where None is not allowed"
  assert fake.CONFIG.path == str(fake.file)
  assert fake.WORKDIR.value == "w" and fake.LIMIT.value == 7


def test_none_for_an_optional_string_and_a_second_call_starts_afresh(fake):
  assert call(fake, "--config.optim.note=x", "--limit=3") == 0
  assert call(fake, "--config.optim.note=none") == 0
  assert fake.CONFIG.value.optim.note is None
  assert fake.LIMIT.value == 7
  assert call(fake, "--config.optim.note=None") == 0
  assert fake.CONFIG.value.optim.note is None, "in any case, as for other types"


def test_overrides_may_stand_before_the_config(fake, capsys):
  """Breaks if ml_collections meets an override before it knows the config that it is of."""
  before = ["prog", "--config.optim.steps=9", "--limit=3"]
  for config in (
    [f"--config={fake.file}"],
    ["--config", str(fake.file)],
    ["-config", str(fake.file)],
  ):
    argv = [*before, *config, "--workdir=w"]
    assert cli.execute(fake.main, doc="", argv=argv) == 0, capsys.readouterr().err
    assert (fake.CONFIG.value.optim.steps, fake.LIMIT.value) == (9, 3)
  text = error(capsys, cli.execute(fake.main, doc="", argv=[*before, "--config"]))
  assert text == "--config names no file; for example --config=configs/tiny.py"


def test_config_argument_and_json(fake, tmp_path):
  assert call(fake, config=f"{fake.file}:large") == 0
  assert fake.CONFIG.value.name == "large"
  configlib.save_json(fake.CONFIG.value, tmp_path / "config.json")
  assert call(fake, "--config.optim.steps=5", config=tmp_path / "config.json") == 0
  assert (fake.CONFIG.value.name, fake.CONFIG.value.optim.steps) == ("large", 5)


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.optim.peek_lr=1", ": no such key in Optim (did you mean 'peak_lr'?)"),
    ("--config.optm.peak_lr=1", ": no such key in Run (did you mean 'optim'?)"),
    ("--config.optim.peak_lr=x", "=x: expected float"),
    ("--config.optim.steps=1.5", "=1.5: expected int"),
    ("--config.optim.kind=cosin", "=cosin: expected one of COSINE, LINEAR"),
    ("--config.sources[2].path=x", ": index [2] is outside a list of 2 values"),
    ("--config.sources=x", ": holds several values; set one of them, like --config.sources[0]=…"),
    ("--config.optim=x", ": holds several values; set one of them, like --config.optim.key=…"),
    (
      "--config.missing.steps=1",
      ": missing is None in this config; set it in the config file first",
    ),
    ("--config.phases[0].weights.wev=1", ": no such key here (did you mean 'web'?)"),
    ("--config.=1", ": cannot read this key; write for example data.sources[0].path"),
    ("--config.sources[=1", ": cannot read this key; write for example data.sources[0].path"),
    ("--limit=0", "=0: 0 is not a positive integer"),
  ],
)
def test_wrong_values(fake, capsys, argument, message):
  assert error(capsys, call(fake, argument)) == argument.partition("=")[0] + message


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--config.optim.steps=none", "config.optim.steps=None: expected int"),
    ("--config.optim.steps=0", "optim.steps=0: must be at least 1"),
    ("--limt=3", "unknown flag --limt (did you mean --limit?); --help lists all flags"),
    ("--config=b.py", "--config is given twice: there is one config to a run"),
    ("extra", "unexpected argument 'extra': values are given as --name=value"),
  ],
)
def test_wrong_command_lines(fake, capsys, argument, message):
  assert error(capsys, call(fake, argument)) == message


def test_missing_flags(fake, capsys):
  text = error(capsys, call(fake, config=False))
  assert text == "--config is missing; for example --config=configs/tiny.py"
  # An override alone must not hide that the file is missing.
  assert "--config is missing" in error(capsys, call(fake, "--config.a=1", config=False))
  assert error(capsys, call(fake, workdir=None)) == "--workdir is missing: where the run is written"


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("x = 1\ny = x / 0\n", ":2: ZeroDivisionError: division by zero"),
    ("def get_config():\n  import nowhere_at_all\n", ":2: ModuleNotFoundError: No module named"),
    ("def f(:\n", ":1: SyntaxError: "),
    ("def get_config():\n  raise ValueError('two\\nlines')\n", ":2: ValueError: two lines"),
    (
      "import jaxlm.fake_configs as c\ndef get_config():\n  return c.Run(nme='x')\n",
      ":3: TypeError",
    ),
    ("x = 1\n", "the file defines no get_config()"),
    ("def get_config():\n  return {}\n", "get_config() returned dict, not a config dataclass"),
    ("def get_config():\n  pass\n", "get_config() returned NoneType"),
    (CONFIG_FILE.replace("name=size", "name=3"), "config.name=3: expected str"),
  ],
)
def test_errors_inside_a_config_file(fake, capsys, text, message):
  fake.file.write_text(text)
  assert message in error(capsys, call(fake))


def test_config_files_that_are_not_there(fake, capsys, tmp_path):
  text = error(capsys, call(fake, config=tmp_path / "tinny.py"))
  assert text.endswith(f"tinny.py: no such file (did you mean '{fake.file}'?)")
  assert "is a directory" in error(capsys, call(fake, config=tmp_path))
  assert "no such file" in error(capsys, call(fake, config=tmp_path / "none.json"))
  (tmp_path / "x.yaml").write_text("")
  assert "expected a .py or a .json" in error(capsys, call(fake, config=tmp_path / "x.yaml"))


def test_statuses(fake, capsys):
  def main_that(action):
    def main():
      return action()

    main.__module__ = "jaxlm.fake_main"
    return main

  def raises(exception):
    def action():
      raise exception

    return main_that(action)

  assert call(fake, main=main_that(lambda: None)) == 0
  assert call(fake, main=main_that(lambda: cli.PREEMPTED)) == 75
  assert call(fake, main=raises(KeyboardInterrupt())) == 130
  assert capsys.readouterr().err == "interrupted\n"
  assert error(capsys, call(fake, main=raises(UserError("a\nb")))) == "a b"
  backend = RuntimeError("Unable to initialize backend 'foo': not in the list\n(set JAX_PLATFORMS)")
  assert error(capsys, call(fake, main=raises(backend))).startswith("Unable to initialize backend")
  with pytest.raises(RuntimeError):  # a bug keeps its traceback
    call(fake, main=raises(RuntimeError("bug")))


def test_help_shows_the_docstring_and_only_the_flags_of_this_main(fake, capsys):
  assert call(fake, "--help", config=False, workdir=None) == 0
  text = capsys.readouterr().out
  assert text.startswith("Trains.\n\nExample: x\n")
  assert "--limit\n      how many (default: 7)" in text
  assert "--workdir\n      where the run is written (required)" in text
  assert "--[no]fast\n      skip the slow part (default: off)" in text
  assert "logtostderr" not in text and "config.optim" not in text


def test_expected_class_and_default_file(fake, capsys, monkeypatch):
  monkeypatch.setattr(fake.CONFIG, "_expected", lambda: Optim)
  assert "makes a Run; this command wants a Optim" in error(capsys, call(fake))
  monkeypatch.setattr(fake.CONFIG, "_expected", lambda: Run)
  monkeypatch.setattr(fake.CONFIG, "default", f"{fake.file}:by-default")
  assert call(fake, "--config.optim.steps=3", config=False) == 0
  assert (fake.CONFIG.value.name, fake.CONFIG.value.optim.steps) == ("by-default", 3)


def test_console_lists_verbs_without_importing_them(capsys, monkeypatch, tmp_path):
  (tmp_path / "heavy_main.py").write_text(
    '"""Does heavy things."""\nraise SystemExit("imported")\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(cli, "VERBS", {"heavy": "heavy_main", "later": "jaxlm.no_such_main"})
  assert cli.dispatch(["jaxlm", "--help"]) == 0
  text = capsys.readouterr().out
  assert "  heavy  Does heavy things.\n" in text and "later" not in text
  assert error(capsys, cli.dispatch(["jaxlm", "hevy"])).startswith(
    "jaxlm: no such verb 'hevy' (did"
  )


def test_a_real_process_is_fast_light_and_the_same_by_both_names(tmp_path):
  """Breaks if cli (or what it imports) starts to import jax or numpy, or the two names differ."""
  main = tmp_path / "verb_main.py"
  main.write_text(
    '"""A verb.\n\nExample: run it."""\nimport sys\nfrom jaxlm import cli\n'
    'LIMIT = cli.define_integer("limit", 7, "how many")\n'
    "def main():\n"
    "  print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))\n"
    'if __name__ == "__main__":\n  cli.run(main, doc=__doc__)\n'
  )
  through_console = (
    "import sys; from jaxlm import cli; cli.VERBS = {'verb': 'verb_main'}; sys.argv[0] = 'jaxlm';"
    "cli.console()"
  )
  environment = os.environ | {"PYTHONPATH": str(tmp_path)}

  def output(*command):
    start = time.perf_counter()
    result = subprocess.run(
      [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    return result, time.perf_counter() - start

  by_module, seconds = output("-m", "verb_main", "--help")
  by_verb, _ = output("-c", through_console, "verb", "--help")
  assert by_module.returncode == by_verb.returncode == 0, by_verb.stderr
  assert by_module.stdout == by_verb.stdout and "how many (default: 7)" in by_verb.stdout
  assert seconds < 5, "help is meant to take well under a second"
  plain, _ = output("-m", "verb_main")
  assert (plain.returncode, plain.stdout) == (0, "[]\n"), plain.stderr
  wrong, _ = output("-m", "verb_main", "--limt=1")
  assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_printed_commands_name_this_interpreter(
  monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
  """Without an activated environment, `python` is another interpreter, or none."""
  monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
  monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/python")
  monkeypatch.chdir(tmp_path)
  assert cli.module_command("train") == ".venv/bin/python -m jaxlm.train"
  monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / ".venv/bin/python"))
  assert cli.module_command("train") == "python -m jaxlm.train"


@pytest.mark.parametrize("verb", ["train", "plan", "rehearse", "verify-resume"])
def test_a_config_of_data_is_no_run(verb, capsys, tmp_path):
  """Breaks if a command looks into a config of another class before it asks for its class."""
  file = Path(__file__).parent.parent / "configs/data/stdlib.py"
  argv = ["jaxlm", verb, f"--config={file}", f"--workdir={tmp_path}"]
  argv = [a for a in argv if verb != "plan" or "workdir" not in a]
  text = error(capsys, cli.dispatch([*argv, *(["--chip=h100"] if verb == "plan" else [])]))
  assert "makes a PrepareConfig; this command wants a RunConfig" in text

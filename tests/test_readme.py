"""Every command of the README runs, in the order in which a reader would type them.

Fails when a flag, a path or a file that the README names is renamed. Trainings are cut short by
overrides; nothing else of a command is changed.
"""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import cli, configlib
from jaxlm.configflag import load_config

ROOT = Path(__file__).parent.parent
# What makes a training short. The learning rate's course must fit into it.
SHORT = ["--config.num_steps=2", "--config.optim.schedule.warmup_steps=1"]
EXTRA = {"quickstart": ["--minutes=0.05"], "train": SHORT, "generate": ["--max_new_tokens=4"]}


def commands() -> list[str]:
  """The lines of the README's ```sh blocks, continuation lines joined."""
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  return [line.split(" #")[0].strip() for line in lines if line.strip()]


def test_every_command_is_of_a_known_kind() -> None:
  kinds = {shlex.split(c)[0] for c in commands()}
  assert kinds == {"make", ".venv/bin/python"}, kinds


def test_make_targets_exist() -> None:
  """`make -n` fails for a target that the Makefile does not have."""
  for command in commands():
    words = shlex.split(command)
    if words[0] == "make":
      subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A directory with the repository's configs and a folder of texts to learn from."""
  place = tmp_path_factory.mktemp("readme")
  (place / "configs").symlink_to(ROOT / "configs")
  texts = place / "my_texts"
  texts.mkdir()
  for i, file in enumerate(sorted((ROOT / "jaxlm").rglob("*.py"))[:40]):
    (texts / f"{i}.txt").write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
  return place


def test_commands_run(place: Path) -> None:
  ran = 0
  for command in commands():
    words = shlex.split(command)
    if words[0] == "make":
      continue
    verb = words[2].removeprefix("jaxlm.")
    environment = {**os.environ, "XLA_FLAGS": ""}
    result = subprocess.run(
      [sys.executable, *words[1:], *EXTRA.get(verb, [])],
      cwd=place,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    ran += 1
  assert ran >= 6


def shown() -> list[str]:
  """The commands of the ```text blocks, which take another machine, model or run."""
  text = (ROOT / "README.md").read_text(encoding="utf-8")
  blocks = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
  lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
  return [line.split(" #")[0].strip() for line in lines if line.startswith("python ")]


def test_shown_commands_parse(
  place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  """Their flags, configs and overrides, as the commands read them, and the launcher's."""
  spec = importlib.util.spec_from_file_location("launch_local", ROOT / "launch/local.py")
  assert spec is not None and spec.loader is not None
  local = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(local)
  monkeypatch.chdir(place)
  (place / "runs/mine").mkdir(parents=True, exist_ok=True)
  configlib.save_json(load_config("configs/tiny.py"), place / "runs/mine/config.json")
  verbs = []
  for command in shown():
    words = shlex.split(command)[1:]
    if words[0] == "launch/local.py":
      words = local.parse(words[1:]).command[1:]
    assert words[0] == "-m", command
    module = words[1] if words[1] != "jaxlm.plan" else "jaxlm.plan.__main__"
    importlib.import_module(module)

    def main() -> int:
      return 0

    main.__module__ = module  # whose flags are parsed
    status = cli.execute(main, doc="", argv=words[1:])
    assert status == 0, f"{command}\n{capsys.readouterr().err}"
    verbs.append(module)
  assert {"jaxlm.train", "jaxlm.rehearse", "jaxlm.verify_resume", "jaxlm.convert"} <= set(verbs)

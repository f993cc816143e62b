"""Every command of the README runs, in the order in which a reader would type them.

Fails when a flag, a path or a file that the README names is renamed. Trainings are cut short by
overrides; nothing else of a command is changed.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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

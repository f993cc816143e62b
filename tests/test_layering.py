"""Imports go downward only, data code knows no JAX, and configs and mains are light to import.

The rule, for each `import` of a jaxlm module anywhere in a file (top level, inside functions, under
TYPE_CHECKING):

- the imported part must be in a lower layer of LAYERS, or be the same part, where a part is a
  top-level module or package of jaxlm;
- in the same layer only the pairs of SAME_LAYER are allowed, and config modules (they import
  nothing heavy: an enum of layers/config.py may be read by kernels/);
- a module `__main__` of a package, and each verb of the command line, is of the last layer.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm import cli

ROOT = Path(__file__).resolve().parent.parent

LAYERS = (
  {"errors", "batch", "tree", "mesh", "configlib"}
  | {"xla_flags", "hugepages", "distributed", "devices"},
  {"sharding"},
  {"layers", "kernels", "quant"},
  {"models", "optim", "objectives", "data", "tokenizers"},
  {"workdir", "checkpoint", "lineage", "metrics", "tracking", "inference", "interop", "agreement"},
  {"training", "evals"},
  {"config", "plan"},
  # what mains share: the parts put together
  {"program", "run", "trained", "report", "sizing", "resumption", "resume_proof", "rehearsal"}
  | {"run_checks", "heldout"},
  {"cli", "configflag", "score_documents"},
)
MAINS = len(LAYERS) - 1
SAME_LAYER = {
  ("configlib", "errors"),
  ("mesh", "errors"),
  ("distributed", "errors"),
  ("devices", "errors"),
  ("devices", "mesh"),
  ("batch", "errors"),
  ("hugepages", "xla_flags"),
  ("tree", "errors"),
  ("layers", "kernels"),
  ("layers", "quant"),
  ("kernels", "quant"),
  ("data", "tokenizers"),  # data/prep trains a tokenizer and tokenises with it
  ("checkpoint", "agreement"),
  ("checkpoint", "lineage"),
  ("agreement", "lineage"),
  ("plan", "config"),
  ("report", "trained"),
  ("resume_proof", "resumption"),
  ("resume_proof", "run"),
  ("rehearsal", "resumption"),
  ("rehearsal", "run"),
  ("rehearsal", "program"),
  ("run", "program"),
  ("run", "run_checks"),
  ("run", "heldout"),
  ("trained", "heldout"),
  ("trained", "program"),
  ("trained", "run"),
}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
JAX_FREE = {"data", "tokenizers"}
# Mains alone see flags; data/ only asks whether they were parsed (Grain's workers need that).
ONLY_IN = {"transformers": {"interop", "tokenizers"}, "absl.flags": {"data"}}


def read_modules() -> dict[str, str]:
  """Module name to source, of every file of the package."""
  modules = {}
  for file in sorted((ROOT / "jaxlm").rglob("*.py")):
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    modules[name.removesuffix(".__init__")] = file.read_text(encoding="utf-8")
  return modules


def imports(name: str, source: str, modules: dict[str, str]) -> list[tuple[int, str]]:
  """(line, full name) of everything that a module imports, however deep in its functions."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name}:{node.lineno}: relative import"
      for alias in node.names:
        # `from jaxlm.optim import base` names a module, `from jaxlm.errors import X` a thing in it.
        full = f"{node.module}.{alias.name}"
        is_name_in_module = node.module in modules and full not in modules
        found.append((node.lineno, node.module if is_name_in_module else full))
  return found


def layer_of(name: str, mains: set[str]) -> int | None:
  if name in mains or name.endswith(".__main__"):
    return MAINS
  part = name.split(".")[1]
  return next((i for i, parts in enumerate(LAYERS) if part in parts), None)


def violations(modules: dict[str, str], mains: set[str]) -> list[str]:
  """One line for each import (or module) that breaks the rule."""
  found = []
  for name, source in modules.items():
    if name == "jaxlm":
      continue
    part, layer = name.split(".")[1], layer_of(name, mains)
    if layer is None:
      found.append(f"{name}: has no layer; add {part!r} to LAYERS")
      continue
    for line, target in imports(name, source, modules):
      top = target.split(".")[0]
      where = f"{name}:{line}: imports {target}"
      if top == "configs":
        found.append(f"{where}: nothing imports configs/")
      for package, parts in ONLY_IN.items():
        if (target == package or target.startswith(f"{package}.")) and not (
          part in parts or layer == MAINS
        ):
          found.append(f"{where}: only {sorted(parts)} and mains may")
      if top != "jaxlm" or target == "jaxlm":
        continue
      other, other_layer = target.split(".")[1], layer_of(target, mains)
      if other_layer is None:
        found.append(f"{where}: no such part")
      elif layer == MAINS and other_layer == MAINS:
        continue  # mains use cli, and quickstart runs other mains
      elif other_layer > layer:
        found.append(f"{where}: upward, from layer {layer} to {other_layer}")
      elif other_layer == layer and other != part:
        is_config = target.split(".")[-1] == "config"
        if (part, other) not in SAME_LAYER and not is_config:
          found.append(f"{where}: sideways within layer {layer}")
  return found


def jax_in_data(modules: dict[str, str]) -> list[str]:
  """Chains of imports by which data/ or tokenizers/ come to import JAX."""
  found = []
  seen: set[str] = set()
  queue = [
    (name, name) for name in modules if name.split(".")[1:2] and name.split(".")[1] in JAX_FREE
  ]
  while queue:
    name, chain = queue.pop()
    if name in seen or name not in modules:
      continue
    seen.add(name)
    for line, target in imports(name, modules[name], modules):
      if target.split(".")[0] in JAX:
        found.append(f"{chain}:{line}: imports {target}")
      elif target in modules and target != "jaxlm":
        queue.append((target, f"{chain} -> {target}"))
  return found


MODULES = read_modules()
VERB_MODULES = set(cli.VERBS.values())


def test_imports_go_downward():
  assert violations(MODULES, VERB_MODULES) == []


def test_data_and_tokenizers_never_import_jax():
  assert jax_in_data(MODULES) == []


@pytest.mark.parametrize(
  ("name", "source", "message"),
  [
    ("jaxlm.layers.bad", "from jaxlm.models.config import X", "upward, from layer 2 to 3"),
    ("jaxlm.layers.bad", "def f():\n  import jaxlm.train", ":2: imports jaxlm.train: upward"),
    ("jaxlm.models.bad", "from jaxlm import optim", "sideways within layer 3"),
    ("jaxlm.models.bad", "from jaxlm.interop import gguf", "upward, from layer 3 to 4"),
    ("jaxlm.models.bad", "import transformers", "only ['interop', 'tokenizers'] and mains may"),
    ("jaxlm.training.bad", "from absl import flags", "only ['data'] and mains may"),
    ("jaxlm.training.bad", "import configs.debug", "nothing imports configs/"),
    ("jaxlm.novel", "", "has no layer"),
    ("jaxlm.tree", "from jaxlm.nowhere import x", "no such part"),
  ],
)
def test_the_rule_finds_bad_imports(name, source, message):
  (line,) = violations({name: source}, VERB_MODULES)
  assert message in line


@pytest.mark.parametrize(
  "modules",
  [
    {"jaxlm.data.bad": "import jax.numpy as jnp"},
    {"jaxlm.tokenizers.bad": "def f():\n  from flax import nnx"},
    {"jaxlm.data.prep.bad": "from jaxlm.tree import count", "jaxlm.tree": "import jax"},
  ],
)
def test_the_rule_finds_jax_in_data(modules):
  assert len(jax_in_data(modules)) == 1


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("jaxlm.layers.good", "from jaxlm import sharding, tree\nfrom jaxlm.kernels.x import y"),
    ("jaxlm.kernels.good", "from jaxlm.layers.config import AttentionImpl"),
    ("jaxlm.plan.__main__", "from jaxlm import cli\nfrom absl import flags"),
    ("jaxlm.train", "import jaxlm\nfrom jaxlm import cli\nfrom jaxlm.training.loop import f"),
  ],
)
def test_the_rule_allows_good_imports(name, source):
  others = {"jaxlm.layers.config": "", "jaxlm.kernels.x": "", "jaxlm.training.loop": ""}
  assert violations({name: source, **others}, VERB_MODULES) == []


def light_modules() -> list[str]:
  """Every module that defines a *Config class, and every main."""
  defines_config = [
    name
    for name, source in MODULES.items()
    if any(
      isinstance(node, ast.ClassDef) and node.name.endswith("Config")
      for node in ast.parse(source).body
    )
  ]
  named = [name for name in MODULES if name.split(".")[-1] in ("config", "configlib", "cli")]
  return sorted({*defines_config, *named, *(VERB_MODULES & set(MODULES))})


def heavy_imports(names: list[str], path: Path) -> str:
  """Imports modules one by one in a fresh process; the first that brings JAX or numpy, or ''."""
  code = (
    "import importlib, sys\n"
    f"sys.path.insert(0, {str(path)!r})\n"
    f"for name in {names!r}:\n"
    "  importlib.import_module(name)\n"
    "  heavy = {'jax', 'numpy', 'flax', 'optax', 'grain', 'pyarrow', 'rich'} & set(sys.modules)\n"
    "  if heavy: sys.exit(print(name, sorted(heavy)))\n"
  )
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  return result.stdout


def test_configs_and_mains_are_light():
  # What makes `--help` and a mistyped key answer in well under a second.
  names = light_modules()
  assert {"jaxlm.cli", "jaxlm.optim.muon", "jaxlm.tracking.config"} <= set(names)
  assert heavy_imports(names, ROOT) == ""


def test_a_heavy_config_is_found(tmp_path):
  (tmp_path / "bad_config.py").write_text("import numpy\n")
  assert heavy_imports(["json", "bad_config"], tmp_path) == "bad_config ['numpy']\n"

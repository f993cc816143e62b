"""Configs survive JSON, reject what they should with a line that names the place, and compare."""

import dataclasses
import enum
import json
import sys
import types

import pytest

from jaxlm import configlib
from jaxlm.errors import UserError
from jaxlm.layers.config import Remat


class Kind(enum.Enum):
  COSINE = 1
  LINEAR = 2


@dataclasses.dataclass(kw_only=True)
class Source:
  name: str = "a"


@dataclasses.dataclass(kw_only=True)
class Files(Source):
  paths: tuple[str, ...] = ()
  shape: tuple[int, ...] = (1, 2)


@dataclasses.dataclass(kw_only=True)
class Optim:
  peak_lr: float
  kind: Kind = Kind.COSINE
  clip: float | None = 1.0
  note: str | None = None
  nesterov: bool = False


@dataclasses.dataclass(kw_only=True)
class Run:
  optim: Optim
  eval_optim: Optim | None = None
  sources: list[Source] = dataclasses.field(default_factory=list)
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  num_steps: int = 10


@dataclasses.dataclass
class Outside:
  x: int = 0


@pytest.fixture(autouse=True)
def module(monkeypatch):
  """The classes above, living at jaxlm.fake_configs."""
  fake = types.ModuleType("jaxlm.fake_configs")
  for cls in (Source, Files, Optim, Run):
    monkeypatch.setattr(cls, "__module__", fake.__name__)
    setattr(fake, cls.__name__, cls)
  fake.Kind = Kind
  fake.Borrowed = Outside
  monkeypatch.setitem(sys.modules, fake.__name__, fake)
  return fake


def make() -> Run:
  return Run(
    optim=Optim(peak_lr=1e-3, kind=Kind.LINEAR, clip=None),
    sources=[Files(name="x", paths=("p", "q")), Source(name="y")],
    weights={"x": 0.25, "y": 0.75},
  )


def test_round_trip_through_a_file(tmp_path):
  # Breaks if a subclass, an enum, a tuple, None or a list element is not restored as it was.
  file = tmp_path / "config.json"
  configlib.save_json(make(), file)
  loaded = configlib.load_json(file)
  assert loaded == make()
  assert isinstance(loaded.sources[0], Files) and loaded.sources[0].paths == ("p", "q")
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"], "a temporary file was left"


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (
      lambda d: d["optim"].update(peek_lr=1),
      r"config\.optim\.peek_lr: no such key in Optim.*'peak_lr'",
    ),
    (lambda d: d["optim"].update(peak_lr="x"), r"config\.optim\.peak_lr='x': expected float"),
    (lambda d: d["optim"].pop("peak_lr"), r"config\.optim\.peak_lr: missing"),
    (lambda d: d["optim"].update(kind="COSINES"), r"config\.optim\.kind='COSINES'.*'COSINE'"),
    (lambda d: d["optim"].update(clip="no"), r"config\.optim\.clip='no': expected float \| None"),
    (lambda d: d.update(num_steps=True), r"config\.num_steps=True: expected int"),
    (lambda d: d.update(num_steps=1.5), r"config\.num_steps=1\.5: expected int"),
    (lambda d: d["sources"][0].update(paths="p"), r"sources\[0\]\.paths='p': expected tuple\[str"),
    (
      lambda d: d["sources"][0].update(shape=[1, "b"]),
      r"sources\[0\]\.shape\[1\]='b': expected int",
    ),
    (lambda d: d["weights"].update(x="much"), r"config\.weights\.x='much': expected float"),
    (lambda d: d.update(_class="os.path"), "only classes of jaxlm"),
    (lambda d: d.update(_class="jaxlm.nowhere.Run"), "cannot import"),
    (lambda d: d.update(_class="jaxlm.fake_configs.dataclasses"), "defines no such config class"),
    (lambda d: d.update(_class="jaxlm.fake_configs.Kind"), "defines no such config class"),
    (lambda d: d.update(_class="jaxlm.fake_configs.Borrowed"), "defines no such config class"),
    (lambda d: d["optim"].update(_class="jaxlm.fake_configs.Source"), "expected a Optim"),
    (lambda d: d.pop("_class"), "was this file written by jaxlm"),
    (lambda d: d.update(optim=3), r"config\.optim=3: expected an object"),
  ],
)
def test_bad_json_names_its_place(edit, message):
  values = configlib.to_dict(make())
  edit(values)
  with pytest.raises(UserError, match=message):
    configlib.from_dict(values)


def test_missing_keys_take_their_defaults_and_nested_class_is_the_declared_one():
  values = {"_class": "jaxlm.fake_configs.Run", "optim": {"peak_lr": 1}}
  assert configlib.from_dict(values) == Run(optim=Optim(peak_lr=1.0))


@pytest.mark.parametrize(
  ("assign", "message"),
  [
    (lambda c: setattr(c.optim, "peak_lr", "x"), r"config\.optim\.peak_lr='x': expected float"),
    (lambda c: setattr(c.optim, "peek_lr", 1.0), r"config\.optim\.peek_lr: no such key.*'peak_lr'"),
    (lambda c: setattr(c, "optim", None), r"config\.optim=None: expected Optim"),
    (lambda c: setattr(c.sources[0], "paths", ["p"]), r"sources\[0\]\.paths.*expected tuple"),
    (lambda c: setattr(c.optim, "kind", "LINEAR"), None),
    (lambda c: c.weights.update({1: 2.0}), r"config\.weights.*expected dict"),
    (lambda c: c.sources.append(Outside()), r"config\.sources\[2\].*expected Source"),
  ],
)
def test_check_types_of_a_config_built_in_python(assign, message):
  config = make()
  configlib.check_types(config)
  assign(config)
  with pytest.raises(UserError, match=message or "expected one of COSINE, LINEAR"):
    configlib.check_types(config)


def test_fingerprint_ignores_how_a_number_is_written_and_what_is_excluded():
  one = make()
  one.optim.peak_lr = 1
  other = make()
  other.optim.peak_lr = 1.0
  assert configlib.fingerprint(one) == configlib.fingerprint(other)
  other.num_steps = 11
  assert configlib.fingerprint(one) != configlib.fingerprint(other)
  assert configlib.fingerprint(one, ["num_steps"]) == configlib.fingerprint(other, ["num_steps"])
  other.optim.clip = 1
  one.optim.clip = 1.0
  exclude = ["num_steps"]
  assert configlib.fingerprint(one, exclude) == configlib.fingerprint(other, exclude)
  with pytest.raises(KeyError):
    configlib.fingerprint(one, ["num_stepz"])


def test_diff_names_each_changed_value():
  a, b = make(), make()
  assert configlib.diff(a, b) == []
  b.optim.kind = Kind.COSINE
  b.sources[1].name = "z"
  b.sources.append(Source(name="new"))
  assert configlib.diff(a, configlib.to_dict(b)) == [
    'optim.kind: "LINEAR" → "COSINE"',
    'sources[1].name: "y" → "z"',
    'sources[2]._class: (absent) → "jaxlm.fake_configs.Source"',
    'sources[2].name: (absent) → "new"',
  ]


def test_a_class_from_elsewhere_is_not_saved():
  with pytest.raises(UserError, match="must be defined at the top level of a module of the jaxlm"):
    configlib.to_dict(Outside())


def test_load_json_errors_name_the_file(tmp_path):
  with pytest.raises(UserError, match=r"none\.json: No such file"):
    configlib.load_json(tmp_path / "none.json")
  (tmp_path / "broken.json").write_text("{")
  with pytest.raises(UserError, match=r"broken\.json: not a JSON file"):
    configlib.load_json(tmp_path / "broken.json")
  (tmp_path / "list.json").write_text(json.dumps([1]))
  with pytest.raises(UserError, match=r"list\.json: config=\[1\]: expected an object"):
    configlib.load_json(tmp_path / "list.json")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  file = tmp_path / "config.json"
  configlib.save_json(make(), file)
  before = file.read_bytes()

  def broken(*_):
    raise OSError("disk full")

  monkeypatch.setattr(configlib.os, "fsync", broken)
  with pytest.raises(OSError, match="disk full"):
    configlib.save_json(Run(optim=Optim(peak_lr=9.0)), file)
  assert file.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  ("text", "tp", "value"),
  [
    ("1_000", int, 1000),
    ("1e-3", float, 1e-3),
    ("false", bool, False),
    ("linear", Kind, Kind.LINEAR),
    ("none", float, None),
    ("none", str, "none"),
    ("NONE", Remat, Remat.NONE),  # not None, which would mean FULL to jax.checkpoint
    ("a,b", tuple[str, ...], ("a", "b")),
    ("dir/x", tuple[str, ...], ("dir/x",)),
    ("('a', 'b')", tuple[str, ...], ("a", "b")),
    ("1,2", tuple[int, ...], (1, 2)),
  ],
)
def test_parse_text(text, tp, value):
  assert configlib.parse_text(text, tp) == value


def test_parse_text_says_what_it_expected():
  for text, tp in [("x", int), ("yes", bool), ("x", Kind), ("1,b", tuple[int, ...])]:
    with pytest.raises(ValueError, match="expected"):
      configlib.parse_text(text, tp)


def test_nearest():
  assert configlib.nearest("peek_lr", ["peak_lr", "b1"]) == " (did you mean 'peak_lr'?)"
  assert configlib.nearest("zzz", ["peak_lr"]) == ""

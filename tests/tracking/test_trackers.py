"""Trackers record what they are given, survive crashes and failures, and keep secrets out."""

import json
import logging
import sys
import types

import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.tracking.base import REDACTED, Composite, redact
from jaxlm.tracking.config import TrackingConfig
from jaxlm.tracking.jsonl import JsonlTracker, read_rows


class Recorder:
  def __init__(self, fail=False):
    self.rows, self.configs, self.closed, self.fail = [], [], False, fail

  def log(self, step, values):
    if self.fail:
      raise ConnectionError("no network")
    self.rows.append((step, values))

  def log_config(self, config):
    self.configs.append(config)

  def close(self):
    self.closed = True


def test_jsonl_rows_are_on_disk_at_once_and_strict_json(tmp_path):
  file = tmp_path / "deep" / "metrics.jsonl"
  tracker = JsonlTracker(file)
  tracker.log(1, {"loss": 2.5, "grad_norm": float("nan"), "x": float("-inf")})

  def refuse(text):
    raise AssertionError(f"{text} is not JSON")

  row = json.loads(file.read_text(), parse_constant=refuse)
  assert row.pop("time") > 1.7e9
  assert row == {"step": 1, "loss": 2.5, "grad_norm": "nan", "x": "-inf"}
  assert np.isnan(float(row["grad_norm"]))


def test_resume_leaves_each_step_once(tmp_path):
  # Breaks if steps that are done again after a crash appear twice, or a torn line is kept.
  file = tmp_path / "metrics.jsonl"
  first = JsonlTracker(file)
  for step in range(6):
    first.log(step, {"loss": float(step)})
  with file.open("a") as stream:
    stream.write('{"step": 6, "lo')
  resumed = JsonlTracker(file, start_step=4)
  for step in range(4, 7):
    resumed.log(step, {"loss": 10.0 + step})
  rows = list(read_rows(file))
  assert [row["step"] for row in rows] == list(range(7))
  assert [row["loss"] for row in rows] == [0, 1, 2, 3, 14, 15, 16]
  assert len(file.read_text().splitlines()) == 7
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_jsonl_goes_on_after_a_failed_write(tmp_path, caplog):
  # A full disk: the line is lost, training and the later lines are not; one warning, not a flood.
  file = tmp_path / "metrics.jsonl"
  jsonl = JsonlTracker(file)
  tracker = Composite({"jsonl": jsonl}, essential=("jsonl",))
  tracker.log(1, {"loss": 1.0})
  jsonl._file = tmp_path / "gone" / "metrics.jsonl"
  with caplog.at_level(logging.WARNING):
    tracker.log(2, {"loss": 2.0})
    tracker.log(3, {"loss": 3.0})
  assert caplog.text.count("tracker jsonl failed, it will be tried again") == 1
  jsonl._file = file
  file.write_text(file.read_text() + '{"step": 3, "lo')  # what the failed write left
  tracker.log(4, {"loss": 4.0})
  assert [row["step"] for row in read_rows(file)] == [1, 4]


def test_a_failing_tracker_is_dropped_with_one_warning(caplog):
  good, bad = Recorder(), Recorder(fail=True)
  tracker = Composite({"bad": bad, "good": good})
  with caplog.at_level(logging.WARNING):
    tracker.log(1, {"loss": np.float32(1.5)})
    tracker.log(2, {"loss": 2})
  tracker.close()
  assert caplog.text.count("tracker bad failed, it is dropped: ConnectionError: no network") == 1
  assert good.rows == [(1, {"loss": 1.5}), (2, {"loss": 2.0})]
  assert type(good.rows[0][1]["loss"]) is float and good.closed and not bad.closed


def test_a_tracker_that_does_not_start_is_left_out(tmp_path, caplog, monkeypatch):
  wandb = types.ModuleType("wandb")
  wandb.init = lambda **_: (_ for _ in ()).throw(ConnectionError("no network"))
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  with caplog.at_level(logging.WARNING):
    tracker = TrackingConfig(wandb=True, tensorboard=False).build(tmp_path)
  assert "tracker wandb failed, it is dropped" in caplog.text
  tracker.log(1, {"loss": 1.0})
  assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]


def test_secrets_are_redacted_and_numbers_are_not():
  config = {
    "api_key": "abc",
    "wandbToken": "abc",
    "auth": {"password": "abc", "secret": ["a", "b"]},
    "credential": {"user": "u", "port": 3},
    "url": "https://me:abc@host/x",
    "num_tokens": "12B",
    "tokenizer": "spm",
    "num_experts_per_token": 2,
    "predict_first_token": True,
    "keyboard": "qwerty",
    "tokens_per_second": 1.0,
    "empty": {"key": ""},
  }
  recorder = Recorder()
  Composite({"r": recorder}).log_config(config)
  (safe,) = recorder.configs
  assert safe == config | {
    "api_key": REDACTED,
    "wandbToken": REDACTED,
    "auth": {"password": REDACTED, "secret": [REDACTED, REDACTED]},
    "credential": {"user": "u", "port": 3} | {"user": REDACTED},
    "url": "https://host/x",
  }
  assert redact("s3://key:value@bucket") == "s3://bucket"


def test_tensorboard_holds_the_values_and_purges_on_resume(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  def events():
    for file in sorted((tmp_path / "tensorboard").iterdir()):
      data = file.read_bytes()
      while data:  # TFRecord: u64 length, u32 crc, data, u32 crc
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]

  tracker = TrackingConfig().build(tmp_path)
  tracker.log_config({"model": {"num_layers": 2}})
  tracker.log(1, {"loss": 2.5})
  tracker.close()
  scalars = [(e.step, v.tag, v.simple_value) for e in events() for v in e.summary.value]
  assert (1, "loss", 2.5) in scalars
  assert any("num_layers" in str(e) for e in events())
  resumed = TrackingConfig().build(tmp_path, start_step=7)
  resumed.close()
  assert any(e.step == 7 and e.session_log.status == 1 for e in events())  # 1: START, which purges


def test_wandb_continues_the_run_of_its_directory(tmp_path, monkeypatch):
  calls, logged = [], []

  class Run:
    config = types.SimpleNamespace(update=lambda values, **_: logged.append(values))
    define_metric = staticmethod(lambda *a, **k: logged.append((a, k)))
    log = staticmethod(logged.append)
    finish = staticmethod(lambda: logged.append("finished"))

  wandb = types.ModuleType("wandb")
  wandb.init = lambda **kwargs: calls.append(kwargs) or Run()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  config = TrackingConfig(wandb=True, tensorboard=False, run_name="r")
  for _ in range(2):
    tracker = config.build(tmp_path)
    tracker.log_config({"api_key": "abc"})
    tracker.log(3, {"loss": 1.0})
    tracker.close()
  assert calls[0] == calls[1] and calls[0]["id"] and calls[0]["resume"] == "allow"
  assert {"api_key": REDACTED} in logged and {"loss": 1.0, "step": 3} in logged
  assert (("*",), {"step_metric": "step"}) in logged and logged[-1] == "finished"
  assert not any("abc" in str(entry) for entry in logged)


def test_mlflow_continues_the_run_of_its_directory(tmp_path, monkeypatch):
  made = []

  class Client:
    def __init__(self, uri):
      self.uri, self.calls = uri, []
      made.append(self)

    def get_experiment_by_name(self, name):
      return None

    def create_run(self, experiment_id, run_name):
      self.calls.append(("create_run", run_name))
      return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id-1"))

    def __getattr__(self, name):
      return lambda *args, **kwargs: self.calls.append((name, *args, kwargs))

  mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
  mlflow.MlflowClient, mlflow.entities = Client, entities
  entities.Metric = lambda name, value, time_ms, step: (name, value, step)
  monkeypatch.setitem(sys.modules, "mlflow", mlflow)
  monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
  monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
  config = TrackingConfig(mlflow=True, tensorboard=False)
  for _ in range(2):
    tracker = config.build(tmp_path)
    tracker.log(3, {"loss": 1.0})
    tracker.close()
  first, second = made
  assert first.uri == f"sqlite:///{tmp_path}/mlflow.db"
  assert ("create_run", tmp_path.name) in first.calls
  assert not any(call[0] == "create_run" for call in second.calls)
  assert ("log_batch", "id-1", {"metrics": [("loss", 1.0, 3)]}) in second.calls
  assert second.calls[-1][:2] == ("set_terminated", "id-1")


def test_a_missing_package_is_named_before_the_run(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(
    UserError, match=r"tracking\.wandb=True: wandb is not installed.*jaxlm\[wandb\]"
  ):
    TrackingConfig(wandb=True).validate("tracking")

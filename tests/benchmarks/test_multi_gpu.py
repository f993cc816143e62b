"""benchmarks/multi_gpu.py: which rows are run when, what is kept of them, ratios, faults."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.errors import UserError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import multi_faults  # noqa: E402
import multi_gpu  # noqa: E402
import multi_rows  # noqa: E402
import multi_run  # noqa: E402
import multi_table  # noqa: E402

GIB = 2**30
H200 = "NVIDIA H200"


def rows(parts=multi_rows.PARTS, gpus=(1, 2, 4, 8), models=multi_rows.MODELS, fake=False):
  return multi_rows.make_rows(list(parts), list(gpus), list(models), [], fake)


# ---- which rows ----------------------------------------------------------------------------------


def test_what_the_floor_and_the_peer_are_about_comes_first():
  """Breaks if a short budget is spent on rows that no promise rests on."""
  found = [row.key for row in rows()]
  assert found[0] == "jaxlm 3b gpus=8 fsdp=8 32x2048 remat=NONE"
  assert found[1] == "jaxlm 3b gpus=1 one 4x2048 remat=NONE"
  assert found[2] == "hf 3b gpus=8 fsdp=8 32x2048 remat=none"
  assert len(set(found)) == len(found), "one measurement, one row"
  assert [key.split()[0] for key in found[:12]].count("faults") == 1


@pytest.mark.parametrize("gpus", [(1, 2), (1, 2, 4), (1, 2, 4, 8)])
def test_every_row_can_be_run_and_is_planned(gpus):
  """Breaks if a mesh does not divide a model's heads, rows or tokens: the machine's time is lost
  on a refusal."""
  chip = multi_rows.chip_of(H200)
  assert chip is not None and chip.name == "h200" and chip.memory == 141e9
  for row in rows(gpus=gpus):
    if row.who in ("jaxlm", "hf"):
      job = row.job(12, 4)
      assert job["devices"] == row.gpus and job["batch"] * job["seq"] > 0
    plan = multi_rows.predict(row, chip)
    assert bool(plan) == (row.who == "jaxlm" and row.model != "moe")
    if plan and row.gpus > 1:
      assert plan["sent_bytes"] > 0 and plan["step_ms"] > 0


def test_rows_of_experts_have_the_products_of_the_dense_model():
  """Breaks if the two are compared at different work."""
  train = multi_rows.train
  dense, moe = (train.SHAPES[name].config(2048) for name in ("1b", "moe"))
  router = 6 * 24 * 8 * 2048
  ours, theirs = (train.flops_per_token(c, 2048) for c in (moe, dense))
  assert ours["causal"] - router == theirs["causal"]
  assert ours["palm"] - router == pytest.approx(theirs["palm"], rel=1e-4)
  assert moe.num_params() > 2 * dense.num_params()


def test_flags_are_those_of_the_table_but_for_some(monkeypatch):
  """Breaks if a set measures other flags than its name says, or overrides what the user set."""
  monkeypatch.setattr(multi_rows.xla_flags, "known", lambda texts: dict.fromkeys(texts, True))
  assert multi_rows.flag_environment("table", 8, {}) == {}
  none = multi_rows.flag_environment("none", 8, {"XLA_FLAGS": "--xla_mine=1"})
  assert none["JAXLM_XLA_FLAGS"] == "off"
  assert none["XLA_FLAGS"] == "--xla_mine=1 --xla_gpu_enable_triton_gemm=false"
  assert none["XLA_CLIENT_MEM_FRACTION"] == "0.92"
  without = multi_rows.flag_environment("-latency_hiding", 8, {})["XLA_FLAGS"]
  assert "latency_hiding" not in without and "pipelined_all_gather=true" in without
  other = multi_rows.flag_environment("thresholds=256M", 8, {})["XLA_FLAGS"]
  assert other.count("combine_threshold_bytes=268435456") == 3
  assert str(1 << 30) not in other
  monkeypatch.setattr(multi_rows.xla_flags, "known", lambda texts: dict.fromkeys(texts, False))
  with pytest.raises(UserError, match="does not know --xla_gpu_experimental"):
    multi_rows.flag_environment("+overlap=4", 8, {})


@pytest.mark.parametrize("text", ["16", "0,1", "two", "1;2"])
def test_gpus_that_are_not_there_are_refused(text):
  with pytest.raises(UserError, match="--gpus="):
    multi_gpu.counts(text, 8)


def test_gpus_are_halved_by_default():
  assert multi_gpu.counts("", 8) == [1, 2, 4, 8]
  assert multi_gpu.counts("8,1", 8) == [1, 8]


def test_multicast_stays_off(tmp_path, monkeypatch):
  """Breaks if a process is started with NVLink multicast on, unless the user asked for it."""
  for name in multi_rows.QUIET:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("NVSHMEM_DISABLE_NVLS", "0")
  seen = {}

  def wait(command, environment, limit):
    seen.update(environment)
    return 1, "ValueError: enough"

  monkeypatch.setattr(multi_run, "_wait", wait)
  options = argparse.Namespace(fake=False, steps=1, warmup=1)
  row = rows(["scaling"], (2,), ["3b"], fake=True)[0]
  found = multi_run.run_row(row, ["4", "7"], 10, options)
  assert found["error"] == "status 1: ValueError: enough"
  assert seen["NCCL_NVLS_ENABLE"] == "0" and seen["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
  assert seen["NVSHMEM_DISABLE_NVLS"] == "0" and seen["CUDA_VISIBLE_DEVICES"] == "4,7"


# ---- budget --------------------------------------------------------------------------------------


def runner(tmp_path, monkeypatch, *, budget, names="01234567", **more):
  options = multi_gpu.parse(
    ["--fake", f"--results={tmp_path / 'r.jsonl'}", f"--budget_s={budget + 15}"]
  )
  options.device = "cpu"
  for name, value in more.items():
    setattr(options, name, value)
  return multi_gpu.Runner(list(names), options)


def test_rows_run_within_the_budget_and_are_written_at_once(tmp_path, monkeypatch):
  """Breaks if a row that can't end in time is begun, a failure ends the call, or a record waits."""
  asked = []

  def run_row(row, names, limit, options):
    asked.append((row.key, list(names)))
    if row.who == "hf":
      raise RuntimeError("broken")
    return {"who": row.who, "wall_seconds": 1.0}

  monkeypatch.setattr(multi_gpu, "run_row", run_row)
  one = runner(tmp_path, monkeypatch, budget=100)
  some = rows(["scaling"], (1, 2), ["3b"], fake=True)
  long = next(row for row in some if row.layout == "model=2")
  left = one.run(some, {row.key: 1e6 if row is long else 1.0 for row in some})
  assert left == [long]
  assert [key for key, _ in asked] == [row.key for row in some if row is not long]
  assert asked[0][1] == ["0", "1"] and one.free == list("01234567")
  kept = multi_gpu.read([tmp_path / "r.jsonl"], "cpu")
  assert set(kept) == {row.key for row in some if row is not long}
  assert "broken" in next(r for r in kept.values() if r["who"] == "hf")["error"]
  assert multi_gpu.read([tmp_path / "r.jsonl"], H200) == {}, "of another device"


def test_together_means_on_other_gpus(tmp_path, monkeypatch):
  """Breaks if two rows share a GPU, or rows wait although GPUs are free."""
  busy, most = [], []

  def run_row(row, names, limit, options):
    assert not set(names) & {name for names in busy for name in names}
    busy.append(names)
    most.append(len(busy))
    time.sleep(0.1)
    busy.remove(names)
    return {"who": row.who}

  monkeypatch.setattr(multi_gpu, "run_row", run_row)
  some = [row for row in rows() if row.gpus < 8 and row.who == "jaxlm"]
  one = runner(tmp_path, monkeypatch, budget=100, together=True)
  assert one.run(some, {row.key: 1.0 for row in some}) == []
  assert max(most) > 1 and len(most) == len(some)


def test_a_row_that_hangs_is_ended_by_its_own_limit(tmp_path):
  """Breaks if it takes the budget, or leaves a process behind."""
  file = tmp_path / "pid"
  code = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
  status, _ = multi_run._wait([sys.executable, "-c", code], dict(os.environ), 1.5)
  assert status is None
  with pytest.raises(ProcessLookupError):
    os.kill(int(file.read_text()), 0)


def test_the_reason_of_a_failure_is_its_error():
  text = "W1 warning\nTraceback:\n  x\njaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED: no\n----\nnote"
  assert multi_run.reason(text).startswith("jaxlib.XlaRuntimeError: RESOURCE_EXHAUSTED")
  assert multi_run.reason("[rank1]: torch.OutOfMemoryError: CUDA\n===\nend").startswith("[rank1]")
  assert multi_run.reason("") == "no message"


# ---- figures -------------------------------------------------------------------------------------


def test_ratios_and_verdict(capsys):
  """By hand. Breaks if rates of different work are divided, or the floor is not held."""
  some = rows(["scaling"], (1, 8), ["3b"])
  by_key = {row.key: row for row in some}
  rates = {
    "jaxlm 3b gpus=1 one 4x2048 remat=NONE": 1000.0,
    "jaxlm 3b gpus=8 fsdp=8 32x2048 remat=NONE": 7360.0,
    "jaxlm 3b gpus=8 model=8 32x2048 remat=NONE": 4000.0,
    "hf 3b gpus=8 fsdp=8 32x2048 remat=none": 6400.0,
    "jaxlm 3b gpus=1 one 8x2048 remat=NONE config.num_microbatches=2": 900.0,
    "jaxlm 3b gpus=8 fsdp=8 8x2048 remat=NONE": 3600.0,
  }
  records = {
    key: {
      "tokens_per_second": rate,
      "ms_per_step": 1.0,
      "tflops": {"causal": 494.7},
      "peak_bytes": 3 * GIB,
      "sent_bytes": {"fsdp": 2 * GIB, "?": 1.0},
    }
    for key, rate in rates.items()
  }
  found = {key: multi_table.ratios(by_key[key], some, records) for key in rates}
  keys = list(rates)
  assert found[keys[0]] == {}
  assert found[keys[1]] == pytest.approx({"weak": 0.92, "× HF": 1.15})
  assert found[keys[2]] == pytest.approx({"weak": 0.5, "× HF": 0.625})
  assert found[keys[3]] == {} and found[keys[4]] == {}
  assert found[keys[5]] == pytest.approx({"strong": 0.5})
  records[some[3].key] = {"who": "jaxlm", "error": "status 1: gone"}
  plans = {row.key: {} for row in some}
  multi_table.show(some, some, records, plans, multi_rows.chip_of(H200), fake=False)
  out = capsys.readouterr().out
  assert "FAIL weak scaling of 3b, fsdp on 8 GPUs: 0.920 (floor 0.93 on 8)" in out
  assert "50.0%" in out and f"{some[3].key}: status 1: gone" in out


def test_what_other_flags_a_ring_and_experts_are_held_against():
  """Breaks if a row is divided by one of another mesh, model or number of GPUs."""
  some = rows()
  records = {row.key: {"tokens_per_second": 100.0 + i} for i, row in enumerate(some)}
  found = {}
  for row in some:
    if "× base" in (values := multi_table.ratios(row, some, records)):
      rate = records[row.key]["tokens_per_second"] / values["× base"]
      found[row.key] = some[round(rate - 100)].key
  flags = "jaxlm 3b gpus=8 fsdp=8 32x2048 remat=NONE"
  scan = f"{flags} config.model.scan_layers=True"
  assert found[f"{flags} flags=none"] == flags and found[f"{scan} flags=-pipelined"] == scan
  ring = "jaxlm 1b gpus=4 sequence=4 RING 2x32768 remat=MINIMAL"
  assert found[ring] == ring.replace("RING", "GATHER")
  experts = "jaxlm moe gpus=8 expert=8 64x2048 remat=MINIMAL"
  assert found[experts] == "jaxlm 1b gpus=8 fsdp=8 64x2048 remat=NONE"
  assert flags not in found and scan not in found


def test_a_failed_check_fails_the_command():
  assert multi_table.failed({"checks": [{"verdict": "FAIL"}, {"verdict": "PASS"}]})
  assert not multi_table.failed({"checks": [{"verdict": "SKIP"}, {"verdict": "PASS"}]})


# ---- for real, on CPU devices --------------------------------------------------------------------


def command(tmp_path, *arguments, timeout):
  # Not the tests' own device count, which the fake devices' would be added to.
  keep = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
  flags = "--xla_backend_optimization_level=0"
  return subprocess.run(
    [
      sys.executable,
      str(BENCHMARKS / "multi_gpu.py"),
      "--fake",
      "--gpus=1,2",
      f"--results={tmp_path / 'results.jsonl'}",
      *arguments,
    ],
    capture_output=True,
    text=True,
    env=keep | {"XLA_FLAGS": flags},
    timeout=timeout,
  )


def test_two_fake_devices_and_no_second_time(tmp_path):
  """One row over a sequence axis of two devices; called again, it is there already."""
  only = ("--parts=long", "--only=RING 1x256", "--steps=3", "--warmup=1")
  done = command(tmp_path, *only, timeout=120)
  assert done.returncode == 0, done.stderr
  (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
  record = json.loads(line)
  assert record["arguments"]["devices"] == 2 and record["tokens_per_second"] > 0
  assert record["sent_bytes"]["sequence"] > 0, "the tokens go round"
  assert "--xla_force_host_platform_device_count=2" in record["XLA_FLAGS"]
  assert "RING" in done.stdout and f"{record['tokens_per_second']:,.0f}" in done.stdout
  again = command(tmp_path, *only, "--list", timeout=60)
  assert again.returncode == 0 and again.stdout.strip() == ""


def faults(tmp_path, *scenarios):
  multi_faults.write_run(tmp_path, "float32", True, 2)
  job = {"gpus": 2, "dtype": "float32", "fake": True, "seconds": 200, "device": "cpu"}
  one = multi_faults.Faults(tmp_path, job | {"scenarios": scenarios})
  one.run()
  return {check["name"].partition(" (")[0]: check for check in one.checks}


def test_verdicts_fail_where_losses_or_rows_are_others(tmp_path):
  """Of the test's own checks: breaks if they pass whatever a run did."""
  multi_faults.write_run(tmp_path, "float32", True, 2)
  job = {"gpus": 2, "dtype": "float32", "fake": True, "seconds": 9, "device": "cpu"}
  one = multi_faults.Faults(tmp_path, job)
  one.reference = {step: 4.0 - 0.1 * step for step in range(1, 13)}
  folder = tmp_path / "run"
  folder.mkdir()

  def write(change):
    lines = [{"step": s, "loss": v * (change if s == 9 else 1)} for s, v in one.reference.items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

  for change, row, status, word in (
    (1 + 1e-6, 4 * one.batch, 0, "PASS"),
    (1 + 1e-4, 4 * one.batch, 0, "FAIL"),
    (1.0, 8 * one.batch, 0, "FAIL"),
    (1.0, 4 * one.batch, 1, "FAIL"),
  ):
    write(change)
    one._first_row = row
    one.same("restart", "run", 5, multi_faults.Start(status, "error: x"))
    assert one.checks[-1]["verdict"] == word, one.checks[-1]


@pytest.mark.slow
def test_a_checkpoint_cut_off_falls_back_to_the_one_before(tmp_path):
  found = faults(tmp_path, "cut")
  assert [check["verdict"] for check in found.values()] == ["PASS"] * 3, found


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_half_of_them_go_on(tmp_path):
  found = faults(tmp_path, "killed")
  assert [check["verdict"] for check in found.values()] == ["PASS"] * 3, found
  assert "SIGKILL" in found["killed: the others end"]["detail"]

"""benchmarks/train.py and profile_step.py: counts, data, rows and the reading of profiles."""

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.layers.config import AttentionImpl, Remat

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
  full_name = f"benchmarks_{name}"
  spec = importlib.util.spec_from_file_location(full_name, BENCHMARKS / f"{name}.py")
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[full_name] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  return module


train = load("train")
profile_step = load("profile_step")


def job(*arguments: str) -> dict:
  return train.make_job(train.parse(["--model=toy", *arguments]))


# ---- shapes and counts --------------------------------------------------------------------------


def test_flops_of_the_1b_shape_by_hand():
  # A layer: 4 x 2048 x 2048 + 3 x 2048 x 5632 = 51,380,224; the head: 32,000 x 2048 = 65,536,000.
  counts = train.flops_per_token(train.SHAPES["1b"].config(2048), 2048)
  matmul = 24 * 51_380_224 + 65_536_000
  attention = 12 * 24 * 2048 * 2048
  assert counts["causal"] == 6 * matmul + attention / 2
  assert counts["full"] == 6 * matmul + attention
  total = matmul + 65_536_000 + 49 * 2048
  assert counts["palm"] == 6 * total + attention
  assert round(total / 1e9, 2) == 1.36


@pytest.mark.parametrize(
  "name, millions", [("1b", 1364), ("llama1b", 1236), ("gpt2", 124), ("3b", 3016)]
)
def test_sizes_of_the_shapes(name, millions):
  shape = train.SHAPES[name]
  assert round(shape.config(shape.seq).num_params() / 1e6) == pytest.approx(millions, abs=1)


def test_positions_of_gpt2_do_not_count():
  config = train.SHAPES["gpt2"].config(1024)
  palm = train.flops_per_token(config, 1024)["palm"]
  assert palm == 6 * (config.num_params() - 1024 * 768) + 12 * 12 * 768 * 1024


# ---- data ---------------------------------------------------------------------------------------


def test_rows_repeat_themselves_by_seed_and_can_be_learned():
  rows = train.make_rows(0, 16, 256, 1000)
  assert rows.shape == (16, 257) and rows.dtype == np.int32
  assert rows.min() >= 1 and rows.max() < 1000
  np.testing.assert_array_equal(rows, train.make_rows(0, 16, 256, 1000))
  assert not np.array_equal(rows, train.make_rows(1, 16, 256, 1000))
  counts = np.sort(np.bincount(rows.ravel(), minlength=1000))[::-1]
  assert counts[:100].sum() > 0.4 * rows.size  # a tenth of the ids, most of the text
  top = np.argmax(np.bincount(rows[:, :-1].ravel()))
  after = np.bincount(rows[:, 1:][rows[:, :-1] == top], minlength=1000)
  assert np.sort(after)[-4:].sum() > 0.4 * after.sum()  # its four favourites


def test_packed_rows_hold_documents_of_the_length_asked_for():
  rows = train.make_rows(0, 64, 4096, 1000, packed=True)
  per_document = rows.size / (rows == train.EOS).sum()
  assert 500 < per_document < 1000
  batches = train.make_batches(0, 2, 3, 2048, 1000, packed=True)
  assert batches["inputs"].shape == (2, 3, 2048)
  assert batches["segment_ids"].max() > 1
  plain = train.make_batches(0, 2, 3, 64, 1000, packed=False)
  assert plain["segment_ids"].max() == 1 and plain["loss_weights"].min() == 1


# ---- arguments, rows, table ---------------------------------------------------------------------


def test_overrides_reach_the_config():
  config = train.run_config(job("--remat=MINIMAL", "--set=config.model.attention=XLA"))
  assert config.model.remat is Remat.MINIMAL
  assert config.model.attention is AttentionImpl.XLA
  assert config.optim.b2 == 0.95 and not config.model.scan_layers


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--set=config.model.atention=XLA"], "did you mean 'attention'"),
    (["--set=config.model.attention=fast"], "expected one of"),
    (["--set=config.data.seq_len=8"], "write config.model.key"),
    (["--peer=nanogpt"], "--model=gpt2"),
    (["--model=gpt2", "--peer=nanogpt", "--packed"], "--packed"),
    (["--steps=0"], "at least 1"),
    (["--model=toy_moe"], "--peer=none"),
  ],
)
def test_what_cannot_be_run_is_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    job(*arguments)


def test_the_peer_is_told_the_same_learning_rates():
  ours = train.run_config(job("--steps=20", "--warmup=5"))
  theirs = train.peer_job(job("--steps=20", "--warmup=5"))
  schedule = ours.optim.learning_rate(ours.num_steps)
  rates = [float(schedule(step)) for step in range(25)]
  np.testing.assert_allclose(rates, theirs["learning_rates"], rtol=1e-6)
  assert theirs["shape"]["vocab_size"] == 256 and theirs["shape"]["kv_heads"] == 2


def test_turns_alternate():
  assert train.order(1, "hf") == ["jaxlm", "hf"]
  assert train.order(2, "hf") == ["jaxlm", "hf", "hf", "jaxlm"]
  assert train.order(2, "none") == ["jaxlm", "jaxlm"]


def measured(who: str, ms: float, **more) -> dict:
  result = {
    "who": who,
    "device": "a device",
    "step_ms": [ms, ms, 10 * ms],
    "block_seconds": 12 * ms / 1e3,
    "losses": [5.0, 4.0 if who == "jaxlm" else 4.5],
    "peak_bytes": 2**30,
    "compile_seconds": 3.0,
    **more,
  }
  return train.summarise(result, job())


def test_figures_table_and_record_of_a_process(capsys):
  rows = [measured("jaxlm", 2.0, matmul_tflops=0.1), measured("hf", 4.0)]
  assert rows[0]["tokens_per_second"] == 64 / 2e-3  # the median step, not the slow one
  assert rows[0]["block_tokens_per_second"] == pytest.approx(3 * 64 / 24e-3)
  counts = train.flops_per_token(train.SHAPES["toy"].config(32), 32)
  assert rows[0]["tflops"]["causal"] == pytest.approx(64 / 2e-3 * counts["causal"] / 1e12)
  values = train.compare(rows)
  assert values["ratio"] == 2.0 and values["loss_difference"] == 0.25
  cells = train.table_cells(rows[0], values)
  assert len(cells) == len(train.COLUMNS)
  assert cells[:3] == ["jaxlm", "32,000", "2.0"] and cells[-1] == "2.000"
  failed = {"who": "hf", "error": "status 1: out of memory"}
  train.print_table([rows[0], failed], job())
  printed = capsys.readouterr().out
  assert "failed" in printed and "out of memory" in printed and "32,000" in printed
  line = json.loads(json.dumps(train.record(rows[0], job(), {"cores": 2})))
  assert line["who"] == "jaxlm" and line["arguments"]["model"] == "toy"
  assert line["date"].endswith("+00:00") and line["losses"] == [5.0, 4.0]
  assert "error" in train.record(failed, job(), {})


# ---- profiles -----------------------------------------------------------------------------------

HLO = """HloModule jit_train_step, is_scheduled=true

%fused_computation.7 (param_0.1: f32[8,8], param_1.1: f32[8,8]) -> f32[8,8] {
  %param_0.1 = f32[8,8]{1,0} parameter(0)
  %param_1.1 = f32[8,8]{1,0} parameter(1)
  %dot.1 = f32[8,8]{1,0} dot(%param_0.1, %param_1.1), metadata={op_name="jit(s)/BTD,DF->BTF/dot"}
  ROOT %add.9 = f32[8,8]{1,0} add(%dot.1, %param_0.1), metadata={op_name="jit(s)/add"}
}

ENTRY %main.5 (Arg_0.1: f32[8,8], Arg_1.2: f32[8,8]) -> (f32[8,8], f32[]) {
  %Arg_0.1 = f32[8,8]{1,0} parameter(0), metadata={op_name="state"}
  %gemm_fusion = f32[8,8]{1,0} fusion(%Arg_0.1), kind=kCustom, calls=%fused_computation.7
  %custom-call.1 = (f32[8,8]{1,0}, s8[64]{0}) custom-call(%Arg_0.1), \
custom_call_target="__cublas$gemm", metadata={op_name="jit(s)/jvp(BTNGK,BSNK->BNGTS)/dot_general"}
  %custom-call.2 = f32[8,8]{1,0} custom-call(%Arg_0.1), custom_call_target="__cudnn$fmhaSoftmax", \
metadata={op_name="jit(s)/jvp(attention)/pallas"}
  %loss_fusion = f32[8]{0} fusion(%Arg_0.1), kind=kLoop, calls=%c, \
metadata={op_name="jit(s)/transpose(jvp(loss))/exp"}
  %adam_fusion = f32[8]{0} fusion(%Arg_0.1), kind=kLoop, calls=%d, \
metadata={op_name="jit(s)/optimizer/mul"}
  %while.3 = (f32[8]{0}, s32[]) while(%tuple.1), condition=%e, body=%f, metadata={op_name="x"}
  %copy.4 = f32[8,8]{0,1} copy(%Arg_0.1)
}
"""


def event(name: str, start_us: float, us: float, op: str | None = None, **more):
  op = name if op is None else op
  return profile_step.Event(name, start_us * 1e3, us * 1e3, op, **more)


def test_ops_are_read_from_the_programs_text():
  ops = profile_step.parse_hlo(HLO)
  assert ops["gemm_fusion"].has_dot and ops["gemm_fusion"].op_name == "jit(s)/BTD,DF->BTF/dot"
  assert ops["custom-call.1"].opcode == "custom-call"
  assert ops["custom-call.1"].target == "__cublas$gemm"
  assert ops["while.3"].opcode == "while" and ops["copy.4"].opcode == "copy"
  assert not ops["loss_fusion"].has_dot


def test_kernels_are_told_apart_and_added_up():
  device = {"device": "/device:GPU:0", "hlo_module": "jit_train_step"}
  events = [
    event("nvjet_tst_128x256", 0, 1000, "gemm_fusion", **device),
    event("nvjet_tst_64x64", 1000, 500, "custom-call.1", **device),
    event("cudnn_generated_fmha_sm90", 1500, 500, "custom-call.2", **device),
    event("loss_fusion", 2000, 200, **device),
    event("adam_fusion", 2100, 300, **device),  # overlaps: busy to 2400
    event("copy.4", 3400, 100, **device),  # 1000 idle before it
    event("while.3", 0, 3500, **device),  # only contains the others
    event("cutlass_something", 3500, 500, "", device="/device:GPU:0"),
    event("input_fusion", 4000, 500, "", device="/device:GPU:0"),
    event("elsewhere", 9000, 100, device="/device:GPU:0", hlo_module="jit_other"),
  ]
  report = profile_step.summarise(events, HLO, steps=2, top=2)
  assert report.categories == pytest.approx(
    {
      "matmul": 0.75,
      "attention": 0.5,
      "loss": 0.1,
      "optimizer": 0.15,
      "norm": 0,
      "mlp": 0,
      "copies": 0.05,
      "rest": 0.25,
    }
  )
  assert report.span_ms == pytest.approx(2.25) and report.idle_ms == pytest.approx(0.5)
  assert report.unnamed_ms == pytest.approx(0.5)
  assert [kernel[3] for kernel in report.kernels] == ["nvjet_tst_128x256", "nvjet_tst_64x64"]
  text = profile_step.render(report)
  assert "matmul" in text and "by kernel name alone" in text


def test_no_events_give_an_empty_report():
  report = profile_step.summarise([], HLO)
  assert report.span_ms == 0 and not report.kernels
  assert "idle" in profile_step.render(report)


def test_a_trace_without_an_xplane_is_read_from_its_json(tmp_path):
  def named(kind: str, pid: int, name: str, tid: int = 0) -> dict:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}

  arguments = {"hlo_op": "loss_fusion", "hlo_module": "jit_train_step"}
  entries = [
    named("process_name", 1, "/device:GPU:0"),
    named("thread_name", 1, "Stream #13(Compute)", 7),
    named("thread_name", 1, "XLA Ops", 8),
    {"ph": "X", "name": "k", "pid": 1, "tid": 7, "ts": 5, "dur": 3, "args": arguments},
    {"ph": "X", "name": "k", "pid": 1, "tid": 8, "ts": 5, "dur": 3, "args": arguments},
  ]
  with gzip.open(tmp_path / "vm.trace.json.gz", "wt") as stream:
    json.dump({"traceEvents": entries}, stream)
  (found,) = profile_step.read_events(tmp_path)
  assert found == event("k", 5, 3, "loss_fusion", hlo_module="jit_train_step", device=found.device)
  with pytest.raises(FileNotFoundError, match=r"train\.py --profile"):
    profile_step.read_events(tmp_path / "none")


# ---- a run --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_jaxlm_alone_on_a_toy(tmp_path, capfd):
  results = tmp_path / "results.jsonl"
  arguments = ["--model=toy", "--peer=none", "--steps=3", "--warmup=2", f"--results={results}"]
  assert train.main([*arguments, f"--profile={tmp_path / 'profile'}"]) == 0
  row = json.loads(results.read_text())
  assert row["who"] == "jaxlm" and row["tokens_per_second"] > 0
  assert len(row["step_ms"]) == 3 and len(row["losses"]) == 5
  assert row["parameters"] == train.SHAPES["toy"].config(32).num_params()
  assert row["versions"]["jax"] and row["matmul_tflops"] > 0
  out = capfd.readouterr().out
  assert "matmul" in out and "optimizer" in out and "tokens/s" in out

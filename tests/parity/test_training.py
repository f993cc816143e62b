"""Training that goes on from an imported checkpoint, against torch's."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch and transformers")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers")

import jax  # noqa: E402

from jaxlm import configlib, convert, run  # noqa: E402
from jaxlm.data.config import TokenShardsConfig  # noqa: E402
from jaxlm.data.testing import write_dataset  # noqa: E402
from jaxlm.interop.bundle import open_bundle  # noqa: E402
from jaxlm.interop.tokenizer_files import tokenizer_files  # noqa: E402
from jaxlm.layers.config import DType  # noqa: E402
from jaxlm.mesh import MeshConfig  # noqa: E402
from jaxlm.optim.adamw import AdamWConfig  # noqa: E402
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind  # noqa: E402
from jaxlm.tokenizers.base import load_tokenizer  # noqa: E402
from jaxlm.tokenizers.byte import ByteTokenizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
ROWS, PADDED, T, LR = 4, 264, 32, 1e-3


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A random Llama of transformers whose table has more rows than its tokenizer has tokens."""
  root = tmp_path_factory.mktemp("published") / "hf"
  config = transformers.LlamaConfig(
    vocab_size=PADDED,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=None,
    eos_token_id=256,
  )
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(config).save_pretrained(root)
  for name, data in tokenizer_files(ByteTokenizer()).items():
    (root / name).write_bytes(data)
  return root


@pytest.fixture(scope="module")
def trained(published, tmp_path_factory):
  """(directory of the run after three steps, the batches it saw)."""
  root = tmp_path_factory.mktemp("trained")
  workdir = root / "run"
  convert.import_run(open_bundle(published), workdir, f"hf:{published}")
  tokenizer = load_tokenizer(workdir / "tokenizer")
  rng = np.random.default_rng(0)
  write_dataset(
    root / "data",
    [rng.integers(97, 123, 90).tolist() for _ in range(40)],
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(root / "data/tokenizer")
  config = configlib.load_json(workdir / "config.json")
  config.data.sources = [TokenShardsConfig(name="data", path=str(root / "data"))]
  config.data.seq_len = T
  config.data.attend_across_documents = True  # as transformers does without a mask
  config.model.compute_dtype = DType.FLOAT32
  config.global_batch_size = ROWS
  config.num_steps = 3
  config.mesh = MeshConfig(fsdp=2)
  config.eval.every_steps = 0
  config.tracking.tensorboard = False
  config.checkpoint.keep_every = 1
  config.checkpoint.every_steps = 1
  config.optim = AdamWConfig(
    peak_lr=LR, schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=0)
  )
  seen = {}
  assert run.train(
    config,
    workdir,
    accept_changes=True,
    devices=jax.devices()[:2],
    on_batch=lambda row, arrays: seen.setdefault(row, {k: v.copy() for k, v in arrays.items()}),
  )
  return workdir, [seen[ROWS * i] for i in range(3)]


def _theirs(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _loss(model, batch):
  assert batch["loss_weights"].all() and (batch["positions"] == np.arange(T)).all()
  logits = model(torch.tensor(batch["inputs"])).logits
  targets = torch.tensor(batch["targets"], dtype=torch.long)
  return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_losses_and_updates_are_those_of_torch(published, trained, tmp_path):
  """Three steps; broken by a state that starts anew, a moment that is not zero, decayed norms."""
  workdir, batches = trained
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  losses = [x["loss"] for x in lines if "loss" in x]
  model = _theirs(published)
  matrices = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim == 1]
  optimizer = torch.optim.AdamW(
    [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
    lr=LR,
    betas=(0.9, 0.95),
    eps=1e-8,
  )
  for step, batch in enumerate(batches, start=1):
    loss = _loss(model, batch)
    assert losses[step - 1] == pytest.approx(loss.item(), abs=1e-4)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    place = tmp_path / f"{step}"
    convert.write(convert.export_of_run(workdir, step), f"hf:{place}")
    ours = _theirs(place).state_dict()
    for name, expected in model.state_dict().items():
      np.testing.assert_allclose(ours[name], expected.detach(), atol=1e-4, err_msg=name)


def test_a_padded_table_keeps_its_rows(trained, tmp_path):
  convert.write(convert.export_of_run(trained[0]), f"hf:{tmp_path / 'x'}")
  model = _theirs(tmp_path / "x")
  assert model.config.vocab_size == PADDED
  assert model.get_input_embeddings().weight.shape == (PADDED, 64)
  assert model.get_output_embeddings().weight.shape == (PADDED, 64)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
  assert tokenizer("abc").input_ids == list(b"abc")

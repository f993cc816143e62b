"""Runs that began with a published checkpoint: vocabulary, lineage, tokenizers that lose text."""

import json

import jax
import numpy as np
import pytest

from jaxlm import configlib, convert, lineage, run, trained
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.testing import write_dataset
from jaxlm.errors import UserError
from jaxlm.inference.sampling import Sampling
from jaxlm.interop.bundle import begin_ids, load_files, open_bundle
from jaxlm.interop.families import export_tensors, hf_config
from jaxlm.interop.hf_folder import write_folder
from jaxlm.interop.tokenizer_files import tokenizer_files
from jaxlm.mesh import MeshConfig
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.lion import LionConfig
from jaxlm.optim.schedules import ScheduleConfig
from jaxlm.tokenizers.base import is_lossless, load_tokenizer
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tracking.config import TrackingConfig
from jaxlm.training.config import EvalConfig
from tests.interop.lossy_tokenizers import TEXTS, dummy_prefix, wordpiece

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")
pytest.importorskip("tokenizers", reason="pip install 'jaxlm[tokenizers]'")
MODEL = DecoderConfig(
  vocab_size=300, num_layers=1, embed_dim=32, mlp_dim=48, num_heads=2, max_seq_len=64
)


def publish(folder, files, model=MODEL):
  params = model.build().init(jax.random.key(0))
  return write_folder(folder, hf_config(model), export_tensors(params, model), files=files)


def make_data(directory, tokenizer, texts=TEXTS):
  write_dataset(
    directory,
    tokenizer.encode_batch(texts),
    splits=("train", "heldout"),
    shard_tokens=5000,
    vocab_size=tokenizer.vocab_size,
    eos_id=tokenizer.eos_id,
    tokenizer_sha256=tokenizer.fingerprint(),
  )
  tokenizer.save(directory / "tokenizer")
  return TokenShardsConfig(name="data", path=str(directory))


def continued(workdir, source, steps=2):
  config = configlib.load_json(workdir / "config.json")
  config.data.sources = [source]
  config.data.seq_len, config.global_batch_size, config.num_steps = 16, 4, steps
  config.optim.schedule = ScheduleConfig(warmup_steps=1)
  config.mesh = MeshConfig(fsdp=2)
  config.eval = EvalConfig(every_steps=2, max_rows=4)
  config.tracking = TrackingConfig(tensorboard=False)
  return config


def test_a_padded_vocabulary_trains_and_keeps_its_rows(tmp_path):
  """Broken when the tokenizer's size decides: the table would lose its last rows, or not start."""
  publish(tmp_path / "hf", tokenizer_files(ByteTokenizer()))
  workdir = tmp_path / "run"
  convert.import_run(open_bundle(tmp_path / "hf"), workdir, f"hf:{tmp_path / 'hf'}")
  source = make_data(tmp_path / "data", load_tokenizer(workdir / "tokenizer"))
  config = continued(workdir, source)
  assert run.train(config, workdir, accept_changes=True, devices=jax.devices()[:2])
  found = dict(convert.export_of_run(workdir).tensors())
  assert found["model.embed_tokens.weight"].shape == (300, 32)
  began = dict(convert.export_of_run(workdir, 0).tensors())
  rows = found["model.embed_tokens.weight"], began["model.embed_tokens.weight"]
  assert np.isfinite(rows[0]).all() and np.abs(rows[0][257:]).max() > 0
  assert not np.array_equal(*rows)
  opened = trained.open_run(workdir)
  assert opened.begin == (256,)  # trained here, so as jaxlm trains
  (text,) = opened.generate(["the"], max_new_tokens=8, sampling=Sampling(temperature=0))
  assert isinstance(text, str)
  links = lineage.walk(workdir, full=True)
  assert [x.kind for x in links][:2] == ["imported", "dataset"]


@pytest.mark.parametrize("stated", [True, False])
def test_any_optimizer_begins_at_an_import(stated, tmp_path):
  """With --nooptimizer and without: the imported weights, and a state that begins anew."""
  publish(tmp_path / "hf", tokenizer_files(ByteTokenizer()))
  workdir = tmp_path / "run"
  bundle = open_bundle(tmp_path / "hf")
  convert.import_run(bundle, workdir, "hf:x", optimizer=stated)
  source = make_data(tmp_path / "data", load_tokenizer(workdir / "tokenizer"))
  config = continued(workdir, source)
  config.optim = LionConfig(peak_lr=1e-4, schedule=ScheduleConfig(warmup_steps=1))
  assert run.train(config, workdir, accept_changes=True, devices=jax.devices()[:2])
  found = dict(convert.export_of_run(workdir).tensors())
  for name, array in found.items():
    began = bundle.tensors.read(name)
    assert 0 < np.abs(array - began).max() < 1e-3, name  # two steps of 1e-4 and their decay
  config.optim = AdamWConfig(schedule=ScheduleConfig(warmup_steps=1))
  with pytest.raises(UserError, match=r"config\.optim is AdamWConfig"):  # trained since
    run.train(config, workdir, accept_changes=True, devices=jax.devices()[:2])


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
  source = make_data(tmp_path / "data", ByteTokenizer())
  config = RunConfig(model=DecoderConfig(vocab_size=256), data=DataConfig(sources=[source]))
  config.data.seq_len = 16
  with pytest.raises(UserError, match=r"vocab_size=256: the data has 257 ids") as error:
    run.resolve(config, build_pipeline(config.data))
  assert "\n" not in str(error.value)
  config.model.vocab_size = 0
  assert run.resolve(config, build_pipeline(config.data)).model.vocab_size == 257


def test_the_chain_leads_to_the_published_files(tmp_path):
  """Broken when the record isn't read, or a changed file passes."""
  publish(tmp_path / "hf", tokenizer_files(ByteTokenizer()))
  workdir = tmp_path / "run"
  convert.import_run(open_bundle(tmp_path / "hf"), workdir, f"hf:{tmp_path / 'hf'}")
  weights = tmp_path / "hf/model.safetensors"
  (link,) = lineage.walk(workdir, full=True)
  assert (link.kind, link.where, link.state) == ("imported", str(weights), "good")
  assert link.note == f"llama, from hf:{tmp_path / 'hf'}" and len(link.sha256) == 64
  assert [x.state for x in lineage.walk(workdir)] == ["unchecked"]
  data = weights.read_bytes()
  weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  assert [x.state for x in lineage.walk(workdir, full=True)] == ["changed"]
  (workdir / lineage.IMPORTED).write_text('{"from": 3}')
  with pytest.raises(UserError, match=r"imported\.json: damaged .*import the checkpoint again"):
    lineage.walk(workdir)


def test_an_import_without_a_tokenizer_says_so(tmp_path, capsys):
  publish(tmp_path / "hf", {})
  workdir = tmp_path / "run"
  convert.import_run(open_bundle(tmp_path / "hf"), workdir, "hf:x")
  assert "imported without a tokenizer" in capsys.readouterr().err
  with pytest.raises(UserError, match=r"imported without a tokenizer.*--tokenizer=PATH"):
    trained.open_run(workdir)
  config = continued(workdir, make_data(tmp_path / "data", ByteTokenizer()))
  with pytest.raises(UserError, match=r"imported without a tokenizer.*--tokenizer=PATH, the data"):
    run.train(config, workdir, accept_changes=True, devices=jax.devices()[:2])


@pytest.mark.parametrize(
  ("make", "text", "back"),
  [
    (wordpiece, "The  cat, and Ⅷ", " the cat , and"),
    (dummy_prefix, "the cat\n 日本 Ⅷ", " the cat\n 日本 Ⅷ"),
    (lambda: dummy_prefix(model_alone=True), "the cat\n 日本 Ⅷ", " the cat\n 日本 Ⅷ"),
  ],
  ids=["wordpiece", "dummy_prefix", "tokenizer.model"],
)
def test_a_lossy_tokenizer_comes_along(make, text, back, tmp_path, capsys):
  """Generates, goes on with training where that is asked for, and is exported byte for byte."""
  files = make()
  publish(tmp_path / "hf", files)
  workdir = tmp_path / "run"
  convert.import_run(open_bundle(tmp_path / "hf"), workdir, "hf:x")
  assert "does not give every text back" in capsys.readouterr().err
  opened = trained.open_run(workdir)
  one = opened.tokenizer
  ids = one.encode(text)
  assert not is_lossless(one) and one.eos_id not in one.encode("a </s> [SEP] b")
  assert one.decode_bytes(ids).decode() == back and one.decode(ids) == back[1:]
  assert one.decode_bytes(one.encode("x\ny" * 200_000)).count(b" ") <= 400_001
  opened.generate([text], max_new_tokens=4, sampling=Sampling(temperature=0))
  export = convert.export_of_run(workdir)
  assert {name: export.files[name] for name in files} == files

  # Not by default, and in one line that says why.
  with pytest.raises(UserError, match=r"does not come back.*lossy:") as error:
    load_tokenizer(workdir / "tokenizer")
  assert "\n" not in str(error.value)
  (tmp_path / "files").mkdir()
  for name, data in files.items():
    (tmp_path / "files" / name).write_bytes(data)
  with pytest.raises(UserError, match=r"tokenizer\.(json|model): .*lossy:PATH"):
    load_tokenizer(tmp_path / "files")
  accepted = load_tokenizer(f"lossy:{workdir / 'tokenizer'}")
  source = make_data(tmp_path / "data", accepted)
  assert load_tokenizer(tmp_path / "data/tokenizer").encode(text) == ids  # it was said once
  config = continued(workdir, source)
  assert run.train(config, workdir, accept_changes=True, devices=jax.devices()[:2])
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert any("eval/perplexity" in x for x in lines)
  assert not any("eval/bits_per_byte" in x for x in lines)
  score, _ = trained.open_run(workdir).evaluate()
  assert score.bits_per_byte is None and score.perplexity > 1


def test_preparing_data_with_a_lossy_tokenizer_must_be_said(tmp_path):
  from jaxlm.data.prep.build import prepare
  from jaxlm.data.prep.config import PrepareConfig, TextSourceConfig, TokenizerTrainConfig

  for name, data in dummy_prefix().items():
    (tmp_path / name).write_bytes(data)
  (tmp_path / "text.txt").write_text("the cat sat\n" * 400)
  config = PrepareConfig(
    name="x",
    source=TextSourceConfig(paths=[str(tmp_path / "text.txt")]),
    output=str(tmp_path / "out"),
    tokenizer=TokenizerTrainConfig(path=str(tmp_path / "tokenizer.json")),
  )
  with pytest.raises(UserError, match=r"not lossless.*lossy:PATH"):
    prepare(config)
  config.tokenizer.path = f"lossy:{tmp_path / 'tokenizer.json'}"
  prepare(config)
  assert not is_lossless(load_tokenizer(tmp_path / "out/tokenizer"))


def test_what_stands_before_a_text():
  files = dummy_prefix()
  names = {"<s>": 1, "</s>": 2}
  assert begin_ids(files, names) == [1]
  alone = dummy_prefix(model_alone=True)
  assert begin_ids(alone, names) == [1]
  config = {"bos_token": "<s>", "add_bos_token": False}
  assert begin_ids(alone | {"tokenizer_config.json": json.dumps(config).encode()}, names) == []
  assert begin_ids({}, {}) == []
  assert begin_ids(wordpiece(), {}) == [2]
  assert begin_ids(tokenizer_files(ByteTokenizer()), {}) == []
  assert load_files(files, "x").kind == "huggingface"


def test_an_imported_encoder_is_asked_for_masked_tokens(tmp_path):
  model = EncoderConfig(
    vocab_size=90,
    num_layers=3,
    embed_dim=32,
    mlp_dim=48,
    num_heads=2,
    max_seq_len=64,
    local_reach=4,
    global_every=3,
  )
  publish(tmp_path / "hf", wordpiece(), model)
  workdir = tmp_path / "run"
  convert.import_run(open_bundle(tmp_path / "hf"), workdir, "hf:x")
  source = make_data(tmp_path / "data", load_tokenizer(f"lossy:{workdir / 'tokenizer'}"))
  config = continued(workdir, source)
  config.data.task.whole_words = True
  config.validate()
  assert run.train(config, workdir, accept_changes=True, devices=jax.devices()[:2])

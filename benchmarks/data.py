"""Speed of the stage clean, CPU time: python benchmarks/data.py [--megabytes=20] [--lid=FILE]

Writes made-up pages (navigation, an article of made-up words, footers; about 12 kB of HTML each) to
a WARC file and runs collect and clean on it. MB are those of the HTML. Made-up text passes every
filter, so that each sees all of it; real pages are dropped on the way and cost less. The figures of
single ops are wall time, and trafilatura works in a process of its own that the totals leave out.

--lid=lid.176.ftz adds language identification, and with --handbook=DIR (the folder html/ of the
Debian package debian-handbook) its accuracy on paragraphs in eight languages. --trafilatura and
--spacy add the slow ones.
"""

import argparse
import io
import random
import re
import tempfile
import time
from pathlib import Path

from jaxlm.data.stages import base, clean, collect, ops
from jaxlm.data.stages.config import CleanConfig, CurationConfig, WarcSourceConfig, Words, minimal

HANDBOOK = {
  "en": "en-US",
  "de": "de-DE",
  "fr": "fr-FR",
  "es": "es-ES",
  "pt": "pt-BR",
  "it": "it-IT",
  "ru": "ru-RU",
  "ja": "ja-JP",
}

SYLLABLES = ("ba", "cor", "del", "fen", "gor", "hal", "ist", "jun", "kem", "lor", "mar", "nel")
STOP = ("the", "be", "to", "of", "and", "that", "have", "with")
MENU = "".join(f'<li class="entry"><a href="/section/{i}">Section {i}</a></li>' for i in range(60))


def page(rng: random.Random) -> bytes:
  def sentence() -> str:
    words = [
      rng.choice(STOP)
      if rng.random() < 0.4
      else "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3))))
      for _ in range(14)
    ]
    return " ".join(words).capitalize() + "."

  paragraphs = "".join(f"<p>{' '.join(sentence() for _ in range(4))}</p>" for _ in range(14))
  head = "<head><title>Page</title><script>var x = 1;</script><style>p{margin:0}</style></head>"
  body = f"<nav><ul>{MENU}</ul></nav><main><article>{paragraphs}</article></main>"
  return f"<!doctype html><html>{head}<body>{body}<footer>{MENU}</footer></body></html>".encode()


def write(file: Path, megabytes: float, seed: int = 0) -> tuple[int, int]:
  from warcio.statusandheaders import StatusAndHeaders
  from warcio.warcwriter import WARCWriter

  rng, size, count = random.Random(seed), 0, 0
  with file.open("wb") as stream:
    writer = WARCWriter(stream, gzip=True)
    while size < megabytes * 1e6:
      body = page(rng)
      headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
      url = f"https://example.org/{seed}/{count}"
      writer.write_record(
        writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)
      )
      size, count = size + len(body), count + 1
  return size, count


def paragraphs(root: Path, locale: str) -> list[str]:
  """The paragraphs of one language of the handbook, of at least 60 characters."""
  found: list[str] = []
  for file in sorted((root / locale).glob("*.html")):
    for part in re.findall(r'<div class="para">(.*?)</div>', file.read_text("utf-8"), re.DOTALL):
      text = " ".join(re.sub(r"<[^>]+>", "", part).split())
      if len(text) >= 60:
        found.append(text)
  return list(dict.fromkeys(found))


def language_accuracy(root: Path, model_file: str, each: int = 150) -> tuple[float, int]:
  """Share of paragraphs whose language lid.176 names, without those that nobody translated."""
  from jaxlm.data.stages.ops.steps import load_fasttext

  model = load_fasttext(model_file)
  english = paragraphs(root, HANDBOOK["en"])
  pieces = {text[i : i + 30] for text in english for i in range(len(text) - 29)}
  right = total = 0
  for code, locale in HANDBOOK.items():
    texts = paragraphs(root, locale)
    if code != "en":  # links inside are translated even where the sentence is not
      texts = [t for t in texts if not any(t[i : i + 30] in pieces for i in range(0, 90, 10))]
    random.Random(0).shuffle(texts)
    found = [model.predict(text)[0][0].removeprefix("__label__") for text in texts[:each]]
    right, total = right + sum(one == code for one in found), total + len(found)
  return right / total, total


def chains(arguments: argparse.Namespace) -> list[tuple[str, CleanConfig]]:
  """What is measured."""
  found = [
    ("extraction and private data", minimal()),
    ("whole clean chain, regex words", CleanConfig()),
  ]
  default = CleanConfig().ops
  if arguments.lid:
    language = ops.LanguageConfig(model=arguments.lid, label_only=True)
    some = ops.LanguageConfig(model=arguments.lid, label_only=True, characters=2000)
    more = {"extract": default["extract"], "language": language, "language_2000": some}
    found.append(("extraction and languages", CleanConfig(ops=more)))
    whole = {"extract": default["extract"], "fix_text": ops.FixTextConfig(), "language": some}
    found.append(("whole chain with both, regex words", CleanConfig(ops={**whole, **default})))
  if arguments.trafilatura:
    slow = ops.ExtractConfig(engine=ops.Extractor.TRAFILATURA)
    found.append(("whole clean chain, trafilatura", CleanConfig(ops={**default, "extract": slow})))
  if arguments.spacy:
    found.append(("whole clean chain, spaCy's words", CleanConfig(words=Words.SPACY)))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--megabytes", type=float, default=20)
  parser.add_argument("--lid", help="lid.176.ftz or .bin")
  parser.add_argument("--handbook", type=Path, help="the folder html/ of debian-handbook")
  parser.add_argument("--trafilatura", action="store_true")
  parser.add_argument("--spacy", action="store_true")
  arguments = parser.parse_args()
  rows = []
  with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    size, count = write(directory / "pages.warc.gz", arguments.megabytes)
    config = CurationConfig(
      name="speed",
      output=str(directory / "out"),
      sources={"web": WarcSourceConfig(paths=(str(directory / "pages.warc.gz"),))},
    )
    began = time.process_time()
    pages = collect.run(config)
    rows.append(("collect (WARC to pages)", size, time.process_time() - began))
    for label, chosen in chains(arguments):
      began = time.process_time()
      record = base.read_stage(clean.run(pages, config.output, chosen))
      rows.append((label, size, time.process_time() - began))
      rows += [
        (f"  {op['name']} (kept {op['kept']:,} of {op['in']:,})", size, op["seconds"])
        for op in record["ops"]
      ]
  if arguments.lid and arguments.handbook:
    share, number = language_accuracy(arguments.handbook, arguments.lid)
    print(f"\nlanguage named: {share:.4f} of {number} paragraphs in {len(HANDBOOK)} languages")
  print(f"\n{count:,} pages, {size / 1e6:.1f} MB of HTML")
  for label, bytes_done, seconds in rows:
    print(f"{label:48} {seconds:8.2f} s {bytes_done / 1e6 / max(seconds, 1e-9):8.2f} MB/s")


if __name__ == "__main__":
  main()

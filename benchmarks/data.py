"""Speed of the stage clean on one core: python benchmarks/data.py [--megabytes=20]

Writes made-up pages (navigation, an article of made-up words, footers; about 12 kB of HTML each) to
a WARC file and runs collect and clean on it. MB are those of the HTML. Made-up text passes every
filter, so that each sees all of it; real pages are dropped on the way and cost less.
"""

import argparse
import io
import random
import tempfile
import time
from pathlib import Path

from jaxlm.data.stages import base, clean, collect
from jaxlm.data.stages.config import CleanConfig, CurationConfig, WarcSourceConfig, Words, minimal

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


def write(file: Path, megabytes: float) -> tuple[int, int]:
  from warcio.statusandheaders import StatusAndHeaders
  from warcio.warcwriter import WARCWriter

  rng, size, count = random.Random(0), 0, 0
  with file.open("wb") as stream:
    writer = WARCWriter(stream, gzip=True)
    while size < megabytes * 1e6:
      body = page(rng)
      headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
      url = f"https://example.org/{count}"
      writer.write_record(
        writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=headers)
      )
      size, count = size + len(body), count + 1
  return size, count


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--megabytes", type=float, default=20)
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
    began = time.perf_counter()
    pages = collect.run(config)
    rows.append(("collect (WARC to pages)", size, time.perf_counter() - began))
    for label, chosen in (
      ("extraction and private data", minimal()),
      ("whole clean chain, regex words", CleanConfig()),
      ("whole clean chain, spaCy's words", CleanConfig(words=Words.SPACY)),
    ):
      began = time.perf_counter()
      record = base.read_stage(clean.run(pages, config.output, chosen))
      rows.append((label, size, time.perf_counter() - began))
      rows += [
        (f"  {op['name']} (kept {op['kept']:,} of {op['in']:,})", size, op["seconds"])
        for op in record["ops"]
      ]
  print(f"\n{count:,} pages, {size / 1e6:.1f} MB of HTML")
  for label, bytes_done, seconds in rows:
    print(f"{label:48} {seconds:8.2f} s {bytes_done / 1e6 / max(seconds, 1e-9):8.2f} MB/s")


if __name__ == "__main__":
  main()

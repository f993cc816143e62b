"""Common Crawl by its id, from a server on this machine that misbehaves."""

import contextlib
import gzip
import http.server
import json
import threading

import pytest

from jaxlm.data.stages.sources.config import CommonCrawlConfig, CrawlKind
from jaxlm.errors import UserError
from tests.data.stages.sources.made import HTML, read, warc_bytes

CRAWL = "CC-MAIN-2024-10"
PATHS = f"/crawl-data/{CRAWL}/warc.paths.gz"
ARCHIVE = f"crawl-data/{CRAWL}/segments/1/warc/a-00000.warc.gz"
PAGES = [("200 OK", HTML, b"<html><body>page %d" % i) for i in range(40)]


class Server:
  """plan: what goes wrong with the next requests; asked: (path, Range) of those that came."""

  def __init__(self, content):
    self.content = content
    self.plan = []
    self.asked = []
    self.etag = '"1"'


@pytest.fixture
def server():
  archive = warc_bytes(PAGES, gz=True)
  names = f"{ARCHIVE}\n{ARCHIVE.replace('00000', '00001')}\n"
  state = Server({"/" + ARCHIVE: archive, PATHS: gzip.compress(names.encode())})

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked = self.headers.get("Range")
      state.asked.append((self.path, asked))
      trouble = state.plan.pop(0) if state.plan and self.path != PATHS else None
      data = state.content.get(self.path)
      if isinstance(trouble, int) or data is None:
        self.send_response(trouble or 404)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return
      start = 0
      if asked and self.headers.get("If-Range") == state.etag:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
      else:
        self.send_response(200)
      if trouble != "no length":
        self.send_header("Content-Length", str(len(data) - start))
      self.send_header("ETag", state.etag)
      self.end_headers()
      part = data[start:]
      self.wfile.write(part[: len(part) // 2] if trouble == "broken" else part)
      if trouble == "changed":
        state.etag = '"2"'

    def log_message(self, *args):
      pass

  service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=service.serve_forever, daemon=True)
  thread.start()
  state.url = f"http://127.0.0.1:{service.server_port}/"
  with contextlib.closing(service.socket):
    yield state
    service.shutdown()
  thread.join()


@pytest.fixture
def config(server, tmp_path):
  return CommonCrawlConfig(
    crawl=CRAWL,
    base_url=server.url,
    cache=str(tmp_path / "cache"),
    pause=0,
    backoff=0.001,
    retries=3,
    timeout=5,
  )


def test_a_busy_server_is_asked_again_and_a_broken_connection_continued(server, config):
  """Broken by one try only, and by fetching from the start what is half there."""
  server.plan = [503, "broken", 429, "broken"]
  found, _ = read(config)
  assert [d.text for d in found] == [page.decode() for _, _, page in PAGES]
  size = len(server.content["/" + ARCHIVE])
  half = size // 2
  rest = half + (size - half) // 2
  ranges = [asked for path, asked in server.asked if path != PATHS]
  assert ranges == [None, None, f"bytes={half}-", f"bytes={half}-", f"bytes={rest}-"]


def test_what_is_there_is_not_fetched_again_but_checked(server, config, tmp_path):
  """Broken by a cache that trusts names: a damaged file would be read for ever."""
  read(config)
  before = len(server.asked)
  read(config)
  assert len(server.asked) == before
  file = tmp_path / "cache" / ARCHIVE
  data = file.read_bytes()
  file.write_bytes(b"x" + data[1:])  # the same size
  assert len(read(config)[0]) == len(PAGES)
  assert len(server.asked) == before + 1 and file.read_bytes() == data


def test_what_is_known_without_the_network(server, config, tmp_path):
  """Breaks if a dry run fetches the list, or takes another fingerprint than the run after it."""
  source = config.build(strict=False, exclude="")
  assert source.peek() is None
  assert not server.asked and not (tmp_path / "cache").exists()
  found = source.fingerprint()
  before = len(server.asked)
  assert source.peek() == found and len(server.asked) == before


def test_a_half_fetched_file_is_never_taken_for_whole(server, config, tmp_path):
  """A run that gives up leaves a .part; the next goes on there, or anew if the file changed."""
  server.plan = ["broken", 503, 503, 503]
  with pytest.raises(UserError, match=r"a-00000\.warc\.gz: HTTP 503, 4 times"):
    read(config)
  assert not (tmp_path / "cache" / ARCHIVE).exists()
  part = tmp_path / "cache" / (ARCHIVE + ".part")
  assert part.stat().st_size == len(server.content["/" + ARCHIVE]) // 2
  server.etag = '"2"'
  server.content["/" + ARCHIVE] = warc_bytes(PAGES[:3], gz=True)
  assert len(read(config)[0]) == 3
  assert not part.exists()


@pytest.mark.parametrize(
  "plan, message", [([404], "HTTP 404"), (["no length"], "does not say how long")]
)
def test_what_can_not_pass_is_one_line(server, config, plan, message):
  server.plan = plan
  with pytest.raises(UserError, match=message) as error:
    read(config)
  assert "\n" not in str(error.value) and ARCHIVE in str(error.value)


def test_a_path_list_on_disk_and_its_bounds(server, config, tmp_path):
  paths = tmp_path / "paths"
  paths.write_text(ARCHIVE + "\n")
  config.paths_file = str(paths)
  assert len(read(config)[0]) == len(PAGES)
  assert all(path != PATHS for path, _ in server.asked)
  config.first = 1
  with pytest.raises(UserError, match="lists 1 files"):
    read(config)
  paths.write_text("../../etc/passwd\n")
  config.first = 0
  with pytest.raises(UserError, match="outside"):
    read(config)


def test_texts_by_crawl_id(server, config):
  config.kind = CrawlKind.WET
  name = ARCHIVE.replace("warc.gz", "warc.wet.gz")
  server.content[PATHS.replace("warc", "wet")] = gzip.compress(name.encode())
  server.content["/" + name] = warc_bytes([("", [], b"text\n")], gz=True, kind="conversion")
  (found,), _ = read(config)
  assert found.text == "text\n"


def test_the_record_beside_a_file(server, config, tmp_path):
  read(config)
  record = json.loads((tmp_path / "cache" / (ARCHIVE + ".json")).read_text())
  assert record["url"] == server.url + ARCHIVE
  assert record["size"] == len(server.content["/" + ARCHIVE])

"""Small archives and dumps made in the tests, and readers of what a source makes of them."""

import io


def read(config, strict=False):
  """(documents, counts) of a source; the books must balance."""
  config.validate("config.sources['x']")
  source = config.build(strict=strict, exclude="")
  documents = list(source.documents())
  counts = source.counts
  assert (counts.met or 0) == len(documents) + sum(counts.skipped.values()), counts.__dict__
  return documents, counts


HTML = [("Content-Type", "text/html; charset=utf-8")]


def warc_bytes(pages, *, gz, kind="response"):
  """pages: (status, headers, body)."""
  from warcio.statusandheaders import StatusAndHeaders
  from warcio.warcwriter import WARCWriter

  stream = io.BytesIO()
  writer = WARCWriter(stream, gzip=gz, warc_version="1.0")
  writer.write_record(writer.create_warcinfo_record("made.warc", {"software": "test"}))
  for i, (status, headers, body) in enumerate(pages):
    url = f"https://example.org/{i}"
    if kind == "response":
      http = StatusAndHeaders(status, headers, protocol="HTTP/1.1")
      record = writer.create_warc_record(url, kind, payload=io.BytesIO(body), http_headers=http)
    else:
      record = writer.create_warc_record(
        url,
        kind,
        payload=io.BytesIO(body),
        warc_content_type="text/plain",
        warc_headers_dict={"WARC-Identified-Content-Language": "deu,eng"},
      )
    writer.write_record(record)
  return stream.getvalue()

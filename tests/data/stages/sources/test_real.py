"""Archives and dumps that others made: what the made-up ones do not think of."""

import re

import pytest

from jaxlm.data.stages.sources.config import CodeSourceConfig, WarcSourceConfig, WikipediaConfig
from jaxlm.errors import UserError
from tests.data.stages.sources.made import read
from tests.tokenizers.conftest import package_file

PYWB = "sdist:pywb==2.10.0"
GENSIM = "pypi:gensim==4.4.0"


def test_a_crawl_of_48_responses():
  """Broken by bodies that are not chunked under headers that say so: they stopped the reading."""
  file = package_file(PYWB, "warcs/iana.warc.gz")
  found, counts = read(WarcSourceConfig(paths=(str(file),)))
  assert counts.skipped.pop("revisit") == 123
  assert len(found) + sum(counts.skipped.values()) == 48
  assert counts.skipped == {"empty": 16, "not HTML": 12, "not status 200": 4}
  assert all("<html" in d.text.lower() for d in found)


@pytest.mark.parametrize("name", ["example.warc", "missing-status-text.warc"])
def test_archives_with_wrong_lengths_are_refused(name):
  """Their Content-Length is wrong: what follows would be read from the wrong place."""
  file = package_file(PYWB, f"warcs/{name}")
  with pytest.raises(UserError, match="damaged"):
    read(WarcSourceConfig(paths=(str(file),)))


def test_an_encyclopaedia_holds_no_markup():
  """Broken by tables in templates, files in galleries, nested lists of templates …"""
  name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
  file = package_file(GENSIM, name)
  found, counts = read(WikipediaConfig(paths=(str(file),)))
  assert len(found) == 106
  assert counts.skipped == {"redirect": 99, "not an article": 1}
  text = "\n".join(d.text for d in found)
  assert not re.search(r"^(?:[*#:;|!]|[ -]*-\s*$)", text, re.MULTILINE)
  text = re.sub(r"\$[^$\n]*\$", "", text)
  for markup in (r"\[\[", r"\]\]", r"<ref", r"<[a-z]+>", r"\{\|", r"\|\}", r"'''"):
    assert not re.search(markup, text, re.MULTILINE), markup
  assert found[0].text.startswith("Anarchism\n\nAnarchism is a political philosophy")


def test_a_package_under_the_gpl_is_left_out():
  package_file(PYWB, "PKG-INFO")
  (archive,) = package_file(PYWB, "PKG-INFO").parent.glob("*.tar.gz")
  found, counts = read(CodeSourceConfig(paths=(str(archive),)))
  assert not found and counts.skipped["licence GPL-3.0-only"] > 200
  found, _ = read(CodeSourceConfig(paths=(str(archive),), licences=("GPL-3.0-only",)))
  assert len(found) > 200

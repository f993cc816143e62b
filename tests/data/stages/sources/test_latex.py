"""Papers in LaTeX: the whole paper once, as text."""

import gzip
import io
import tarfile

import pytest

from jaxlm.data.stages.sources import latex_text
from jaxlm.data.stages.sources.config import LatexSourceConfig
from jaxlm.errors import UserError
from tests.data.stages.sources.made import read

MAIN = r"""% a comment
\documentclass{article}
\newcommand{\ie}{i.e.\ }
\def\net{\textsc{Net}}
\title{On \emph{Things}}
\author{A. Uthor}
\begin{document}
\maketitle
\begin{abstract}We show, \ie prove~\cite{a}, that 50\% of \net{} is $x^2$.\end{abstract}
\input{parts/intro} % here
\include{missing}
\begin{figure}\includegraphics[width=3cm]{x}\caption{A caption.}\end{figure}
\begin{equation} a = b \label{e}\end{equation}
\begin{tabular}{cc}cell&b\end{tabular}
\begin{thebibliography}{9}\bibitem{a} A Book\end{thebibliography}
\end{document}
after the end
"""
INTRO = '\\section{First words}\nText \\textbf{bold}, na\\"ive, see Fig.~\\ref{f}.%\n joined\n'
PARTS = {"paper.tex": MAIN, "parts/intro.tex": INTRO}
OLD = "\\documentstyle{article}\n\\begin{document}\nGr\xfc\xdfe aus K\xf6ln.\n\\end{document}\n"


def _tar(files, mode="w:gz"):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode, format=tarfile.USTAR_FORMAT) as archive:
    for name, text in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(text.encode())
      archive.addfile(member, io.BytesIO(text.encode()))
  return out.getvalue()


def _check(document):
  text = document.text
  assert text.startswith("On Things\n\nWe show, i.e. prove, that 50% of Net is $x^2$.")
  for there in ("First words\n\nText bold, naïve", "joined", "A caption.", "a = b"):
    assert there in text
  for gone in ("comment", "A Book", "Uthor", "cell", "after the end", "\\section", "documentclass"):
    assert gone not in text
  assert document.origin["title"] == "On Things" and document.origin["missing_inputs"] == "1"


def test_an_archive_is_one_paper(tmp_path):
  """Broken by taking every file of it for a document, or the first for the main one."""
  other = {"a_supplement.tex": "\\documentclass{article}\\begin{document}No.\\end{document}"}
  (tmp_path / "2401.01234v2.tar.gz").write_bytes(_tar({**other, **PARTS}))
  (found,), counts = read(LatexSourceConfig(paths=(str(tmp_path),), licence="CC-BY-4.0"))
  _check(found)
  assert found.origin["url"] == "https://arxiv.org/abs/2401.01234v2"
  assert found.origin["main_file"] == "paper.tex" and found.origin["licence"] == "CC-BY-4.0"
  assert counts.other["missing input"] == 1


def test_gz_without_tar_in_its_name(tmp_path):
  (tmp_path / "a.gz").write_bytes(_tar(PARTS))
  (tmp_path / "b.gz").write_bytes(gzip.compress(OLD.encode("latin-1")))
  (tmp_path / "c.gz").write_bytes(gzip.compress(b"%PDF-1.4 x"))
  found, counts = read(LatexSourceConfig(paths=(str(tmp_path),)))
  _check(found[0])
  assert found[1].text == "Grüße aus Köln."
  assert counts.skipped == {"no LaTeX document": 1}
  assert counts.other["file read as Latin-1"] == 1


def test_a_folder_of_files(tmp_path):
  for name, text in PARTS.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  (found,), counts = read(LatexSourceConfig(paths=(str(tmp_path),)))
  _check(found)
  assert counts.skipped == {"no document of its own": 1}


def test_files_that_include_each_other_end():
  sources = {
    "a.tex": MAIN.replace("parts/intro", "b"),
    "b.tex": "x \\input{c}",
    "c.tex": "\\input{b}",
  }
  text, _ = latex_text.expand("a.tex", sources)
  assert len(text) < 10_000


def test_nothing_outside_of_the_folder_is_read(tmp_path):
  (tmp_path / "secret.tex").write_text("secret")
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.tex").write_text(MAIN.replace("parts/intro", "../secret"))
  (found,), _ = read(LatexSourceConfig(paths=(str(tmp_path / "in"),)))
  assert "secret" not in found.text and found.origin["missing_inputs"] == "2"


@pytest.mark.parametrize("name", ["a.tar.gz", "a.gz"])
def test_a_damaged_archive_is_named(tmp_path, name):
  (tmp_path / name).write_bytes(_tar(PARTS)[:-30])
  with pytest.raises(UserError, match=r"a\.\S*gz: damaged"):
    read(LatexSourceConfig(paths=(str(tmp_path / name),)))

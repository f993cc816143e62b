"""The stage decontaminate: planted questions and canaries go, near misses stay."""

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest

from jaxlm.data.stages import base
from jaxlm.data.stages.dedup_config import Action, DecontaminateConfig, EvalSetConfig
from jaxlm.errors import UserError

pytest.importorskip("datatrove")

from jaxlm.data.stages import decontaminate

GUID = "26b5c67b-86cc-4c9c-8c8d-0123456789ab"


def prose(seed, n=60):
  rng = random.Random(seed)
  return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(n))


QUESTION = "Which of the seven grey herons at the mill pond learned to count fish before noon"


def write_upstream(folder, texts, files=2):
  folder = folder / "dedup-00000000"
  (folder / "documents").mkdir(parents=True)
  for i in range(files):
    with gzip.open(folder / "documents" / f"{i:05d}.jsonl.gz", "wt", encoding="utf-8") as out:
      for name in sorted(texts)[i::files]:
        row = {"id": name, "text": texts[name], "metadata": {"source": "a"}}
        out.write(json.dumps(row) + "\n")
  record = {"stage": "dedup", "fingerprint": f"up{len(texts)}", "kept": len(texts)}
  base.write_stage_json(folder, record)
  return folder


TEXTS = {
  "clean": prose(1),
  "planted": f"{prose(2)}\n{QUESTION.upper().replace(' ', '  ')}?! {prose(3)}",
  "near": f"{prose(4)} {QUESTION.replace('mill', 'wind')} {prose(5)}",
  "canary": f"{prose(6)} canary GUID {GUID} {prose(7)}",
  "guid": f"{prose(8)} {GUID} {prose(9)}",
  "other": f"{prose(10)} {prose(90, 20)} {prose(11)}",
}


@pytest.fixture
def case(tmp_path):
  herons = tmp_path / "herons.jsonl"
  herons.write_text(json.dumps({"doc": {"q": QUESTION}, "answer": "none"}) + "\n")
  passages = tmp_path / "passages.json"
  passages.write_text(json.dumps({"data": [{"text": prose(90, 20)}, {"text": "too short"}]}))
  config = DecontaminateConfig(
    eval_sets=[
      EvalSetConfig(name="herons", paths=(str(herons),), fields=("doc.q",)),
      EvalSetConfig(name="passages", paths=(str(passages),), fields=("text",)),
    ]
  )
  return write_upstream(tmp_path, TEXTS), tmp_path, config


def test_planted_text_goes_and_near_misses_stay(case):
  up, output, config = case
  directory = decontaminate.run(up, output, config)
  assert {one["id"] for one in base.iter_documents(directory)} == {"clean", "near", "guid"}
  record = base.read_stage(directory)
  assert [(op["name"], op["in"], op["dropped"]) for op in record["ops"]] == [
    ("canary", 6, 1),
    ("ngrams", 5, 2),
  ]
  herons, passages = record["tasks"]
  assert herons["documents_hit"] == 1 and herons["items"] == 1 and herons["n_gram_hits"] == 4
  assert herons["examples"][0]["document"] == "planted"
  assert herons["examples"][0]["n_gram"].startswith("which of the seven grey herons")
  assert passages["documents_hit"] == 1 and passages["too_short"] == 1
  removed = {one["id"]: one["metadata"] for one in base.iter_documents(directory, "ngrams")}
  assert removed["planted"]["contaminated_by"] == "herons"
  assert removed["planted"]["reason"] == "eval_overlap"
  (canary,) = base.iter_documents(directory, "canary")
  assert canary["id"] == "canary" and canary["metadata"]["reason"] == "canary"


def test_report_keeps_overlaps_but_no_canary(case):
  up, output, config = case
  config = dataclasses.replace(config, action=Action.REPORT)
  directory = decontaminate.run(up, output, config, tasks=2)
  found = {one["id"]: one["metadata"] for one in base.iter_documents(directory)}
  assert set(found) == set(TEXTS) - {"canary"}
  assert found["planted"]["contaminated_ngrams"] == 4
  record = base.read_stage(directory)
  assert record["ops"][-1]["contaminated"] == 2 and record["tasks"][0]["documents_hit"] == 1


def test_min_hits(case):
  up, output, config = case
  directory = decontaminate.run(up, output, dataclasses.replace(config, min_hits=5))
  assert {one["id"] for one in base.iter_documents(directory, "ngrams")} == {"other"}


def test_the_number_of_tasks_changes_no_byte(case, tmp_path):
  up, output, config = case
  one = base.read_stage(decontaminate.run(up, output, config))
  many = base.read_stage(decontaminate.run(up, tmp_path / "other", config, tasks=3))
  assert one["files"] == many["files"] and one["tasks"] == many["tasks"]


def test_reuse_and_fingerprint(case):
  up, output, config = case
  directory = decontaminate.run(up, output, config)
  stamp = (directory / base.RECORD).stat().st_mtime_ns
  assert decontaminate.run(up, output, config) == directory
  assert (directory / base.RECORD).stat().st_mtime_ns == stamp
  with Path(config.eval_sets[0].paths[0]).open("a") as file:  # the same config, another set
    file.write(json.dumps({"doc": {"q": prose(1)}}) + "\n")
  again = decontaminate.run(up, output, config)
  assert again != directory and base.read_stage(again)["kept"] == 2


def test_parquet_text_and_gzip(tmp_path):
  pq = pytest.importorskip("pyarrow.parquet")
  import pyarrow as pa

  pq.write_table(pa.table({"q": [QUESTION]}), tmp_path / "a.parquet")
  (tmp_path / "b.txt").write_text(prose(90, 20) + "\n\n")
  with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
    file.write(json.dumps({"q": [prose(1), 3]}) + "\n")
  sets = [
    EvalSetConfig(name=n, paths=(str(tmp_path / n),), fields=("q", "r"))
    for n in ("a.parquet", "b.txt", "c.jsonl.gz")
  ]
  up = write_upstream(tmp_path, TEXTS)
  record = base.read_stage(decontaminate.run(up, tmp_path, DecontaminateConfig(eval_sets=sets)))
  assert [task["documents_hit"] for task in record["tasks"]] == [1, 1, 1]


def test_bad_input(case, tmp_path):
  up, output, config = case
  path = tmp_path / "bad.jsonl"
  one = EvalSetConfig(name="bad", paths=(str(path),))
  config = DecontaminateConfig(eval_sets=[one])
  with pytest.raises(UserError, match=r"bad\.jsonl.*No such file"):
    decontaminate.run(up, output, config)
  path.write_text("{")
  with pytest.raises(UserError, match=r"eval_sets\[0\]\.paths: .*bad\.jsonl"):
    decontaminate.run(up, output, config)
  path.write_text('{"text": "x"}\n')
  with pytest.raises(UserError, match="name its fields"):
    decontaminate.run(up, output, config)
  with pytest.raises(UserError, match="stands twice"):
    DecontaminateConfig(eval_sets=[one, one]).validate()
  with pytest.raises(UserError, match=r"canaries: '\('"):
    DecontaminateConfig(canaries=("(",)).validate()


def test_chinese_questions_are_found(tmp_path):
  """Broken by words of letters alone: no question had thirteen of them."""
  rng = random.Random(3)

  def clauses(n):
    some = ["".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(12)) for _ in range(n)]
    return "，".join(some) + "。"

  question = clauses(3)
  evals = tmp_path / "zh.jsonl"
  evals.write_text(json.dumps({"question": question}))
  texts = {"clean": clauses(9), "planted": clauses(4) + question.replace("，", "、") + clauses(4)}
  config = DecontaminateConfig(eval_sets=[EvalSetConfig(name="zh", paths=(str(evals),))])
  up = write_upstream(tmp_path, texts)
  directory = decontaminate.run(up, tmp_path, config)
  assert [one["id"] for one in base.iter_documents(directory)] == ["clean"]
  assert base.read_stage(directory)["tasks"][0]["too_short"] == 0
  with pytest.raises(UserError, match=r"decontaminate removed 50\.0% .*max_drop_ratio=0\.1"):
    decontaminate.run(up, tmp_path, config, max_drop_ratio=0.1)  # also when it is there

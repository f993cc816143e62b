"""The stage dedup: books, keep rules, and that the number of tasks changes nothing."""

import dataclasses
import gzip
import json
import random

import pytest

from jaxlm.data.stages import base
from jaxlm.data.stages.dedup_config import DedupConfig, KeepRule, LineUnit, MinhashConfig
from jaxlm.errors import UserError

pytest.importorskip("datatrove")

from jaxlm.data.stages import dedup, dedup_rule

OFF = MinhashConfig(enabled=False)


def words(seed, n=200):
  rng = random.Random(seed)
  return ["".join(rng.choices("abcdefghij", k=5)) for _ in range(n)]


def prose(seed, n=200):
  return " ".join(words(seed, n))


def edited(seed, changes, n=200):
  found = words(seed, n)
  for i in range(changes):
    found[(i * 37 + 11) % n] = f"changed{i}"
  return " ".join(found)


def doc(name, text, source="a", **metadata):
  return {"id": name, "text": text, "metadata": {"source": source, **metadata}}


def upstream(folder, files):
  folder = folder / "clean-00000000"
  (folder / "documents").mkdir(parents=True)
  for i, rows in enumerate(files):
    with gzip.open(folder / "documents" / f"{i:05d}.jsonl.gz", "wt", encoding="utf-8") as out:
      out.writelines(json.dumps(row) + "\n" for row in rows)
  kept = sum(map(len, files))
  base.write_stage_json(folder, {"stage": "clean", "fingerprint": f"up{kept}", "kept": kept})
  return folder


def run(folder, files, config, **more):
  directory = dedup.run(upstream(folder, files), folder, config, **more)
  return directory, base.read_stage(directory), list(base.iter_documents(directory))


FILES = [
  [
    doc("a1", prose(1), url="http://x.org/1"),
    doc("a2", prose(2), url="http://x.org/2", language="en"),
    doc("a3", prose(1).upper() + "  ", url="http://x.org/3"),
  ],
  [
    doc("b1", prose(1) + " more words here now", "b", url="http://x.org/4"),
    doc("b2", prose(3), "b", url="http://X.org/2#part"),
    doc("b3", prose(4), "b"),
  ],
  [doc("c1", prose(2), "c"), doc("c2", edited(4, 2), "c"), doc("c3", prose(5), "c")],
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return run(tmp_path_factory.mktemp("one"), FILES, DedupConfig())


def test_books_balance_and_duplicates_are_counted_by_reason(made):
  directory, record, documents = made
  assert [op["name"] for op in record["ops"]] == ["exact", "url", "minhash"]
  for op in record["ops"]:
    assert op["in"] == op["kept"] + op["dropped"] + op["errored"]
    removed = list(base.iter_documents(directory, op["name"]))
    assert len(removed) == op["dropped"] == sum(op["reasons"].values())
    assert {one["metadata"]["reason"] for one in removed} == set(op["reasons"])
  assert [op["dropped"] for op in record["ops"]] == [2, 1, 2]
  assert record["in"] == 9 and record["kept"] == len(documents) == 4
  assert record["by_source"]["c"] == {"in": 3, "kept": 2}
  assert sum(one["in"] for one in record["by_language"].values()) == 9
  assert not (directory / "work").exists()
  assert all("_at" not in one["metadata"] for one in documents)


def test_a_duplicate_of_a_removed_document_names_the_one_that_stays(made):
  directory, _, documents = made
  kept = {one["id"] for one in documents}
  assert kept == {"a2", "b1", "c2", "c3"}
  removed = [
    one for op in ("exact", "url", "minhash") for one in base.iter_documents(directory, op)
  ]
  assert {one["metadata"]["duplicate_of"] for one in removed} <= kept
  of = {one["id"]: one["metadata"]["duplicate_of"] for one in removed}
  assert of["a1"] == of["a3"] == "b1"  # a1 (or a3) stayed in exact, and went in minhash
  assert of["c1"] == of["b2"] == "a2" and of["b3"] == "c2"
  near = next(one for one in removed if one["id"] == "b3")
  assert 0.8 < near["metadata"]["jaccard"] <= 1 and near["metadata"]["cluster"] == "minhash-1"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_tasks_changes_no_byte(made, tmp_path, workers):
  directory, record, _ = run(tmp_path, FILES, DedupConfig(), tasks=3, workers=workers)
  assert record["files"] == made[1]["files"] and record["files"]
  strip = [{k: v for k, v in op.items() if k != "seconds"} for op in record["ops"]]
  assert strip == [{k: v for k, v in op.items() if k != "seconds"} for op in made[1]["ops"]]
  for op in ("exact", "url", "minhash"):
    assert list(base.iter_documents(directory, op)) == list(base.iter_documents(made[0], op))


def test_a_finished_stage_is_reused_and_a_changed_config_makes_another(tmp_path):
  config = DedupConfig(minhash=OFF)
  directory, _, _ = run(tmp_path, FILES, config)
  stamp = (directory / base.RECORD).stat().st_mtime_ns
  up = tmp_path / "clean-00000000"
  assert dedup.run(up, tmp_path, config) == directory
  assert (directory / base.RECORD).stat().st_mtime_ns == stamp
  assert dedup.run(up, tmp_path, dataclasses.replace(config, url=False)) != directory


def test_an_unfinished_stage_of_other_tasks_begins_anew(tmp_path):
  config = DedupConfig(minhash=OFF)
  directory, record, _ = run(tmp_path, FILES, config, tasks=3)
  (directory / base.RECORD).unlink()
  dedup.run(tmp_path / "clean-00000000", tmp_path, config, tasks=2)
  assert base.read_stage(directory)["files"] == record["files"]


@pytest.mark.parametrize(
  ("rule", "kept"),
  [(KeepRule.LONGEST, "m"), (KeepRule.BEST_SCORE, "z"), (KeepRule.EARLIEST, "k")],
)
@pytest.mark.parametrize("op", ["exact", "minhash"])
def test_keep_rules(tmp_path, rule, kept, op):
  same = prose(1)
  texts = {"m": same + "   ", "z": same, "k": same, "a": same}
  if op == "minhash":
    texts = {"m": same + " one two", "z": edited(1, 1), "k": same + " end", "a": edited(1, 2)}
  rows = [
    doc("m", texts["m"], "x", score=0.1),
    doc("z", texts["z"], "x", score=0.9),
    doc("a", texts["a"], "x"),
    doc("k", texts["k"], "first", score="bad"),
  ]
  config = DedupConfig(
    keep=rule,
    source_priority=("first", "x"),
    exact=op == "exact",
    minhash=MinhashConfig(enabled=op == "minhash"),
  )
  _, _, documents = run(tmp_path, [rows], config)
  assert [one["id"] for one in documents] == [kept]


def test_only_within_sources(tmp_path):
  rows = [
    doc("1", prose(1), "x", url="http://u"),
    doc("2", prose(1), "y", url="http://u"),
    doc("3", edited(1, 2), "y"),
  ]
  _, record, documents = run(tmp_path, [rows], DedupConfig(across_sources=False))
  assert len(documents) == 2 and {one["metadata"]["source"] for one in documents} == {"x", "y"}
  assert [op["dropped"] for op in record["ops"]] == [0, 0, 1]


def test_parts_of_a_long_document_are_not_copies_of_its_url(tmp_path):
  """Broken by a key of the url alone, which all parts that collect cuts have."""
  parts = [doc(f"a#part{i}", prose(i), url="http://x.org/a", part=i, parts=3) for i in range(3)]
  again = doc("again", prose(7) + " later", url="http://x.org/A".lower(), part=1, parts=3)
  record, documents = run(tmp_path, [parts, [again]], DedupConfig(minhash=OFF))[1:]
  assert [one["id"] for one in documents] == ["a#part0", "a#part2", "again"]
  assert record["ops"][1]["reasons"] == {"url_duplicate": 1}


@pytest.mark.parametrize("exact", [True, False])
def test_the_best_score_needs_a_score(tmp_path, exact):
  """Broken by a rule that, without scores, is quietly another one."""
  rows = [doc("a", prose(1), score=1), doc("b", prose(1), score="nan"), doc("c", prose(2))]
  config = DedupConfig(keep=KeepRule.BEST_SCORE, exact=exact, url=exact)
  up = upstream(tmp_path, [rows])
  assert base.read_stage(dedup.run(up, tmp_path, config))["kept"] == 2
  for field in ("quality_score", "source"):
    wrong = dataclasses.replace(config, score_field=field)
    with pytest.raises(UserError, match=f"no document of .* metadata field '{field}'") as error:
      dedup.run(up, tmp_path, wrong)
    assert "\n" not in str(error.value)


def test_a_reused_stage_is_held_to_the_ratio_of_this_run(tmp_path):
  config = DedupConfig(minhash=OFF)
  run(tmp_path, FILES, config)
  with pytest.raises(UserError, match=r"dedup removed 33\.3% .*max_drop_ratio=0\.1"):
    dedup.run(tmp_path / "clean-00000000", tmp_path, config, max_drop_ratio=0.1)


def chinese(seed, clauses=20):
  rng = random.Random(seed)
  some = [chr(0x4E00 + rng.randrange(3000)) for _ in range(700)]
  return "，".join("".join(rng.choices(some, k=12)) for _ in range(clauses)) + "。"


def test_chinese_near_duplicates_and_shared_passages_are_found(tmp_path):
  """Broken by words of letters alone: a clause was one, and its change one word of twenty."""
  text = chinese(1)
  near = "，".join(c[:-1] + "的" if i in (2, 7, 12) else c for i, c in enumerate(text.split("，")))
  shared = chinese(9, 5)
  rows = [doc("a", text), doc("b", near), doc("c", chinese(3) + shared)]
  rows += [doc("d", chinese(4) + shared + chinese(5, 2))]
  _, record, documents = run(tmp_path, [rows], DedupConfig(substring=True))
  ops = {op["name"]: op for op in record["ops"]}
  assert ops["minhash"]["dropped"] == 1 and ops["substring"]["passages_cut"] == 1
  assert [one["id"] for one in documents if one["id"] in "cd"] == ["c", "d"]
  assert documents[-1]["text"] == chinese(4).rstrip("。") + "\n" + chinese(5, 2)


def test_the_ends_of_a_chain_are_not_duplicates():
  import numpy as np

  def member(at, signature):
    return dedup_rule.Member(at, str(at), 100 - at, 0.0, 0, np.array(signature))

  chain = [member(0, [1, 1, 1, 1]), member(1, [1, 1, 2, 2]), member(2, [2, 2, 2, 2])]
  assert [one.at for one in dedup_rule.choose(chain, KeepRule.LONGEST, 0.5)] == [1]
  assert [one.at for one in dedup_rule.choose(chain, KeepRule.LONGEST, 0.0)] == [1, 2]


@pytest.mark.parametrize("unit", [LineUnit.LINE, LineUnit.PARAGRAPH])
def test_repeated_lines_are_taken_out(tmp_path, unit):
  gap = "\n" if unit is LineUnit.LINE else "\n\n"
  banner = "Subscribe to our weekly letter now"
  rows = [doc(str(i), gap.join([prose(i), banner, prose(i + 50)])) for i in range(4)]
  rows.append(doc("only", banner + gap + banner))
  rows.append(doc("twice", f"{prose(90)}{gap}short"))
  config = DedupConfig(exact=False, url=False, lines=unit, line_max_documents=3, minhash=OFF)
  _, record, documents = run(tmp_path, [rows[:3], rows[3:]], config, tasks=2)
  (op,) = record["ops"]
  assert op["reasons"] == {"only_repeated_lines": 1} and op["documents_edited"] == 4
  assert documents[0]["text"] == gap.join([prose(0), prose(50)])
  assert documents[-1]["text"] == rows[-1]["text"]
  config = dataclasses.replace(config, line_max_documents=5)
  again = dedup.run(tmp_path / "clean-00000000", tmp_path, config)
  assert base.read_stage(again)["kept"] == 6


def test_near_duplicates_and_nothing_else_go(tmp_path):
  rows = [doc(f"o{i}", prose(i)) for i in range(60)]
  rows += [doc(f"n{i}", edited(i, 2)) for i in range(30)]  # a Jaccard similarity of 0.90
  _, record, documents = run(tmp_path, [rows], DedupConfig(), tasks=1)
  assert record["ops"][-1]["dropped"] >= 28 and record["kept"] >= 60
  assert record["ops"][-1]["clusters"]["sizes"] == {"2": record["ops"][-1]["dropped"]}
  assert len({one["id"][1:] for one in documents}) == 60  # one of each pair stays


@pytest.mark.parametrize("fold", [False, True])
def test_texts_that_differ_in_numbers_alone(tmp_path, fold):
  rows = [
    doc(str(i), f"{17 * i}.5N {31 * i}.25E, {i}7 N {i}9 E: {i}01 m, {i}33") for i in (1, 2, 3)
  ]
  config = DedupConfig(minhash=MinhashConfig(fold_numbers=fold))
  _, record, _ = run(tmp_path, [rows], config)
  assert record["kept"] == (1 if fold else 3)


def test_signatures_are_datatroves():
  import numpy as np
  from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

  from jaxlm.data.stages import minhash

  lsh = minhash.lsh_config(MinhashConfig(), 3)
  ours = minhash.Signatures("/tmp", lsh, word_tokenizer="regex", by_source=False)
  theirs = MinhashDedupSignature("/tmp", config=lsh, language=minhash.RegexTokenizer())
  text = prose(7, 3000) + ". Numbers 12.5, and Élan!"
  a, b = ours.get_shingles(text), theirs.get_shingles(text)
  assert set(a.ravel().tolist()) == set(b.ravel().tolist())
  assert ours.get_signature(a) == theirs.get_signature(b)
  assert ours.get_signature(np.array([[2**64 - 1]], np.uint64)) == theirs.get_signature(
    np.array([[2**64 - 1]], np.uint64)
  )


def test_a_full_disk_leaves_nothing_that_passes_for_whole(made, tmp_path):
  resource = pytest.importorskip("resource")
  up = upstream(tmp_path, [[doc(f"{i}", prose(i)) for i in range(400)]])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (60_000 // 2, limits[1]))
  try:  # 400 signatures of 68 bytes fill 27 kB; the records of scan pass, what follows does not
    with pytest.raises(UserError, match="make room"):
      dedup.run(up, tmp_path, DedupConfig())
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  (directory,) = tmp_path.glob("dedup-*")
  assert not (directory / base.RECORD).exists()
  assert dedup.run(up, tmp_path, DedupConfig()) == directory
  assert base.read_stage(directory)["kept"] == 400 == len(list(base.iter_documents(directory)))


def test_a_killed_run_is_taken_up(made, tmp_path, monkeypatch):
  from jaxlm.data.stages import stage_io

  def killed(*_):
    raise KeyboardInterrupt

  up = upstream(tmp_path, FILES)
  with monkeypatch.context() as patch:
    patch.setattr(stage_io.KeepWriter, "run", killed)
    with pytest.raises(KeyboardInterrupt):
      dedup.run(up, tmp_path, DedupConfig())
  (directory,) = tmp_path.glob("dedup-*")
  signed = directory / "logs" / "minhash_signatures" / "completions" / "00000"
  stamp = signed.stat().st_mtime_ns
  dedup.run(up, tmp_path, DedupConfig())
  assert signed.stat().st_mtime_ns == stamp  # not run again
  assert base.read_stage(directory)["files"] == made[1]["files"]


def test_bad_input(tmp_path):
  up = upstream(tmp_path, FILES)
  with pytest.raises(UserError, match="substring_words=1"):
    dedup.run(up, tmp_path, DedupConfig(substring=True, substring_words=1))
  with pytest.raises(UserError, match="did not finish"):
    dedup.run(tmp_path, tmp_path, DedupConfig())
  with pytest.raises(UserError, match=r"max_drop_ratio=0\.1"):
    dedup.run(up, tmp_path, DedupConfig(minhash=OFF), max_drop_ratio=0.1)
  file = up / "documents" / "00001.jsonl.gz"
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"00001\.jsonl\.gz"):
    dedup.run(up, tmp_path, DedupConfig(url=False))
  file.write_bytes(gzip.compress(gzip.decompress(whole).replace(b"{", b"[", 1)))
  with pytest.raises(UserError, match="8 documents were read"):
    dedup.run(up, tmp_path, DedupConfig(minhash=OFF, url=False))


def test_a_signature_file_that_was_cut_is_named(tmp_path):
  from jaxlm.data.stages import minhash, stage_io

  lsh = minhash.lsh_config(MinhashConfig(), 0)
  step = minhash.Signatures(tmp_path / "s", lsh, word_tokenizer="regex", by_source=False)
  step.run(stage_io.StageReader(upstream(tmp_path, FILES)).run(), 0, 1)
  minhash.verify_signatures(tmp_path / "s", lsh, 1)
  file = tmp_path / "s" / "bucket_003" / "00000.minhash.sig"
  file.write_bytes(file.read_bytes()[:-5])
  with pytest.raises(UserError, match="bucket_003"):
    minhash.verify_signatures(tmp_path / "s", lsh, 1)


PASSAGE = prose(99, 60)


def test_a_passage_that_two_documents_share_is_cut_from_the_second(tmp_path):
  """Broken by windows that are cut where they do not repeat, or from the first document too."""
  texts = {
    "first": f"{prose(1)} {PASSAGE} {prose(2)}",
    "other": prose(3),
    "second": f"{prose(4)}\n{PASSAGE.title()} {prose(5)}",
    "short": " ".join(PASSAGE.split()[:49]),  # less than a window
    "twice": f"{prose(6, 60)} {prose(7)} {prose(6, 60)}",  # within one document it stays
    "all": PASSAGE,
  }
  rows = [doc(name, text) for name, text in texts.items()]
  config = DedupConfig(minhash=OFF, substring=True)
  made = {}
  for tasks in (1, 2):
    place = tmp_path / str(tasks)
    directory, record, kept = run(place, [rows[:2], rows[2:]], config, tasks=tasks)
    made[tasks] = record["files"]
  assert made[1] == made[2]
  texts.pop("all")
  texts["second"] = f"{prose(4)}\n{prose(5)}"
  assert {d["id"]: d["text"] for d in kept} == texts
  op = record["ops"][-1]
  assert op["name"] == "substring" and op["reasons"] == {"only_repeated_passages": 1}
  assert (op["passages_cut"], op["documents_edited"]) == (1, 1)
  assert op["characters_cut"] == len(PASSAGE) + 1
  (gone,) = base.iter_documents(directory, "substring")
  assert gone["id"] == "all"


def test_passages_of_different_sources_stay_where_sources_are_apart(tmp_path):
  rows = [doc(s, f"{prose(i)} {PASSAGE}", source=s) for i, s in enumerate("ab")]
  config = DedupConfig(minhash=OFF, substring=True, across_sources=False)
  kept = run(tmp_path, [rows], config)[2]
  assert [d["text"] for d in kept] == [row["text"] for row in rows]


def test_windows_are_those_computed_one_by_one():
  from jaxlm.data.stages.substrings import windows

  text = "a b c d a b c e a B C d"
  found, _ = windows(text, 3)
  grams = [" ".join(text.lower().split()[i : i + 3]) for i in range(10)]
  same = {(i, j) for i in range(10) for j in range(i) if grams[i] == grams[j]}
  assert {(i, j) for i in range(10) for j in range(i) if found[i] == found[j]} == same

"""The doctor on a bundle: what it says where the bundle does not hold what it looks at."""

from dataclasses import replace

from twotower.doctor.diagnosis import diagnose_bundle
from twotower.serving.retriever import Retriever


def test_without_histories_it_says_what_was_not_looked_at(tiny_retriever: Retriever) -> None:
    bare = replace(tiny_retriever.contents, histories=None, history_parts=None, targets=None)
    found = [f for f in diagnose_bundle(Retriever(bare)) if f.kind.id == "not-looked-at"]
    assert [finding.severity for finding in found] == ["info"]
    said = found[0].as_json()
    assert said["what"].startswith("Not looked at: the data,")
    assert "the bundle holds no histories" in said["what"]
    assert "histories=False" in said["do"]
    assert "模型包不含历史" in found[0].as_json("zh")["what"]


def test_with_histories_everything_is_looked_at(tiny_retriever: Retriever) -> None:
    assert "not-looked-at" not in {f.kind.id for f in diagnose_bundle(tiny_retriever)}

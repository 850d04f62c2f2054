"""``examine_model``: everything that the doctor can see of a trained model."""

from dataclasses import dataclass

from twotower.caller import argument
from twotower.doctor.checks import ExaminedModel, checks_that_need
from twotower.doctor.findings import KINDS, Finding, worst_first
from twotower.doctor.model_answers import Trial
from twotower.doctor.model_features import Loss
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.refit_notes import learnt_of
from twotower.serving.retriever import Retriever


@dataclass(frozen=True)
class Examined:
    """What the doctor saw.

    Args:
        findings: The worst first.
        losses: What answers lose without the history, and without each feature that is read; empty where
            too few queries are known.
    """

    findings: tuple[Finding, ...]
    losses: tuple[Loss, ...] = ()


def diagnose_model(retriever: Retriever) -> list[Finding]:
    """Return what may be wrong with a trained model, the worst first; see ``examine_model``."""
    return list(examine_model(retriever).findings)


def examine_model(retriever: Retriever) -> Examined:
    """Return what may be wrong with a trained model, and what it makes of all that it reads.

    Loss, item vectors and vocabularies are looked at in every bundle. Where it holds histories, up to
    1,000 of its validation queries are asked as well, again with each feature and the history
    shuffled between them; the test is not touched.

    Args:
        retriever: An opened bundle, or ``trained.retriever``.

    Raises:
        ValueError: A score is NaN; the query is named.
    """
    contents, seen = retriever.contents, ExaminedModel(retriever)
    found = _made(seen, "bundle")
    if contents.histories is not None and contents.popularity.any():
        seen.dataset = dataset_of(retriever)
        found += _made(seen, "histories")
        trial = Trial(retriever, seen.dataset)
        if learnt_of(contents.metrics) is not None:
            facts = {
                "what": "the query vectors, the answers, and what the history and the features do "
                "for them",
                "because": "the model was trained once more on validation, too, so that what it answers "
                "there says nothing of others",
                "do": f"Look at a training without {argument('refit')}.",
                "what_zh": "查询向量、推荐结果，以及历史和特征对它们的作用",
                "because_zh": "模型还在验证事件上重新训练过，它在那里的回答不能说明其他查询的情况",
                "do_zh": f"请检查不带 {argument('refit')} 的训练。",
            }
            found.append(Finding(KINDS["not-looked-at"], "info", len(trial), facts))
        elif len(trial) > 1:
            seen.trial = trial
            _ = seen.answers  # first of all: an error about a score names the query
            found += _made(seen, "answers")
        else:
            facts = {
                "what": "the query vectors, the answers, and what the history and the features do "
                "for them",
                "because": f"the bundle has {len(trial)} validation queries of which something is "
                "known, and two are needed",
                "do": "Train on more data, or hold more of it out: split.valid_fraction, or a "
                "validation file with more queries.",
                "what_zh": "查询向量、推荐结果，以及历史和特征对它们的作用",
                "because_zh": f"模型包中已知信息的验证查询只有 {len(trial)} 个，而至少需要两个",
                "do_zh": "用更多数据训练，或留出更多数据：split.valid_fraction，"
                "或包含更多查询的验证文件。",
            }
            found.append(Finding(KINDS["not-looked-at"], "info", len(trial), facts))
    of_history = () if seen.of_history is None else (seen.of_history,)
    return Examined(tuple(worst_first(found)), (*of_history, *seen.of_features))


def _made(seen: ExaminedModel, needs: str) -> list[Finding]:
    return [found for check in checks_that_need(needs) for found in check.run(seen)]

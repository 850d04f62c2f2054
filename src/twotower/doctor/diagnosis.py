"""What the doctor finds in a bundle: in the data that it remembers, and in its model."""

from twotower.caller import passing
from twotower.doctor.data_checks import diagnose_dataset, of_held_columns
from twotower.doctor.findings import KINDS, Finding, worst_first
from twotower.doctor.model_checks import Examined, examine_model
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.serving.retriever import Bundle, Retriever


def diagnose_bundle(bundle: Bundle) -> list[Finding]:
    """Return all findings about a bundle's data and model, the worst first.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
    """
    return list(examine_bundle(bundle).findings)


def examine_bundle(bundle: Bundle) -> Examined:
    """Return all findings, and what the model makes of all that it reads.

    Without histories in the bundle they are those of the model alone, and one says what was not
    looked at.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
    """
    retriever = Retriever.of(bundle)
    contents = retriever.contents
    examined = examine_model(retriever)
    found = list(examined.findings)
    if contents.histories is None or not contents.popularity.any():
        facts = {
            "what": "the data, the query vectors, the answers, and what the history and the features "
            "do for them",
            "because": "the bundle holds no histories",
            "do": f"Train without {passing(histories=False)} and {passing(private=True)}, or give the "
            "data itself to the doctor.",
            "what_zh": "数据、查询向量、推荐结果，以及历史和特征对它们的作用",
            "because_zh": "模型包不含历史",
            "do_zh": f"训练时不要使用 {passing(histories=False)} 和 {passing(private=True)}，"
            "或直接诊断数据本身。",
        }
        if contents.histories is not None:
            facts |= {
                "because": "the bundle was made of items alone, without any events",
                "do": "Train on searches and what was clicked, or give such a table to the doctor.",
                "because_zh": "模型包只由物品生成，没有任何事件",
                "do_zh": "用搜索与点击数据训练，或把这样的表交给诊断。",
            }
        found.append(Finding(KINDS["not-looked-at"], "info", 0, facts))
    else:
        dataset = dataset_of(retriever)
        found += diagnose_dataset(dataset, config=of_held_columns(contents.config, dataset))
    return Examined(tuple(worst_first(found)), examined.losses)

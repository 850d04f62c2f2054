"""What a student learns from the default with a second stage behind it: the same towers, alone at serving.

    python benchmarks/teaching.py [beauty movielens-1m ...] [--seeds 0,1] [--json]

Nothing is set but the data set's protocol, the seed and one thread. The teacher is the default with a
second stage (``rerank.use`` is ``on``). The student is trained as the default is, a race included, with the
loss of ``[teacher]`` beside its own. The whole catalogue is ranked; differences are paired by query, with
their 95 % intervals. Weight and temperature were chosen on validation of Beauty, with a fixed training.

A finished training is kept under ``benchmarks/out``.
"""

import time
from typing import Any

import torch

from common import default_of, report, runs_by_seed
from second_stage import MAIN, fitted, gap, interval, tested
from strong_baselines import task
from twotower.data.dataset import Dataset, Part
from twotower.evaluation.ranking import Evaluation, Scorer, evaluate_on
from twotower.evaluation.scorers import Ranked
from twotower.training.teaching import lessons_of

NAMES = ("beauty", "movielens-1m")


def run(name: str, seed: int) -> dict[str, Any]:
    """Return validation and test of the default alone, with a second stage, and of its student."""
    torch.set_num_threads(1)
    found = task(name)
    settings = [f"training.seed={seed}", "training.threads=1", "rerank.use=on"]
    config = found.config.with_settings(settings)
    dataset = found.dataset
    started = time.process_time()
    default = default_of(found, config)
    alone = default.trainer.scorer()
    ranked, _ = fitted(alone, dataset, dataset, found.sides, config)
    assert isinstance(ranked, Ranked)
    seconds = {"teacher": time.process_time() - started}
    started = time.process_time()
    lessons = lessons_of(ranked, dataset)
    seconds["lessons"] = time.process_time() - started
    of_student = default_of(found, config, lessons)
    student = of_student.trainer.scorer()
    seconds["student"] = time.process_time() - started - seconds["lessons"]
    before, after = validated(dataset, alone), validated(dataset, student)
    one, with_it, taught = (tested(dataset, each) for each in (alone, ranked, student))
    return {
        "alone": one.mean(),
        "ranked": with_it.mean(),
        "student": taught.mean(),
        "gain": gap(taught, one),
        "gain_of_ranking": gap(with_it, one),
        "valid": [before.mean()[MAIN], after.mean()[MAIN]],
        "gain_on_validation": gap(after, before),
        "moments": len(lessons),
        "chosen": of_student.said,
        "seconds": seconds,
        "queries": len(one.cases),
    }


def validated(dataset: Dataset, scorer: Scorer) -> Evaluation:
    """Return the validation of a method."""
    return evaluate_on(dataset, scorer, dataset.cases(Part.VALID), (10,))


def main() -> None:
    """Run what is not kept, and print a line for each data set and seed."""
    runs, as_json = runs_by_seed("teaching", __doc__, NAMES, run)
    rows = []
    for title, found in runs.items():
        alone = found["alone"][MAIN]
        rows.append(
            {
                "": title,
                "queries": found["queries"],
                "alone": alone,
                "student": found["student"][MAIN],
                "difference": interval(found["gain"]),
                "share": found["gain"][0] / alone,
                "on validation": interval(found["gain_on_validation"]),
                "teacher": found["ranked"][MAIN],
                "teacher, difference": interval(found["gain_of_ranking"]),
                "moments": found["moments"],
                "processor s, student": found["seconds"]["student"],
            }
        )
    report("NDCG@10 of the default and of its student", rows, as_json=as_json)


if __name__ == "__main__":
    main()

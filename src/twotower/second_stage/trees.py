"""The text in which LightGBM writes trees: checked, and written again, before LightGBM reads it.

LightGBM trusts such a text. A number out of its range lets it read memory that is not the model's, walk in
a circle, or end the process. So it gets no text but the one that is made here, of what was checked.
"""

from collections.abc import Iterator
from math import isfinite, isnan

_MOST_LEAVES = 4096
_OF_SPLITS = {
    "split_feature": int,
    "threshold": float,
    "decision_type": int,
    "left_child": int,
    "right_child": int,
}
"""What is read of each split, and its kind."""


def plain_trees(text: str, num_inputs: int) -> str:
    """Return trees without all that no prediction needs; what it returns is plain already.

    Args:
        text: Of ``Booster.model_to_string``, or of this function.
        num_inputs: How many inputs the trees read, at least 1.

    Raises:
        LookupError: A part is missing.
        ValueError: A part is superfluous, or a number is out of its range.
    """
    head, *trees = text.split("end of trees")[0].split("\nTree=")
    told = dict(_entries(head))
    if num_inputs < 1 or int(told["max_feature_idx"]) != num_inputs - 1:
        raise ValueError(f"the trees of the second stage must read {num_inputs} inputs, at least 1")
    if any(told[name] != "1" for name in ("num_class", "num_tree_per_iteration")) or not trees:
        raise ValueError("the trees of the second stage must be at least one, and give one number")
    if "linear_tree" in told or "average_output" in head.splitlines():
        raise ValueError("the trees of the second stage must be plain ones that add up")
    lines = [
        "tree",
        "version=v4",
        "num_class=1",
        "num_tree_per_iteration=1",
        "label_index=0",
        f"max_feature_idx={num_inputs - 1}",
        "feature_names=" + " ".join(f"input_{place}" for place in range(num_inputs)),
        "feature_infos=" + " ".join(["none"] * num_inputs),
    ]
    for place, tree in enumerate(trees):
        lines += ["", f"Tree={place}", *_plain_tree(dict(_entries(tree)), num_inputs), ""]
    return "\n".join([*lines, "", "end of trees", ""])


def _entries(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name, value


def _plain_tree(told: dict[str, str], num_inputs: int) -> Iterator[str]:
    num = int(told["num_leaves"])
    if not 1 <= num <= _MOST_LEAVES or told["num_cat"] != "0" or told.get("is_linear", "0") != "0":
        raise ValueError("a tree of the second stage must have leaves, and split by numbers")
    yield f"num_leaves={num}"
    yield "num_cat=0"
    found = {"leaf_value": list(map(float, told["leaf_value"].split()))}
    if len(found["leaf_value"]) != num:
        raise ValueError(f"a tree of the second stage must have {num} values")
    if num > 1:
        splits = {name: list(map(kind, told[name].split())) for name, kind in _OF_SPLITS.items()}
        if any(len(values) != num - 1 for values in splits.values()):
            raise ValueError(f"a tree of the second stage must have {num - 1} splits")
        _check_splits(splits, num, num_inputs)
        found |= splits
    # A threshold is infinite where all that is known goes to one side, and what is missing to the other.
    if any(map(isnan, found.get("threshold", ()))) or not all(map(isfinite, found["leaf_value"])):
        raise ValueError(
            "a tree of the second stage must have finite numbers as leaves, and numbers as thresholds"
        )
    for name, values in found.items():
        yield f"{name}={' '.join(map(repr, values))}"
    yield "is_linear=0"
    yield "shrinkage=1"


def _check_splits(splits: dict[str, list[int]], num_leaves: int, num_inputs: int) -> None:
    """Refuse splits by inputs that are not there, or by categories, and paths that do not end."""
    is_known = all(0 <= each < num_inputs for each in splits["split_feature"])
    # A node's children come after it, so that every path ends.
    is_rising = all(
        -num_leaves <= child < num_leaves - 1 and (child < 0 or child > node)
        for name in ("left_child", "right_child")
        for node, child in enumerate(splits[name])
    )
    # Bit 0 marks a split by categories; bits 2 and 3 say which value means missing.
    is_number = all(0 <= each < 16 and not each & 1 for each in splits["decision_type"])
    if not (is_known and is_rising and is_number):
        raise ValueError(
            "a tree of the second stage must split by inputs that there are, downwards"
        )

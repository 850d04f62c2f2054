"""The text in which LightGBM writes trees: read before LightGBM does, which trusts it.

A number out of its range would let the library read memory that is not the model's.
"""

from collections.abc import Iterator

_MOST_LEAVES = 4096


def check_trees(text: str, num_inputs: int) -> None:
    """Refuse trees that we never write.

    Args:
        text: Of ``Booster.model_to_string``.
        num_inputs: How many inputs the trees may read.

    Raises:
        ValueError: A part is missing or superfluous, or a number is out of its range.
    """
    head, *trees = text.split("\nTree=")
    told = dict(_entries(head))
    if not head.startswith("tree\n") or int(told["max_feature_idx"]) != num_inputs - 1:
        raise ValueError(f"the trees of the second stage must read {num_inputs} inputs")
    if any(told[name] != "1" for name in ("num_class", "num_tree_per_iteration")) or not trees:
        raise ValueError("the trees of the second stage must be at least one, and give one number")
    if "linear_tree" in told or "average_output" in head.splitlines():
        raise ValueError("the trees of the second stage must be plain ones that add up")
    for tree in trees:
        _check_tree(dict(_entries(tree.split("\nend of trees")[0])), num_inputs)


def _entries(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name, value


def _check_tree(told: dict[str, str], num_inputs: int) -> None:
    num = int(told["num_leaves"])
    if not 1 <= num <= _MOST_LEAVES or told["num_cat"] != "0" or told.get("is_linear", "0") != "0":
        raise ValueError("a tree of the second stage must have leaves, and split by numbers")
    if len(list(map(float, told["leaf_value"].split()))) != num:
        raise ValueError(f"a tree of the second stage must have {num} values")
    if num == 1:
        return
    wanted = {"threshold": float, "split_feature": int, "left_child": int, "right_child": int}
    found = {name: list(map(kind, told[name].split())) for name, kind in wanted.items()}
    found["decision_type"] = list(map(int, told["decision_type"].split()))
    if any(len(values) != num - 1 for values in found.values()):
        raise ValueError(f"a tree of the second stage must have {num - 1} splits")
    is_known = all(0 <= each < num_inputs for each in found["split_feature"])
    # A node's children come after it, so that every path ends.
    is_rising = all(
        -num <= child < num - 1 and (child < 0 or child > node)
        for name in ("left_child", "right_child")
        for node, child in enumerate(found[name])
    )
    # Bit 0 is a split by categories, bits 2 and 3 say what stands for a missing number.
    is_number = all(0 <= each < 16 and not each & 1 for each in found["decision_type"])
    if not (is_known and is_rising and is_number):
        raise ValueError(
            "a tree of the second stage must split by inputs that there are, downwards"
        )

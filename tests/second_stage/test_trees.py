"""The text of trees: what LightGBM writes is read, and what it never writes does not reach it.

What LightGBM 4.7 does with some of the changes below, if it gets the text as it is: it reads memory behind
the inputs and answers by it (a split by input 999); it ends the process by a segmentation fault (a split by
input 1,000,000,000, a child far away, another ``tree_sizes``, or the objective ``multiclass``); it never
returns (a child that points upwards, no ``end of trees``, ``left_child=0_1``); or it answers (``nan``).
"""

import re

import lightgbm
import numpy as np
import pytest

from twotower.arrays import Float32s
from twotower.second_stage.trees import plain_trees

NUM = 4


def table() -> Float32s:
    """Return inputs, of which some are missing and some are 0."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(900, NUM)).astype(np.float32)
    found[rng.random(found.shape) < 0.2] = np.nan
    found[rng.random(found.shape) < 0.1] = 0
    return found


@pytest.fixture(scope="module")
def booster() -> lightgbm.Booster:
    """Three trees of five leaves."""
    inputs = table()
    relevant = (np.nan_to_num(inputs[:, 0] - inputs[:, 1], nan=0.5) > 0.7).astype(int)
    names = [f"input_{place}" for place in range(NUM)]
    data = lightgbm.Dataset(inputs, relevant, group=[30] * 30, feature_name=names)
    settings = {
        "objective": "lambdarank",
        "num_leaves": 5,
        "learning_rate": 0.3,
        "verbose": -1,
        "num_threads": 1,
    }
    return lightgbm.train(settings, data, 3)


@pytest.fixture(scope="module")
def text(booster: lightgbm.Booster) -> str:
    return str(booster.model_to_string())


def test_they_predict_what_the_whole_text_predicts(booster: lightgbm.Booster, text: str) -> None:
    plain = plain_trees(text, NUM)
    again = lightgbm.Booster(model_str=plain)
    np.testing.assert_array_equal(again.predict(table()), booster.predict(table()))
    assert len(np.unique(again.predict(table()))) > 5
    assert plain_trees(plain, NUM) == plain
    assert len(plain) < len(text) / 2


def test_a_split_by_what_is_missing_has_an_infinite_threshold() -> None:
    inputs = table()
    data = lightgbm.Dataset(inputs, np.isnan(inputs[:, 2]).astype(int), group=[30] * 30)
    settings = {"objective": "lambdarank", "num_leaves": 3, "verbose": -1, "num_threads": 1}
    found = lightgbm.train(settings, data, 3)
    text = str(found.model_to_string())
    assert re.search(r"threshold=.*\binf\b", text)
    again = lightgbm.Booster(model_str=plain_trees(text, NUM))
    np.testing.assert_array_equal(again.predict(inputs), found.predict(inputs))


def test_a_tree_of_one_leaf(text: str) -> None:
    one = "Tree=0\nnum_leaves=1\nnum_cat=0\nleaf_value=0.25\n\n"
    plain = plain_trees(re.sub(r"Tree=0\n.*?\n\n", one, text, flags=re.DOTALL, count=1), NUM)
    before, after = (lightgbm.Booster(model_str=each) for each in (text, plain))
    whole, first = (np.asarray(before.predict(table(), num_iteration=num)) for num in (3, 1))
    np.testing.assert_allclose(after.predict(table()), whole - first + 0.25, atol=1e-12)


@pytest.mark.parametrize(
    ("pattern", "new", "says"),
    [
        (r"split_feature=\d+", "split_feature=999", "inputs that there are"),
        (r"split_feature=\d+", "split_feature=-1", "inputs that there are"),
        (r"left_child=\S+", "left_child=0", "downwards"),
        (r"right_child=\S+", "right_child=-6", "downwards"),
        (r"right_child=\S+", "right_child=4", "downwards"),
        (r"left_child=\S+ ", "left_child=", "must have 4 splits"),
        (r"threshold=\S+ ", "threshold=", "must have 4 splits"),
        (r"decision_type=\S+", "decision_type=1", "inputs that there are"),
        (r"decision_type=\S+", "decision_type=16", "inputs that there are"),
        (r"num_cat=0", "num_cat=1", "split by numbers"),
        (r"is_linear=0", "is_linear=1", "split by numbers"),
        (r"num_leaves=5", "num_leaves=0", "must have leaves"),
        (r"num_leaves=5", "num_leaves=5000", "must have leaves"),
        (r"num_leaves=5", "num_leaves=6", "must have 6 values"),
        (r"leaf_value=\S+ ", "leaf_value=", "must have 5 values"),
        (r"leaf_value=\S+", "leaf_value=nan", "finite numbers"),
        (r"leaf_value=\S+", "leaf_value=inf", "finite numbers"),
        (r"threshold=\S+", "threshold=nan", "numbers as thresholds"),
        (r"threshold=\S+", "threshold=x", "could not convert"),
        (r"max_feature_idx=3", "max_feature_idx=4", "must read 4 inputs"),
        (r"num_class=1", "num_class=2", "give one number"),
        (r"num_tree_per_iteration=1", "num_tree_per_iteration=3", "give one number"),
        (r"(?s)\nTree=0.*end of trees", "\nend of trees", "at least one"),
        (r"label_index=0", "average_output", "plain ones that add up"),
    ],
)
def test_what_lightgbm_never_writes_is_refused(
    text: str, pattern: str, new: str, says: str
) -> None:
    assert re.search(pattern, text)
    with pytest.raises(ValueError, match=says):
        plain_trees(re.sub(pattern, new, text, count=1), NUM)


@pytest.mark.parametrize(
    "name", ["leaf_value", "left_child", "num_leaves", "num_cat", "max_feature_idx", "num_class"]
)
def test_what_is_missing_is_named(text: str, name: str) -> None:
    with pytest.raises(LookupError, match=name):
        plain_trees(re.sub(rf"{name}=.*\n", "", text, count=1), NUM)


@pytest.mark.parametrize(
    ("pattern", "new"),
    [
        (r"tree_sizes=\d+", "tree_sizes=1000000000000"),
        (r"objective=.*", "objective=multiclass num_class:100000000"),
        (r"(?s)end of trees.*", ""),
        (r"left_child=(\d)", r"left_child=0_\1"),
        (r"shrinkage=\S+", "shrinkage"),
        (r"split_gain=.*", "split_gain=\x0bsplit_gain=x"),
        (r"num_leaves=5\n", "split_feature=999 999 999 999\nnum_leaves=5\n"),
        (r"pandas_categorical:null", "pandas_categorical:{"),
        (r"parameters:", "parameters:\n[x: "),
    ],
)
def test_the_rest_of_a_text_does_not_reach_lightgbm(text: str, pattern: str, new: str) -> None:
    changed = re.sub(pattern, new, text, count=1)
    assert changed != text
    assert plain_trees(changed, NUM) == plain_trees(text, NUM)


def test_trees_without_inputs() -> None:
    head = (
        "tree\nnum_class=1\nnum_tree_per_iteration=1\nmax_feature_idx=-1\n\nTree=0\nnum_leaves=1\n"
    )
    with pytest.raises(ValueError, match="at least 1"):
        plain_trees(head + "num_cat=0\nleaf_value=0\n", 0)

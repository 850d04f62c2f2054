import re
from pathlib import Path

import pytest

from bad_inputs import CALLS, COMMANDS, BadCall, BadInput, run_case
from sandbox import NoDiskError, make_bundle, run_command, tree_of, write

CALLED = re.compile(r"\b\w+_(column|sessions|ids|by)\b|\b(out|items|queries|resume|config)=")
"""What only a caller from Python types."""


def named(case: BadInput | BadCall) -> str:
    return case.name.replace(" ", "_")


@pytest.fixture(scope="module")
def sound_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sound tables and the bundle trained on them; nobody writes into it."""
    folder = tmp_path_factory.mktemp("sound")
    make_bundle(folder)
    return folder


@pytest.mark.parametrize("case", COMMANDS, ids=named)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    case: BadInput, sound_folder: Path, tmp_path: Path
) -> None:
    try:
        outcome, is_as_it_was = run_case(case, sound_folder / "model", tmp_path)
    except NoDiskError as error:
        pytest.skip(str(error))
    assert outcome.code == 2, outcome
    line = outcome.err.removesuffix("\n")
    assert "\n" not in line, "one line"
    assert line.startswith("twotower: ")
    assert line.endswith((".", "?"))
    assert not re.search(r"[.!?] +[A-Z]", line), "one sentence"
    for part in case.says:
        assert part in line
    assert "None" not in line
    assert not CALLED.search(line), "words of the command line"
    assert is_as_it_was


@pytest.mark.parametrize("case", CALLS, ids=named)
def test_bad_call_raises_one_sentence_and_leaves_nothing(case: BadCall, sound_folder: Path) -> None:
    before = tree_of(sound_folder)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - what it must say is below
        case.call(sound_folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "--" not in message, "words of Python"
    for part in case.says:
        assert part in message
    assert tree_of(sound_folder) == before


def test_a_missing_feature_is_no_error(tmp_path: Path) -> None:
    rows = [
        "item_id,price",
        *(f"{item},{'NaN' if item == 2 else item + 0.5}" for item in range(10)),
    ]
    write("items.csv", rows)(tmp_path)
    make_bundle(tmp_path)
    answer = run_command(("recommend", "model", "--history", "2", "--json"), tmp_path)
    assert answer.code == 0
    assert '"basis": "model"' in answer.out


def test_an_old_bundle_survives_a_training_that_is_refused(tmp_path: Path) -> None:
    old = make_bundle(tmp_path)
    before = tree_of(old)
    write("events.csv", ["user_id,item_id", "1,"])(tmp_path)
    outcome = run_command(("train", "--interactions", "events.csv", "--out", "model"), tmp_path)
    assert outcome.code == 2
    assert tree_of(old) == before

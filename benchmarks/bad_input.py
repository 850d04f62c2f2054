"""Print each bad input of the tests and the one sentence that it gets.

Run: ``python benchmarks/bad_input.py``. Exits with 1 if one of them got anything else. Cases with a
full disk need root, which may mount one; elsewhere they are skipped.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from bad_inputs import CALLS, COMMANDS, run_case
from sandbox import NoDiskError, make_bundle


def main() -> int:
    """Run every case and return how many were not refused as they must be."""
    num_wrong = 0
    with TemporaryDirectory() as scratch:
        sound = Path(scratch) / "sound"
        sound.mkdir()
        bundle = make_bundle(sound)
        for number, case in enumerate(COMMANDS):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            print(f"{case.name}\n  $ twotower {case.command}")
            try:
                outcome, is_as_it_was = run_case(case, bundle, folder)
            except NoDiskError as reason:
                print(f"  skipped: {reason}")
                continue
            print(f"  {outcome.err.strip()}\n  exit code {outcome.code}, ", end="")
            print("nothing left behind" if is_as_it_was else "SOMETHING LEFT BEHIND")
            num_wrong += outcome.code != 2 or not is_as_it_was or outcome.err.count("\n") != 1
        for call in CALLS:
            try:
                call.call(sound)
            except ValueError as error:
                print(f"{call.name}, from Python\n  {type(error).__name__}: {error}")
            else:
                print(f"{call.name}, from Python\n  NOT REFUSED")
                num_wrong += 1
    print(f"{len(COMMANDS) + len(CALLS)} bad inputs, {num_wrong} not refused as they must be")
    return num_wrong


if __name__ == "__main__":
    sys.exit(bool(main()))

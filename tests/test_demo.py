import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import run_command

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.py"


def test_without_a_network_it_runs_on_a_world_that_says_what_it_is(tmp_path: Path) -> None:
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "",
        "PIP_CONFIG_FILE": os.devnull,
        "TWOTOWER_CACHE": str(tmp_path / "cache"),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(DEMO), "--out", "demo/model"],
        cwd=tmp_path,
        env=os.environ | offline,
        capture_output=True,
        text=True,
        timeout=3_000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first.startswith("This demo runs on a SYNTHETIC world with made-up items, because pip ")
    assert "got 'No matching distribution" in first
    table = next(place for place, line in enumerate(lines) if "watched last" in line)
    assert "SYNTHETIC" in lines[table - 2]
    shown = [re.findall(r"Synthetic item \d+", line) for line in lines[table + 2 : table + 12]]
    watched, recommended = zip(*shown, strict=True)
    assert len({*watched, *recommended}) == 20  # nothing that was watched is recommended
    assert "SYNTHETIC" in (tmp_path / "demo" / "model" / "MODEL_CARD.md").read_text("utf-8")
    assert lines[-5] == "The bundle is at demo/model. Three commands to try next:"
    assert lines[-1] == "The report, to open in a browser, is at demo/model.report.html"
    assert "SYNTHETIC" in (tmp_path / "demo" / "model.report.html").read_text("utf-8")
    for line in lines[-4:-1]:
        program, *arguments = line.split()
        assert Path(program).name == "twotower"
        if arguments[0] == "serve":  # which does not end by itself
            assert arguments[1:] == ["demo/model"]
            continue
        assert run_command(tuple(arguments), tmp_path).code == 0


def test_a_mistake_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(DEMO), "--from-dir", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(DEMO), run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("demo: ")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())

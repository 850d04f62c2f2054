"""Every extra is hidden at once: what needs one says in one sentence how to install it; the rest works."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sandbox import events, items, write
from twotower.extras import command_for, install

ROOT = Path(__file__).resolve().parents[2]

MODULES = [
    "faiss",
    "httpx",
    "onnxruntime",
    "onnxscript",
    "psycopg",
    "qdrant_client",
    "pandas",
    "pyarrow",
    "bm25s",
    "implicit",
    "tensorboard",
    "mlflow",
    "fastapi",
    "starlette",
    "httptools",
    "orjson",
    "prometheus_client",
    "uvicorn",
    "uvloop",
    "sentence_transformers",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "optuna",
    "lightgbm",
]

TRAIN = "train --interactions events.csv --items items.csv --out new --set training.epochs=1"
NEEDS = {
    "serve": ("serve model", "snapshot model --out new"),
    "ann": ("export faiss model --out new", f"{TRAIN} --set index.kind=approximate"),
    "onnx": ("export onnx model --out new",),
    "qdrant": ("export qdrant model --out new",),
    "pgvector": ("export pgvector model --dsn host=none",),
    "tune": ("tune --interactions events.csv --out new",),
    "tensorboard": (f"{TRAIN} --tensorboard logs",),
    "mlflow": (f"{TRAIN} --mlflow some",),
    "text": (f"{TRAIN} --set features.item.title=sentence --set features.sentence_encoder=some",),
    "baselines": ("evaluate model --baselines als",),
    "rank": (f"{TRAIN} --rerank on",),
    "client": ("Client",),
    "pandas": ("to_pandas",),
}
WORKS = (
    "recommend model --history 1,2 --json",
    "evaluate model -k 10 --baselines popularity --json",
    "inspect model --json",
    "export parquet model --out parquet",
    "doctor --interactions events.csv --items items.csv",
    "config --show",
)

RUN = """
import contextlib, io, json, sys
hidden = set(json.loads(sys.argv[1]))

class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
from twotower import train
loaded = sorted({name.split(".")[0] for name in sys.modules})
from twotower.cli import main

def ended(command):
    import twotower
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["twotower", *command.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if command == "Client":
                twotower.Client("http://localhost")
            elif command == "to_pandas":
                twotower.Retriever.open("model").recommend([1], k=2).to_pandas()
            else:
                main()
        except SystemExit as end:
            code = end.code or 0
        except twotower.MissingExtraError as error:
            code, err = 2, io.StringIO(f"twotower: {error}")
    return [code, err.getvalue()]

found = {command: ended(command) for command in json.loads(sys.argv[2])}
print(json.dumps({"loaded": loaded, **found}))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> dict[str, Any]:
    """How each command ends where no extra is installed."""
    folder = tmp_path_factory.mktemp("bare")
    write("events.csv", events())(folder)
    write("items.csv", items(title="a film"))(folder)
    (folder / "model").symlink_to(tiny_bundle)
    (folder / "model.journal").touch()
    commands = [command for each in NEEDS.values() for command in each]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(MODULES), json.dumps([*commands, *WORKS])],
        cwd=folder,
        env=os.environ | {"COLUMNS": "500", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=3_000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    answer["left"] = sorted(path.name for path in folder.iterdir())
    return answer


@pytest.mark.parametrize("extra", NEEDS)
def test_what_lacks_its_extra_says_how_to_install_it(extra: str, ended: dict[str, Any]) -> None:
    for command in NEEDS[extra]:
        code, said = ended[command]
        assert code == 2, (command, said)
        assert said.startswith("twotower: "), said
        assert said.strip().count("\n") == 0, said
        assert install(extra) in said, (command, said)


@pytest.mark.parametrize("command", WORKS)
def test_the_rest_works_without_any(command: str, ended: dict[str, Any]) -> None:
    assert ended[command][0] == 0, ended[command][1]


def test_nothing_is_left_behind(ended: dict[str, Any]) -> None:
    assert "new" not in ended["left"]


def test_train_is_imported_without_what_only_baselines_and_reports_need(
    ended: dict[str, Any],
) -> None:
    assert "torch" in ended["loaded"]
    late = {"scipy", "sklearn", "vl_convert", "jinja2", "markupsafe", "rich", "typer"}
    assert late & set(ended["loaded"]) == set()


def test_every_extra_is_tried() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(table["optional-dependencies"]) - {"dev", "docs"} == set(NEEDS)


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'twotower[serve]'"),
        ({"url": "file:///src/here", "dir_info": {}}, "pip install '.[serve]'"),
        (
            {"url": "file:///src/here", "dir_info": {"editable": True}},
            "pip install -e '.[serve]'",
        ),
        (
            {"url": "file:///some%20where", "dir_info": {"editable": True}},
            "pip install -e '.[serve]' in the folder of its source",
        ),
        (
            {"url": "file:///home/me/twotower-1.whl", "archive_info": {}},
            "pip install './twotower-1.whl[serve]' in the folder of that file",
        ),
        (
            {"url": "https://host.example/t.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'twotower[serve] @ git+https://host.example/t.git'",
        ),
    ],
)
def test_the_line_installs_from_where_the_package_came(origin: Any, line: str) -> None:
    assert command_for("serve", origin, Path("/src/here")) == line


def test_the_line_is_the_one_of_this_installation() -> None:
    assert re.fullmatch(
        r"pip install (-e )?'[^']*\[serve\][^']*'( in the folder of .*)?", install("serve")
    )

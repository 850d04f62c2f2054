"""What Windows lacks is hidden in a process of its own, in place of a system that no test runs on."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import twotower

SOURCE = Path(twotower.__file__).parent

HIDE = """
import json, os, signal, sys, threading, time, urllib.request
from pathlib import Path

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
for name in ("pread", "pwrite", "geteuid", "getuid", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
    delattr(os, name)
del signal.SIGHUP
import twotower
from twotower.errors import TwoTowerError

bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
found = {}
"""

WORK = (
    HIDE
    + """
from twotower.serving.server import run
from twotower.serving.server.journal import Journal, JournalReader
from twotower.serving.server.options import ServerSettings

def refusal(ask):
    try:
        ask()
    except TwoTowerError as error:
        return str(error)

for token, journal in (("secret", None), (None, str(folder / "j"))):
    settings = ServerSettings(bundle=str(bundle), token=token, journal=journal, port=0)
    found[f"serve {token}"] = refusal(lambda: run.serve(settings))
found["journal"] = refusal(lambda: Journal(folder / "j"))
found["left"] = sorted(os.listdir(folder))

retriever = twotower.Retriever.open(bundle)
for _ in range(2):  # the second replaces the first
    retriever.save(folder / "copy")
found["copied"] = twotower.Retriever.open(folder / "copy").recommend(4, k=3).item_ids
found["expected"] = retriever.recommend(4, k=3).item_ids
found["left"] += sorted(os.listdir(folder))

port = int(sys.argv[3])
def ask():
    address = f"http://127.0.0.1:{port}"
    for _ in range(2400):
        try:
            found["health"] = json.load(urllib.request.urlopen(f"{address}/health"))["status"]
            break
        except OSError:
            time.sleep(0.05)
    body = json.dumps({"query_id": 4, "k": 3}).encode()
    request = urllib.request.Request(f"{address}/recommend", body, {"content-type": "application/json"})
    found["answered"] = [i["item_id"] for i in json.load(urllib.request.urlopen(request))["items"]]
    signal.raise_signal(signal.SIGINT)

threading.Thread(target=ask, daemon=True).start()
run.serve(ServerSettings(bundle=str(bundle), port=port))
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def found(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a process without ``fcntl`` and its like could do."""
    with_port = subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    folder = tmp_path_factory.mktemp("without")
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tiny_bundle), str(folder), with_port.stdout.strip()],
        capture_output=True,
        text=True,
        timeout=3_000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_server_answers_and_refuses_to_be_written_to(found: dict[str, object]) -> None:
    assert found["health"] == "ok"
    assert found["answered"] == found["expected"]
    for asked in ("serve secret", "serve None", "journal"):
        assert str(found[asked]).startswith("a journal needs the file locks of Linux or macOS")
        assert "serve without a token" in str(found[asked])


def test_a_bundle_is_written_and_replaced(found: dict[str, object]) -> None:
    assert found["copied"] == found["expected"]
    assert found["left"] == ["copy"], "nothing before, and no temporary folder after"


def text_calls() -> list[tuple[str, ast.Call]]:
    """Return every call in the package that opens, reads or writes text."""
    calls = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = ast.unparse(getattr(node.func, "value", node.func))
            modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
            is_text = not any("b" in str(mode) and len(str(mode)) <= 3 for mode in modes)
            is_open = name == "open" and owner not in ("os", "Retriever", "twotower.Retriever")
            is_metadata = "distribution(" in owner
            if (name in ("read_text", "write_text") and not is_metadata) or (is_open and is_text):
                calls.append(
                    (f"{file.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)}", node)
                )
    return calls


def test_every_text_file_has_its_encoding_and_written_ones_their_ends_of_line() -> None:
    """Elsewhere they would be those of the system: cp1252, and a carriage return before each line feed."""
    assert len(text_calls()) > 20
    for where, call in text_calls():
        named = {keyword.arg for keyword in call.keywords}
        values = [each.value for each in call.args if isinstance(each, ast.Constant)]
        assert "encoding" in named or {"utf-8", "ascii", "latin-1"} & set(values), where
        if ".write_text(" in where or "'w'" in where:
            assert "newline" in named, where

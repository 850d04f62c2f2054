"""Input that must be refused: what is wrong, how to make it, and what the message must say.

The tests run every case; ``benchmarks/bad_input.py`` prints every message. A case is made in a folder
of its own and refused there with exit code 2, one sentence on the standard error, and nothing left
behind.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import torch
from torch import nn

from sandbox import (
    HEADER,
    NUM_ITEMS,
    NUM_QUERIES,
    QUICK,
    TRAIN,
    Outcome,
    both,
    changed,
    events,
    items,
    labelled,
    run_command,
    small_disk,
    tree_of,
    write,
)
from twotower import Config, Retriever, train


def _nothing(folder: Path) -> None:
    """Make nothing."""


@dataclass(frozen=True)
class BadInput:
    """A command that must be refused.

    Args:
        name: What is wrong.
        command: What is typed after ``twotower``, in the folder.
        says: What the message must hold.
        make: Makes the input in an empty folder.
        needs_bundle: Whether a trained bundle is to be put at ``model`` before ``make`` is called.
        disk_bytes: Size of the disk to be mounted at ``disk`` before ``make`` is called; it needs root.
    """

    name: str
    command: str
    says: tuple[str, ...]
    make: Callable[[Path], object] = _nothing
    needs_bundle: bool = False
    disk_bytes: int | None = None


@dataclass(frozen=True)
class BadCall:
    """A call from Python that must raise a ``ValueError``.

    Args:
        name: What is wrong.
        call: Gets a folder with ``events.csv``, ``items.csv`` and a bundle at ``model``.
        says: What the message must hold.
    """

    name: str
    call: Callable[[Path], object]
    says: tuple[str, ...]


def run_case(case: BadInput, bundle: Path, folder: Path) -> tuple[Outcome, bool]:
    """Return how a case ends in an empty folder, and whether it left all there as it was.

    Raises:
        NoDiskError: The case needs a small disk, and none can be mounted.
    """
    with small_disk(folder, case.disk_bytes):
        if case.needs_bundle:
            copytree(bundle, folder / "model")
        case.make(folder)
        before = tree_of(folder)
        outcome = run_command(tuple(case.command.split()), folder)
        return outcome, tree_of(folder) == before


def _flip(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        data = bytearray((folder / "model" / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "model" / name).write_bytes(data)

    return flip


def _newer(folder: Path) -> None:
    file = folder / "model" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"format_version": 99}))


def _others_folder(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "thesis.tex").write_text("years of work")


def _files() -> Iterator[BadInput]:
    table = "interactions 'events.csv'"
    yield BadInput("a missing file", TRAIN, (table, "got none of that name"))
    yield BadInput(
        "a missing file, one letter off",
        TRAIN,
        (table, "there is 'event.csv'"),
        write("event.csv", events()),
    )
    yield BadInput(
        "an empty folder in place of a file",
        TRAIN,
        (table, "must hold files, got none"),
        lambda folder: (folder / "events.csv").mkdir(),
    )
    yield BadInput(
        "an empty file",
        TRAIN,
        (table, "got an empty file"),
        lambda folder: (folder / "events.csv").touch(),
    )
    yield BadInput(
        "a header and no rows", TRAIN, (table, "only a header line"), write("events.csv", [HEADER])
    )
    yield BadInput(
        "a binary file",
        TRAIN,
        (table, "got binary data"),
        lambda folder: (folder / "events.csv").write_bytes(bytes(range(256)) * 8),
    )
    yield BadInput(
        "a spreadsheet",
        TRAIN,
        (table, "a zip archive or a spreadsheet", "export it"),
        lambda folder: (folder / "events.csv").write_bytes(b"PK\x03\x04" + bytes(64)),
    )
    yield BadInput(
        "a file without a header",
        TRAIN,
        (table, "must start with a header line", "got '0,0,1,1500000000'"),
        write("events.csv", events()[1:]),
    )
    yield BadInput(
        "a row that is too short",
        TRAIN,
        (table, "4 cells", "got 3 in line 5"),
        write("events.csv", changed(4, "0,1,2")),
    )
    yield BadInput(
        "a row that is too long",
        TRAIN,
        (table, "4 cells", "got 5 in line 5"),
        write("events.csv", changed(4, "0,1,2,1500000000,9")),
    )
    yield BadInput(
        "Latin-1",
        TRAIN,
        (table, "must be UTF-8", "byte 0xe9 in line 3", "iconv"),
        write("events.csv", changed(2, "é,1,2,1500000000"), "latin-1"),
    )
    yield BadInput(
        "UTF-16",
        TRAIN,
        (table, "must be UTF-8", "got UTF-16", "iconv"),
        write("events.csv", events(), "utf-16"),
    )
    yield BadInput(
        "two columns of one name",
        TRAIN,
        (table, "'item_id'"),
        write("events.csv", changed(0, "user_id,item_id,item_id,timestamp")),
    )


def _columns() -> Iterator[BadInput]:
    yield BadInput(
        "no column that could be the item id",
        TRAIN,
        ("no column could be the item id", "'colour'", "--item-column NAME"),
        write("events.csv", changed(0, "user_id,colour,rating,timestamp")),
    )
    yield BadInput(
        "no column that could be the query id",
        TRAIN,
        ("no column could be the query id", "'colour'", "--query-column NAME"),
        write("events.csv", changed(0, "colour,item_id,rating,timestamp")),
    )
    yield BadInput(
        "impressions of another catalogue",
        f"{TRAIN} --impressions-column rating",
        ("the impressions column 'rating'", "must share ids with the items", "'9.5'"),
        write("events.csv", [HEADER, *(f"{row.rsplit(',', 2)[0]},9.5,7" for row in events()[1:])]),
    )
    yield BadInput(
        "a position that is no whole number",
        f"{TRAIN} --position-column rating",
        ("the position column 'rating'", "whole number from 1", "got 0.5 in data row 3"),
        write("events.csv", changed(3, "0,6,0.5,1500000120")),
    )
    yield BadInput(
        "a stated column that is not there",
        f"{TRAIN} --item-column film_id",
        ("--item-column", "got 'film_id'"),
        write("events.csv", events()),
    )
    yield BadInput(
        "a timestamp that is not a time",
        TRAIN,
        ("'timestamp'", "must hold a time", "got 'yesterday' in data row 3"),
        write("events.csv", changed(3, "0,6,3,yesterday")),
    )
    for value in ("NaN", "inf"):
        shown = "nan" if value == "NaN" else value
        yield BadInput(
            f"a label that is {value}",
            TRAIN,
            ("'clicked'", f"got {shown}", "data row 5"),
            write("events.csv", labelled(value)),
        )
        yield BadInput(
            f"a rating that is {value}",
            TRAIN,
            ("'rating'", f"got {shown}", "data row 4"),
            write("events.csv", changed(4, f"0,9,{value},1500000180")),
        )
    yield BadInput(
        "an infinite feature",
        f"{TRAIN} --items items.csv",
        ("'price'", "must be finite", "got -inf"),
        both(write("events.csv", events()), write("items.csv", items("-inf"))),
    )
    yield BadInput(
        "a null id",
        TRAIN,
        ("'item_id'", "got 2 null or empty ids", "data row 2", "--drop-null-ids"),
        write("events.csv", [*changed(2, "0,,2,1500000060"), "7,,1,1500000000"]),
    )
    yield BadInput(
        "a single item",
        TRAIN,
        ("at least 2 items", "got 1"),
        write("events.csv", [HEADER, *(f"{q},7,5,{1_500_000_000 + q}" for q in range(9))]),
    )
    yield BadInput(
        "a split that leaves no test rows",
        TRAIN,
        ("must leave test rows", "of 9 events", "--split"),
        write("events.csv", [HEADER, *(f"{q},{q % 4},5,{1_500_000_000 + q}" for q in range(9))]),
    )
    yield BadInput(
        "a split that leaves no validation rows",
        TRAIN,
        ("must leave validation rows", "of 8 events", "--split"),
        write("events.csv", [HEADER, *(f"{q // 2},{q % 4},5,{1_5 * 10**8 + q}" for q in range(8))]),
    )
    yield BadInput(
        "an item described twice",
        f"{TRAIN} --items items.csv",
        ("items must have one row an id", "first of 3"),
        both(write("events.csv", events()), write("items.csv", [*items(), "3,Again,1"])),
    )
    yield BadInput(
        "items that never occur",
        f"{TRAIN} --items items.csv",
        ("items must share ids", "none in common"),
        both(write("events.csv", events()), write("items.csv", ["item_id,price", "a,1", "b,2"])),
    )


def _settings() -> Iterator[BadInput]:
    sound = write("events.csv", events())
    yield BadInput(
        "an unknown setting",
        f"{TRAIN} --set towers.dmi=8",
        ("towers.dmi: unknown key", "did you mean 'dim'?"),
        sound,
    )
    yield BadInput(
        "an unknown key in a file",
        f"{TRAIN} --config settings.toml",
        ("training.epoch: unknown key", "did you mean 'epochs'?"),
        both(sound, write("settings.toml", ["[training]", "epoch = 3"])),
    )
    yield BadInput(
        "a value out of range",
        f"{TRAIN} --set towers.dropout=1.5",
        ("towers", "dropout must be in [0, 1)", "got 1.5"),
        sound,
    )
    yield BadInput(
        "a width that no machine holds",
        f"{TRAIN} --set towers.dim=1000000000",
        ("towers.dim must be at most 16384, got 1000000000",),
        sound,
    )
    yield BadInput(
        "a batch that no machine holds",
        f"{TRAIN} --set training.batch_size=1000000000000",
        ("training.batch_size must be at most 10000000, got 1000000000000",),
        sound,
    )
    yield BadInput(
        "layers that no machine holds",
        f"{TRAIN} --set towers.dim=16384 --set towers.item_hidden=[{','.join(['16384'] * 100)}]",
        ("training must fit into memory, got settings that need at least", "towers.dim"),
        sound,
    )
    yield BadInput(
        "a config file that is missing",
        f"{TRAIN} --config settings.toml",
        ("--config must be a file", "'settings.toml'"),
        sound,
    )
    yield BadInput(
        "a config file that is not TOML",
        f"{TRAIN} --config settings.toml",
        ("--config 'settings.toml' must be TOML", "line 1"),
        both(sound, write("settings.toml", ["epochs: 3"])),
    )
    yield BadInput("no table at all", "train --out model", ("--interactions", "--train and --test"))
    yield BadInput(
        "a training file without a test file",
        "train --train events.csv --out model",
        ("--train and one of --test and --test-sessions must be given", "got --train only"),
        sound,
    )
    yield BadInput(
        "a device that is not there",
        f"{TRAIN} --set training.device=tpu",
        ("device must be auto, cpu, cuda or mps", "got 'tpu'"),
        sound,
    )


def _outputs() -> Iterator[BadInput]:
    sound = write("events.csv", events())
    yield BadInput(
        "an output folder that is not a bundle",
        TRAIN,
        ("--out must be new, empty or a bundle", "'model'", "other files"),
        both(sound, _others_folder),
    )
    yield BadInput(
        "an output that is a file",
        TRAIN,
        ("--out must be a folder", "'model'"),
        both(sound, write("model", ["not yours"])),
    )
    yield BadInput(
        "an output in a folder that does not exist",
        "train --interactions events.csv --out nowhere/model",
        ("--out must be in a folder that exists", "'nowhere/model'"),
        sound,
    )
    yield BadInput(
        "an output whose name is too long",
        f"train --interactions events.csv --out {'m' * 220}",
        ("--out must be a name of at most 200 bytes, got 220",),
        sound,
    )
    yield BadInput(
        "an output whose name no terminal shows",
        "train --interactions events.csv --out m\x1b[2J",
        ("--out must hold no control characters", r"'m\x1b[2J'"),
        sound,
    )
    yield BadInput(
        "an output whose report has no place",
        TRAIN,
        ("--out must leave room for its report 'model.report.html', got a folder",),
        both(sound, lambda folder: (folder / "model.report.html").mkdir()),
    )
    yield BadInput(
        "an output whose name is not UTF-8",
        "train --interactions events.csv --out m\udcff",
        (r"arguments must be UTF-8, got 'm\\xff'", "rename it"),
        sound,
    )
    on_disk = "train --interactions events.csv --items items.csv --out disk/model"
    yield BadInput(
        "a disk that fills up while a checkpoint is written",
        f"{on_disk} {QUICK}",
        ("disk/model", "could not be written: the disk is full"),
        both(sound, write("items.csv", items())),
        disk_bytes=16 << 10,
    )
    yield BadInput(
        "a disk that fills up while the bundle is written",
        f"{on_disk} {QUICK}",
        ("the bundle 'disk/model' could not be written: the disk is full",),
        both(sound, write("items.csv", items(title="x" * 60_000))),
        disk_bytes=300 << 10,
    )
    yield BadInput(
        "a disk that fills up while answers are written",
        "recommend model --all --out disk/answers.jsonl",
        ("--out must be writable", "the disk is full", "'disk/answers.jsonl'"),
        needs_bundle=True,
        disk_bytes=4 << 10,
    )


def _bundles() -> Iterator[BadInput]:
    ask = "recommend model --query 1"
    yield BadInput("no bundle", ask, ("'model' must be a bundle", "twotower train"))
    for name in ("weights.safetensors", "items.arrow", "config.toml"):
        yield BadInput(
            f"a flipped byte in {name}",
            ask,
            ("the bundle 'model' is damaged", f"{name} was changed"),
            _flip(name),
            needs_bundle=True,
        )
    yield BadInput(
        "a flipped byte in the manifest",
        "inspect model",
        ("the bundle 'model' is damaged", "manifest.json"),
        _flip("manifest.json"),
        needs_bundle=True,
    )
    yield BadInput(
        "a bundle without one of its files",
        "evaluate model",
        ("the bundle 'model' is incomplete", "items.safetensors is missing"),
        lambda folder: (folder / "model" / "items.safetensors").unlink(),
        needs_bundle=True,
    )
    yield BadInput(
        "a bundle of a newer format",
        "similar model --item 1",
        ("has format 99", "upgrade twotower"),
        _newer,
        needs_bundle=True,
    )


def _questions() -> Iterator[BadInput]:
    for command in ("recommend model --query 1 -k 0", "similar model --item 1 -k 0"):
        yield BadInput(
            f"k of 0 in {command.split()[0]}",
            command,
            ("-k must be at least 1, got 0",),
            needs_bundle=True,
        )
    yield BadInput(
        "k of 0 in evaluate",
        "evaluate model -k 10,0",
        ("-k must be at least 1, got 0",),
        needs_bundle=True,
    )
    yield BadInput(
        "k that is no number",
        "evaluate model -k ten",
        ("-k must be whole numbers", "got 'ten'"),
        needs_bundle=True,
    )
    yield BadInput(
        "an item that is not in the catalogue",
        "similar model --item 4711",
        ("must be in the catalogue", "'4711'"),
        needs_bundle=True,
    )
    yield BadInput(
        "nobody to recommend to",
        "recommend model",
        ("--query, --history or --features", "--all"),
        needs_bundle=True,
    )
    yield BadInput(
        "features that are not JSON",
        "recommend model --features age=3",
        ("--features must be a JSON object", "'age=3'"),
        needs_bundle=True,
    )
    yield BadInput(
        "a question at no time",
        "recommend model --query 1 --at soon",
        ("--at must be seconds since 1970", "2026-11-30T18:00", "'soon'"),
        needs_bundle=True,
    )
    yield BadInput(
        "a question before the history ends",
        "recommend model --query 1 --at 7",
        ("--at must not lie before the last event of the history, got 7", "at a later time"),
        needs_bundle=True,
    )
    yield BadInput(
        "everyone, into a file of unknown kind",
        "recommend model --all --out answers.xlsx",
        ("--out must end in .parquet", "'answers.xlsx'"),
        needs_bundle=True,
    )
    yield BadInput(
        "everyone, into a folder that does not exist",
        "recommend model --all --out nowhere/answers.csv",
        ("--out must be in a folder that exists", "'nowhere/answers.csv'"),
        needs_bundle=True,
    )
    yield BadInput(
        "test events of strangers",
        "evaluate model --test test.csv",
        ("test must hold items of the catalogue", "got none among 2 rows"),
        write("test.csv", ["user_id,item_id", "1,900", "2,901"]),
        needs_bundle=True,
    )


COMMANDS: tuple[BadInput, ...] = (
    *_files(),
    *_columns(),
    *_settings(),
    *_outputs(),
    *_bundles(),
    *_questions(),
)


def _unequal(folder: Path) -> None:
    train(
        folder / "events.csv",
        queries=torch.randn(NUM_QUERIES, 3),
        items=torch.randn(NUM_ITEMS, 5),
        query_tower=nn.Linear(3, 16),
        item_tower=nn.Linear(5, 8),
        out=folder / "new",
    )


QUICKLY = {"training": {"epochs": 1}, "towers": {"dim": 4}}

CALLS: tuple[BadCall, ...] = (
    BadCall("towers of unequal dim", _unequal, ("query", "item", "16", "8")),
    BadCall(
        "k of 0",
        lambda folder: Retriever.open(folder / "model").recommend(1, k=0),
        ("k must be at least 1, got 0",),
    ),
    BadCall(
        "a column that is not there",
        lambda folder: train(folder / "events.csv", item_column="sku"),
        ("item_column must name a column of interactions, got 'sku'",),
    ),
    BadCall(
        "no events",
        lambda folder: train(items=folder / "items.csv"),
        ("train needs either interactions, or train and test",),
    ),
    BadCall(
        "a bundle with a long name",
        lambda folder: train(folder / "events.csv", out=folder / ("m" * 300)),
        ("out must be a name of at most 200 bytes, got 300",),
    ),
    BadCall(
        "settings that are missing",
        lambda folder: train(folder / "events.csv", config="none.toml"),
        ("config must be a file, got 'none.toml'",),
    ),
    BadCall(
        "a training to go on with in memory",
        lambda folder: train(folder / "events.csv", resume=True, config=QUICKLY),
        ("resume must go with out, got no out",),
    ),
    BadCall(
        "a list in one string",
        lambda _: Config().with_settings(["towers.query_hidden=8,8"]),
        ("write settings=['towers.query_hidden=[256, 128]']",),
    ),
    BadCall(
        "an unknown setting",
        lambda folder: train(
            folder / "events.csv", out=folder / "new", config={"loss": {"negative": "all"}}
        ),
        ("loss.negative: unknown key", "did you mean 'negatives'?"),
    ),
)

"""A bundle is whole or absent, says what is wrong with it, and gives back all that went in."""

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from torch import nn

from file_modes import umask, wrong_modes
from twotower.config import Config
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.serving.bundle import Contents, check_output, open_bundle, write_bundle
from twotower.serving.manifest import FORMAT_VERSION
from twotower.serving.retriever import Retriever
from twotower.serving.storage import load_arrays, save_arrays, save_tensors
from twotower.training.pipeline import train
from twotower.training.trained import Trained

ODD_NAMES = (
    "two words",
    "a/b\\c",
    'quo"te',
    "it's",
    "类别",
    "🎬",
    "dots.and [brackets]",
    "tab\there",
    "line\nbreak",
    "del\x7f",
    "=#",
)
QUICK: dict[str, dict[str, object]] = {
    "training": {"epochs": 1, "batch_size": 256},
    "towers": {"dim": 4},
}


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        name: ((folder / name).read_bytes(), (folder / name).stat().st_mtime_ns)
        for name in files_of(folder)
    }


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(bytes(content))


def small_events(queries: int = 30, items: int = 20, events: int = 8) -> pl.DataFrame:
    rng = np.random.default_rng(5)
    return pl.DataFrame(
        {
            "query_id": np.repeat(np.arange(queries), events),
            "item_id": np.concatenate([rng.permutation(items)[:events] for _ in range(queries)]),
            "timestamp": 1_500_000_000 + np.arange(queries * events),
        }
    )


@pytest.fixture(scope="module")
def contents(tiny_bundle: Path) -> Contents:
    return open_bundle(tiny_bundle)


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow above ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, whose size the test sets."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def used_kib(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


class TestWholeOrAbsent:
    @pytest.mark.parametrize("size", [100, 1_000, 3_000, 12_900, 15_800, 30_000])
    @pytest.mark.parametrize("before", ["nothing", "a bundle", "an empty folder"])
    def test_a_write_that_fails_leaves_what_was_there(
        self, contents: Contents, tiny_bundle: Path, tmp_path: Path, size: int, before: str
    ) -> None:
        """The system lets no file grow above ``size``: each size stops at another kind of file."""
        out = tmp_path / "model"
        if before == "a bundle":
            shutil.copytree(tiny_bundle, out)
        elif before == "an empty folder":
            out.mkdir()
        state = state_of(out) if out.exists() else None
        with no_file_above(size), pytest.raises(BundleError, match="file too large") as raised:
            write_bundle(out, contents)
        assert str(raised.value).endswith("; nothing was left behind.")
        assert (state_of(out) if out.exists() else None) == state
        assert [p.name for p in tmp_path.iterdir()] == ([] if state is None else ["model"])

    @pytest.mark.parametrize("kib", [8, 40, 80, 120])
    @pytest.mark.parametrize("before", ["nothing", "a bundle"])
    def test_a_disk_that_is_full(
        self, contents: Contents, tiny_bundle: Path, small_disk: Path, kib: int, before: str
    ) -> None:
        out = small_disk / "model"
        needed = sum(len(content) for content, _ in state_of(tiny_bundle).values()) // 1024
        if before == "a bundle":
            shutil.copytree(tiny_bundle, out)
            kib += used_kib(small_disk)
        state = state_of(out) if out.exists() else None
        assert kib < needed + (used_kib(small_disk) if state else 0)
        subprocess.run(["mount", "-o", f"remount,size={kib}k", small_disk], check=True)
        with pytest.raises(BundleError, match="the disk is full; nothing was left behind"):
            write_bundle(out, contents)
        assert (state_of(out) if out.exists() else None) == state
        assert [p.name for p in small_disk.iterdir()] == ([] if state is None else ["model"])

    @pytest.mark.parametrize("call", [0, 7, 20])
    def test_a_disk_that_cannot_sync(
        self, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
    ) -> None:
        left = [call]

        def fsync(file: int) -> None:
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1

        monkeypatch.setattr("os.fsync", fsync)
        with pytest.raises(BundleError, match="the disk is full; nothing was left behind"):
            write_bundle(tmp_path / "model", contents)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
    def test_whatever_ends_the_write_leaves_no_half(
        self,
        contents: Contents,
        tiny_bundle: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: type[BaseException],
    ) -> None:
        out = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
        state = state_of(out)

        def broken(_: int) -> None:
            raise error

        monkeypatch.setattr("os.fsync", broken)
        with pytest.raises(error):
            write_bundle(out, contents)
        assert state_of(out) == state
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("error", [OSError(errno.EBUSY, "busy"), KeyboardInterrupt()])
    def test_the_old_one_comes_back_if_the_rename_fails(
        self,
        contents: Contents,
        tiny_bundle: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        """On a system that cannot swap two folders in one step."""
        monkeypatch.setattr("sys.platform", "darwin")
        out = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
        real, asked = Path.rename, []

        def rename(self: Path, target: Path) -> Path:
            asked.append(target)
            if len(asked) == 2:  # old away, new in, old back
                raise error
            return real(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(
            KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else BundleError
        ):
            write_bundle(out, contents)
        assert len(asked) == 3
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
        open_bundle(out)

    def test_replaces_a_bundle_and_leaves_nothing_of_it(
        self, contents: Contents, copy: Path
    ) -> None:
        (copy / "weights.safetensors").write_bytes(b"damaged")
        (copy / "transforms" / "item.99.safetensors").write_bytes(b"of the old one")
        write_bundle(copy, contents)
        open_bundle(copy)
        assert not (copy / "transforms" / "item.99.safetensors").exists()

    def test_is_not_written_again(self, copy: Path) -> None:
        before = state_of(copy)
        retriever = Retriever.open(copy)
        retriever.recommend([1, 2, 99_999], k=5).to_polars()
        retriever.recommend_all(k=2)
        evaluate_bundle(retriever)
        assert state_of(copy) == before

    def test_an_open_one_survives_its_removal(self, copy: Path) -> None:
        retriever = Retriever.open(copy)
        before = retriever.recommend([1, 2, 3]).to_polars()
        shutil.rmtree(copy)
        assert retriever.recommend([1, 2, 3]).to_polars().equals(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
@pytest.mark.parametrize("before", ["nothing", "a bundle"])
def test_the_umask_says_who_can_read_it(
    contents: Contents, tmp_path: Path, mask: int, before: str
) -> None:
    """safetensors itself writes files that nobody but their owner can read."""
    gone = np.zeros(contents.items.ids.num_rows, np.bool_)
    gone[5] = True
    if before == "a bundle":
        write_bundle(tmp_path / "model", contents)
    with umask(mask):
        write_bundle(tmp_path / "model", replace(contents, gone=gone))
    assert "items.gone.safetensors" in files_of(tmp_path / "model")
    assert not wrong_modes(tmp_path / "model", mask)


class TestCheckOutput:
    def test_accepts_new_and_empty_and_a_bundle(self, copy: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for out in (tmp_path / "new", tmp_path / "empty", copy):
            assert check_output(out) == out
            assert check_output(str(out)) == out

    def test_what_a_killed_process_left_beside_it_is_removed(self, tmp_path: Path) -> None:
        """A training checks its place before it begins, and writes hours later."""
        script = (
            "import os, sys\nfrom pathlib import Path\nfrom twotower.abandoned import writing\n"
            "with writing(Path(sys.argv[1])) as new:\n    new.mkdir()\n    os.kill(os.getpid(), 9)"
        )
        command = [sys.executable, "-c", script, str(tmp_path / "model")]
        assert subprocess.run(command, check=False).returncode == -9
        assert len(list(tmp_path.iterdir())) == 1
        check_output(tmp_path / "other")
        assert not list(tmp_path.iterdir())

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("x")
        with pytest.raises(BundleError, match=r"out must be a folder, got the file '.*/f'"):
            check_output(tmp_path / "f")

    @pytest.mark.parametrize("name", ["thesis.tex", "manifest.json", ".hidden"])
    def test_refuses_a_folder_of_other_files(
        self, contents: Contents, tmp_path: Path, name: str
    ) -> None:
        """A web page has a manifest.json, too; it must not be deleted for that."""
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / name).write_text('{"name": "my page"}')
        with pytest.raises(
            BundleError, match=r"bundle to replace, got '.*/mine', which holds other"
        ):
            check_output(folder)
        with pytest.raises(BundleError, match="which holds other files"):
            write_bundle(folder, contents)
        assert files_of(folder) == [name]

    def test_refuses_a_parent_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"folder that exists, got '.*/no/model'; make it"):
            check_output(tmp_path / "no" / "model")

    def test_refuses_a_parent_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)
        with pytest.raises(BundleError, match="in a writable folder"):
            check_output(tmp_path / "model")

    def test_a_link_stays_a_link(self, contents: Contents, copy: Path, tmp_path: Path) -> None:
        link = tmp_path / "current"
        link.symlink_to(copy)
        (copy / "MODEL_CARD.md").write_text("changed")
        write_bundle(link, contents)
        assert link.is_symlink()
        open_bundle(copy)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "current"]

    def test_relative_places(
        self, contents: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        for out in ("model", ".", "../other"):
            if out == ".":
                shutil.rmtree("model")
            write_bundle(out, contents)
            monkeypatch.chdir(tmp_path / "here")  # the working folder itself was replaced
            open_bundle(out)


class TestDamage:
    def test_one_flipped_byte_in_any_file_is_noticed(self, copy: Path) -> None:
        names = files_of(copy)
        assert "manifest.json" in names
        assert "queries/histories.safetensors" in names
        for name in names:
            file = copy / name
            content = file.read_bytes()
            for position in {0, len(content) // 2, len(content) - 1}:
                if name == "manifest.json" and content[position] in b" \n":
                    continue  # white space means nothing in JSON
                flip(file, position)
                with pytest.raises(BundleError, match=r"is damaged|is incomplete|has format"):
                    open_bundle(copy)
                file.write_bytes(content)
        open_bundle(copy)

    def test_a_flipped_byte_in_the_manifest_never_gives_another_bundle(self, copy: Path) -> None:
        """The manifest holds the digests of all others; its own words are covered, too."""
        file = copy / "manifest.json"
        content = file.read_bytes()
        rng = np.random.default_rng(0)
        for position in rng.choice(len(content), 60, replace=False):
            if content[position] in b" \n":
                continue
            flip(file, position)
            with pytest.raises(BundleError):
                open_bundle(copy)
            file.write_bytes(content)

    def test_a_changed_file_is_named(self, copy: Path) -> None:
        flip(copy / "items.safetensors", -1)
        with pytest.raises(BundleError, match=r"damaged: items\.safetensors was changed"):
            open_bundle(copy)

    def test_a_missing_file_is_named(self, copy: Path) -> None:
        for name in files_of(copy):
            content = (copy / name).read_bytes()
            (copy / name).unlink()
            expected = "got no manifest.json" if name == "manifest.json" else f"{name} is missing"
            with pytest.raises(BundleError, match=expected):
                open_bundle(copy)
            (copy / name).write_bytes(content)

    def test_a_folder_in_a_files_place(self, copy: Path) -> None:
        (copy / "metrics.json").unlink()
        (copy / "metrics.json").mkdir()
        with pytest.raises(BundleError, match=r"cannot be read: metrics\.json: is a directory"):
            open_bundle(copy)

    def test_a_newer_format(self, copy: Path) -> None:
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["format_version"] = FORMAT_VERSION + 1
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"has format 4, and twotower .* up to 3; upgrade"):
            open_bundle(copy)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
    def test_a_truncated_manifest(self, copy: Path, share: float) -> None:
        content = (copy / "manifest.json").read_bytes()
        (copy / "manifest.json").write_bytes(content[: int(share * len(content))])
        with pytest.raises(BundleError, match=r"damaged: manifest\.json cannot be read"):
            open_bundle(copy)

    @pytest.mark.parametrize(
        "text", ["[]", "null", "3", "{}", '{"format_version": "1", "files": {}}', '{"files": 1}']
    )
    def test_a_manifest_of_something_else(self, copy: Path, text: str) -> None:
        (copy / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match=r"damaged: manifest\.json is incomplete"):
            open_bundle(copy)

    def test_a_manifest_that_is_no_text(self, copy: Path) -> None:
        (copy / "manifest.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
            open_bundle(copy)

    @pytest.mark.parametrize("make", ["nothing", "file", "empty"])
    def test_what_is_no_bundle_at_all(self, tmp_path: Path, make: str) -> None:
        place = tmp_path / "model"
        if make == "file":
            place.write_text("x")
        elif make == "empty":
            place.mkdir()
        with pytest.raises(BundleError, match="bundle"):
            Retriever.open(place)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("items.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
            ("weights.safetensors", b"no tensors"),
            ("items.arrow", b"no table"),
            ("metrics.json", b"{"),
            ("config.toml", b"[towers]\ndim = -1\n"),
            ("schema.toml", b'[query]\nid_column = "q"\nfeatures = [{name = "q", colour = 1}]'),
        ],
    )
    def test_files_that_match_the_manifest_but_hold_nonsense(
        self, copy: Path, name: str, content: bytes
    ) -> None:
        (copy / name).write_bytes(content)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["files"][name] = hashlib.sha256(content).hexdigest()
        del manifest["sha256"]
        manifest["sha256"] = hashlib.sha256(
            json.dumps(manifest, sort_keys=True).encode()
        ).hexdigest()
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match="does not hold what format 1 promises"):
            open_bundle(copy)


class TestRoundTrip:
    def test_all_contents(self, tiny_trained: Trained, contents: Contents) -> None:
        given = tiny_trained.contents
        for side in ("queries", "items"):
            old, new = getattr(given, side), getattr(contents, side)
            assert new.ids == old.ids
            assert new.id_column == old.id_column
            assert new.frame.equals(old.frame)
            assert new.transforms.features == old.transforms.features
            for a, b in zip(old.transforms.transforms, new.transforms.transforms, strict=True):
                assert type(a) is type(b)
                assert a.vocabulary == b.vocabulary
                assert a.numbers.keys() == b.numbers.keys()
                assert all((a.numbers[k] == b.numbers[k]).all() for k in a.numbers)
        assert contents.weights.keys() == given.weights.keys()
        assert all(torch.equal(contents.weights[k], given.weights[k]) for k in given.weights)
        for ragged in ("histories", "targets"):
            old, new = getattr(given, ragged), getattr(contents, ragged)
            for entry in fields(old):
                a, b = getattr(old, entry.name), getattr(new, entry.name)
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.dtype == b.dtype
                    assert (a == b).all()
        assert torch.equal(contents.item_vectors, given.item_vectors)
        assert (contents.popularity == given.popularity).all()
        assert given.history_parts is not None
        assert contents.history_parts is not None
        assert (contents.history_parts == given.history_parts).all()
        assert contents.history_weights is None
        assert contents.target_labels is None
        for name in (
            "config",
            "metrics",
            "custom",
            "ordered",
            "repeats",
            "provenance",
            "log",
            "card",
        ):
            assert getattr(contents, name) == getattr(given, name), name

    def test_weights_and_labels_of_events(self, contents: Contents, tmp_path: Path) -> None:
        assert contents.histories is not None
        assert contents.targets is not None
        weights = np.arange(len(contents.histories.item_rows), dtype=np.float32)
        labels = (np.arange(len(contents.targets.item_rows)) % 2).astype(np.float32)
        given = replace(contents, history_weights=weights, target_labels=labels)
        write_bundle(tmp_path / "model", given)
        opened = open_bundle(tmp_path / "model")
        assert opened.history_weights is not None
        assert opened.target_labels is not None
        assert (opened.history_weights == weights).all()
        assert (opened.target_labels == labels).all()

    def test_odd_column_names(self, tmp_path: Path) -> None:
        names = list(ODD_NAMES)
        items = pl.DataFrame(
            {"item_id": range(20), **{n: [f"{n}{i % 3}" for i in range(20)] for n in names}}
        )
        queries = pl.DataFrame(
            {"query_id": range(30), **{n: [i / 7 for i in range(30)] for n in names}}
        )
        trained = train(
            small_events(),
            items=items,
            queries=queries,
            out=tmp_path / "m",
            config=QUICK,
            baselines=[],
        )
        retriever = Retriever.open(tmp_path / "m")
        assert retriever.contents.config == trained.contents.config
        for side in ("queries", "items"):
            given, opened = getattr(trained.contents, side), getattr(retriever.contents, side)
            assert opened.frame.equals(given.frame)
            assert opened.transforms.features == given.transforms.features
            assert {f.name for f in opened.transforms.features if f.is_fed} >= set(names)
        with pytest.warns(
            UserWarning, match="1 of the items have no feature that the bundle knows"
        ):
            nothing = retriever.encode_items(features=[{}])
        for name in names:
            line = [{name: f"{name}1"}]
            vector = retriever.encode_items(features=line)
            assert (vector == trained.retriever.encode_items(features=line)).all()
            assert not np.allclose(vector, nothing), name
            assert retriever.recommend(features={name: 0.3}, k=3).basis == "model"

    @pytest.mark.parametrize(
        "name", ["a [b]", "c*?", "{d}", "模型 🎬", "e%20f", "g.h", "-i", "j'k"]
    )
    def test_odd_places(self, contents: Contents, tmp_path: Path, name: str) -> None:
        """Some libraries take a path with such signs for a pattern or an address."""
        write_bundle(tmp_path / name, contents)
        assert Retriever.open(tmp_path / name).recommend(3, k=2).basis == "model"
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_odd_ids(self, tmp_path: Path) -> None:
        odd = [
            "a b",
            "a/b",
            "电影",
            "🎬",
            "1",
            "01",
            "null",
            "'",
            '"',
            "a\nb",
            "\u202e",
            "é",
            "é",
        ]
        events = small_events(items=len(odd))
        events = events.with_columns(
            item_id=pl.Series([odd[i] for i in events["item_id"]]),
            query_id="用户 " + events["query_id"].cast(pl.String),
        )
        train(events, out=tmp_path / "m", config=QUICK, baselines=[])
        retriever = Retriever.open(tmp_path / "m")
        found = retriever.recommend("用户 3", k=50, exclude_seen=False).item_ids
        assert sorted(found) == sorted(events["item_id"].unique())
        assert retriever.similar_items("🎬", k=3).item_ids

    def test_columns_of_every_type(self, tmp_path: Path) -> None:
        columns: list[pl.Series] = [
            pl.Series([1] * 20).cast(pl.Duration("ms")),
            pl.Series([b"\x00\xff"] * 20),
            pl.Series([{"a": 1, "b": [1, 2]}] * 20),
            pl.Series([None] * 20),
            pl.Series([1, 2] * 10).cast(pl.Decimal(10, 2)),
            pl.Series(["a", "b"] * 10).cast(pl.Categorical),
            pl.Series(["a", "b"] * 10).cast(pl.Enum(["a", "b"])),
            pl.Series([[0.5, 2.0], [3.0, 1.0]] * 10).cast(pl.Array(pl.Float32, 2)),
            pl.Series([[[1]], [[2, 3]]] * 10),
            pl.Series([0.0, float("nan")] * 10),
            pl.Series(["2020-01-05", "2021-02-03"] * 10).str.to_date(),
            pl.Series([True, None] * 10),
        ]
        items = pl.DataFrame(
            [pl.Series("item_id", range(20)), *(c.alias(f"c{i}") for i, c in enumerate(columns))]
        )
        out = tmp_path / "m"
        trained = train(small_events(), items=items, out=out, config=QUICK, baselines=[])
        retriever = Retriever.open(tmp_path / "m")
        assert dict(retriever.contents.items.frame.schema) == dict(
            trained.contents.items.frame.schema
        )
        assert retriever.contents.items.frame.equals(trained.contents.items.frame)
        assert retriever.items([3, 1]).equals(trained.contents.items.frame[[3, 1]])
        assert (retriever.encode_items() == trained.retriever.encode_items()).all()
        assert len(retriever.recommend([1, 2], k=3).to_polars()) == 6

    def test_shared_weights_of_two_towers(self, tmp_path: Path) -> None:
        """One module in both places: safetensors itself refuses tensors that share memory."""
        rng = np.random.default_rng(0)
        shared = nn.Linear(3, 4)
        arrays = rng.normal(size=(30, 3)), rng.normal(size=(20, 3))
        trained = train(
            small_events(),
            queries=arrays[0],
            items=arrays[1],
            query_tower=shared,
            item_tower=shared,
            out=tmp_path / "m",
            config=QUICK,
            baselines=[],
        )
        other = nn.Linear(3, 4)
        opened = Retriever.open(tmp_path / "m", query_tower=other, item_tower=other)
        assert torch.equal(other.weight, shared.weight)
        assert (opened.encode_queries([3]) == trained.retriever.encode_queries([3])).all()

    def test_config_trains_the_same_model_again(
        self, tiny_trained: Trained, tiny_world: SyntheticTables, tiny_bundle: Path
    ) -> None:
        again = train(
            tiny_world.interactions,
            items=tiny_world.items,
            queries=tiny_world.queries,
            config=tiny_bundle / "config.toml",
            baselines=[],
        )
        assert again.contents.config == Config.from_toml(tiny_bundle / "config.toml")
        weights = tiny_trained.contents.weights
        assert all(torch.equal(again.contents.weights[k], weights[k]) for k in weights)

    def test_nothing_in_it_is_executable(self, tiny_bundle: Path) -> None:
        suffixes = {Path(name).suffix for name in files_of(tiny_bundle)}
        assert suffixes <= {".json", ".toml", ".arrow", ".safetensors", ".md", ".jsonl"}
        for name in files_of(tiny_bundle):
            assert b"\x80\x04\x95" not in (tiny_bundle / name).read_bytes(), name  # pickle


class TestWithoutHistories:
    def test_no_file_tells_what_a_query_had(
        self, tiny_trained: Trained, tiny_world: SyntheticTables, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        train(
            tiny_world.interactions,
            items=tiny_world.items,
            queries=tiny_world.queries,
            out=tmp_path / "m",
            config={**QUICK, "towers": {"dim": 4, "history": "pooled", "query_id": "off"}},
            histories=False,
        )
        histories = tiny_trained.contents.histories
        targets = tiny_trained.contents.targets
        assert histories is not None
        assert targets is not None
        needles: list[bytes] = []
        for query in range(2, 302):
            rows = histories.take(np.array([query])).item_rows[:4]
            ids = tiny_trained.contents.items.ids.ids_of(rows).to_list()
            needles += [rows.astype(kind).tobytes() for kind in (np.int32, np.int64)]
            needles += [np.array(ids, kind).tobytes() for kind in (np.int32, np.int64)]
            needles += [json.dumps(ids).encode(), ",".join(map(str, ids)).encode()]
        for kind in (np.int32, np.int64):
            needles.append(targets.item_rows[:4].astype(kind).tobytes())
        content = {name: (tmp_path / "m" / name).read_bytes() for name in files_of(tmp_path / "m")}
        for name, held in content.items():
            assert not any(needle in held for needle in needles), name
        control = (tiny_bundle / "queries" / "histories.safetensors").read_bytes()
        assert sum(needle in control for needle in needles) >= 300
        times = tiny_world.interactions["timestamp"].to_numpy().astype(np.float64)
        assert not any(t.tobytes() in c for t in times[:50] for c in content.values())

    def test_opens_and_answers_but_is_not_evaluated(
        self, contents: Contents, tmp_path: Path
    ) -> None:
        given = replace(
            contents, histories=None, history_parts=None, targets=None, history_weights=None
        )
        write_bundle(tmp_path / "m", given)
        retriever = Retriever.open(tmp_path / "m")
        assert retriever.contents.histories is None
        assert retriever.contents.targets is None
        assert retriever.history(3) == []
        assert len(retriever.recommend(3, k=5)) == 5
        assert retriever.recommend(history=[3, 4], k=5).basis == "model"
        with pytest.raises(BundleError, match=r"must hold histories to be evaluated, got one"):
            evaluate_bundle(retriever)


class TestFiles:
    def test_a_read_of_what_was_saved(self, tmp_path: Path) -> None:
        arrays: dict[str, npt.NDArray[Any]] = {
            "a": np.arange(5),
            "b": np.ones((2, 3), np.float32),
            "empty": np.zeros(0),
        }
        save_arrays(tmp_path / "f", arrays)
        loaded = load_arrays(tmp_path / "f")
        assert all((loaded[k] == v).all() and loaded[k].dtype == v.dtype for k, v in arrays.items())

    def test_views_of_one_tensor(self, tmp_path: Path) -> None:
        whole = torch.arange(6.0)
        parts = {"a": whole[:3], "b": whole[2:], "c": whole, "d": whole.view(2, 3).T}
        save_tensors(tmp_path / "f", parts)
        loaded = load_arrays(tmp_path / "f")
        assert all((loaded[k] == v.numpy()).all() for k, v in parts.items())

    def test_an_error_of_safetensors_is_an_os_error(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="no"):
            save_arrays(tmp_path / "no" / "f", {"a": np.arange(3)})

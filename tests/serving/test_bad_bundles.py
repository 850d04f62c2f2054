"""A bundle of somebody else: its digests match, and what it holds may be anything."""

import json
import os
import shutil
from pathlib import Path

import pytest

from damaged_bundles import BadBundle, at_random, by_name, seal, use, with_every_file
from twotower.errors import BundleError
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.serving.manifest import check_bundle
from twotower.serving.retriever import Retriever

DAMAGES = tuple(by_name())
AT_RANDOM = 60
"""Of which ``benchmarks/bad_bundles.py`` does thousands."""


@pytest.fixture(scope="module")
def sound(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a file of every kind; nobody writes into it."""
    out = tmp_path_factory.mktemp("sound") / "model"
    write_bundle(out, with_every_file(open_bundle(tiny_bundle)))
    return out


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def test_the_sound_one_answers(copy: Path) -> None:
    seal(copy)
    assert use(copy) is None


@pytest.mark.parametrize("bad", DAMAGES, ids=lambda bad: bad.name[:60].replace("\0", "0"))
def test_what_is_wrong_is_said_when_it_is_opened(bad: BadBundle, copy: Path) -> None:
    bad.damage(copy)
    seal(copy, bad.entries)
    with pytest.raises(BundleError, match=bad.says) as raised:
        Retriever.open(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", range(AT_RANDOM))
def test_at_random_it_is_refused_or_answers(seed: int, copy: Path) -> None:
    at_random(copy, seed)
    refusal = use(copy)
    assert refusal is None or "\n" not in refusal


class TestFiles:
    def test_every_file_must_be_listed(self, copy: Path) -> None:
        """Those that a bundle may lack, too: what is left of them does not go together."""
        names = json.loads((copy / "manifest.json").read_text())["files"]
        # Without histories or a second stage, or with all items, it is a whole bundle of another kind.
        whole = {"queries/histories.safetensors", "items.gone.safetensors", "ranker/ranker.json"}
        for name in names.keys() - whole:
            seal(copy, lambda entries, name=name: entries["files"].pop(name))  # type: ignore[misc]
            with pytest.raises(
                BundleError, match=r"does not list|must have a vocabulary|constants"
            ):
                open_bundle(copy)
            seal(copy, lambda entries, name=name: entries["files"].update({name: ""}))  # type: ignore[misc]
            seal(copy)
        assert use(copy) is None

    def test_a_file_that_is_not_listed_is_not_read(self, copy: Path) -> None:
        name = "queries/histories.safetensors"
        seal(copy, lambda entries: entries["files"].pop(name))
        assert (copy / name).is_file()
        assert open_bundle(copy).histories is None

    @pytest.mark.parametrize("name", ["metrics.json", "manifest.json"])
    @pytest.mark.parametrize("what", ["pipe", "device"])
    def test_what_is_no_file_is_refused_at_once(self, copy: Path, name: str, what: str) -> None:
        (copy / name).unlink()
        if what == "pipe":
            os.mkfifo(copy / name)  # opening it would wait for a writer
        else:
            (copy / name).symlink_to("/dev/zero")
        with pytest.raises(BundleError, match=r"got a device or a pipe|cannot be read"):
            check_bundle(copy)

    @pytest.mark.parametrize("name", ["items.arrow", "vocab/item.ids.arrow"])
    @pytest.mark.parametrize("linked", ["the file", "its folder"])
    def test_a_link_out_of_the_bundle_is_refused(
        self, copy: Path, tmp_path: Path, name: str, linked: str
    ) -> None:
        place = copy / name
        if linked == "its folder" and place.parent != copy:
            place = place.parent
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BundleError, match=r"is refused: .* got a link to '.*elsewhere"):
            open_bundle(copy)

    def test_a_link_to_the_bundle_and_one_within_it_are_followed(
        self, copy: Path, tmp_path: Path
    ) -> None:
        (copy / "items.arrow").rename(copy / "other.arrow")
        (copy / "items.arrow").symlink_to("other.arrow")
        (tmp_path / "current").symlink_to(copy)
        assert use(tmp_path / "current") is None

    def test_a_deeply_nested_manifest(self, copy: Path) -> None:
        deep = '{"a":' * 100_000 + "1" + "}" * 100_000
        (copy / "manifest.json").write_text(deep)
        with pytest.raises(BundleError, match="cannot be read"):
            open_bundle(copy)


class TestEncoders:
    @pytest.mark.parametrize("way", ["absolute", "relative", "by a link"])
    def test_one_in_the_bundle_itself_is_refused(
        self, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        (copy / "encoder").mkdir()
        (copy / "encoder" / "modules.json").write_text("[]")
        named = {"absolute": str(copy / "encoder"), "relative": "model/../model/encoder"}
        (tmp_path / "link").symlink_to(copy / "encoder")
        encoder = named.get(way, str(tmp_path / "link"))
        schema = (copy / "schema.toml").read_text()
        old = 'kind = "categorical"\nreason = "10 distinct strings"\nseparator = ""\nbuckets = 0\n'
        assert old in schema
        new = old.replace("categorical", "sentence")
        rest = 'column = ""\nencoder = "{}"'
        schema = schema.replace(old + rest.format(""), new + rest.format(encoder))
        (copy / "schema.toml").write_text(schema)
        seal(copy)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BundleError, match="lies in the bundle itself"):
            open_bundle(copy)

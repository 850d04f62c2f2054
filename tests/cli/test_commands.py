"""Every command, called in this process: what it prints, where, and with which exit code."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer

from sandbox import NoDiskError, Outcome, events, items, run_command, small_disk, tree_of, write
from twotower import Boost, Cap, Config, Diversify, Explore, Retriever
from twotower.cli import app
from twotower.cli.output import print_json
from twotower.evaluation.metrics import METRICS

COMMANDS = (
    "train",
    "tune",
    "evaluate",
    "report",
    "compare",
    "doctor",
    "recommend",
    "similar",
    "explain",
    "export",
    "inspect",
    "data",
    "config",
)
QUICK = ("--set", "training.epochs=1", "--set", "training.batch_size=64", "--set", "towers.dim=8")


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not broken into lines."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A folder with sound tables."""
    write("events.csv", events())(tmp_path)
    write("items.csv", items())(tmp_path)
    return tmp_path


def ask(bundle: Path, command: str, *arguments: str, folder: Path | None = None) -> Outcome:
    outcome = run_command((command, str(bundle), *arguments), folder or bundle.parent)
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    return outcome


def ask_json(bundle: Path, command: str, *arguments: str) -> Any:
    return json.loads(ask(bundle, command, *arguments, "--json").out)


def train(folder: Path, *arguments: str) -> Outcome:
    outcome = run_command(("train", *arguments, *QUICK), folder)
    assert outcome.code == 0, outcome
    return outcome


class TestHelp:
    def test_no_command_shows_the_commands(self) -> None:
        outcome = run_command((), Path())
        assert outcome.code == 2
        assert all(command in outcome.out for command in COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_holds_an_example_that_could_be_typed(self, command: str) -> None:
        outcome = run_command((command, "--help"), Path())
        assert outcome.code == 0
        (line,) = [line for line in outcome.out.splitlines() if "Example:" in line]
        typed = line.split("Example:")[1].split()
        assert typed[:2] == ["twotower", command]
        tree: Any = typer.main.get_command(app)
        known = {flag for option in tree.commands[command].params for flag in option.opts}
        assert {word for word in typed if word.startswith("-")} <= known

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_option_says_what_it_is(self, command: str) -> None:
        tree: Any = typer.main.get_command(app)
        assert all(parameter.help for parameter in tree.commands[command].params)

    def test_the_version_is_that_of_the_package(self) -> None:
        from twotower import __version__

        assert run_command(("--version",), Path()).out == f"twotower {__version__}\n"

    def test_a_wrong_use_ends_with_2(self) -> None:
        for wrong in (("train",), ("train", "--out", "x", "--no-such"), ("bake",)):
            outcome = run_command(wrong, Path())
            assert outcome.code == 2
            assert outcome.out == ""
            assert "Traceback" not in outcome.err


class TestTrain:
    def test_a_bare_table_needs_nothing_else(self, sound: Path) -> None:
        asked = ("train", "--interactions", "events.csv", "--out", "m", "--lang", "zh")
        outcome = run_command(asked, sound)
        assert outcome.code == 0
        assert 'lang="zh-CN"' in (sound / "m.report.html").read_text("utf-8")
        assert outcome.err == ""
        for word in ("user_id", "its name says", "epoch", "popularity", "ItemKNN", "NDCG@10"):
            assert word in outcome.out
        assert outcome.out.endswith("The bundle is at m.\nIts report is at m.report.html.\n")
        files = {"events.csv", "items.csv", "m", "m.report.html"}
        assert {path.name for path in sound.iterdir()} == files
        assert Retriever.open(sound / "m").recommend(1, k=3).basis == "model"

    def test_json_alone_goes_to_the_standard_output(self, sound: Path) -> None:
        outcome = train(sound, "--interactions", "events.csv", "--out", "m", "--json")
        figures = json.loads(outcome.out)
        assert set(figures) >= {"model", "popularity", "item_knn"}
        assert figures == json.loads((sound / "m" / "metrics.json").read_text("utf-8"))
        assert "epoch" in outcome.err
        assert "The bundle is at m." in outcome.err

    def test_a_flag_wins_over_a_setting_and_a_setting_over_the_file(self, sound: Path) -> None:
        lines = ["[split]", "kind = 'temporal'", "[training]", "epochs = 9", "seed = 5"]
        write("own.toml", lines)(sound)
        flags = ("--config", "own.toml", "--set", "split.kind=temporal", "--split", "random")
        train(sound, "--interactions", "events.csv", "--out", "m", *flags)
        used = Config.from_toml(sound / "m" / "config.toml")
        assert used.split.kind == "random"
        assert used.training.epochs == 1
        assert used.training.seed == 5

    def test_given_files_are_taken_as_they_are(self, sound: Path) -> None:
        header, *rows = events()
        parts = {"tr": rows[:-20], "va": rows[-20:-12], "te": rows[-12:]}
        for name, lines in parts.items():
            write(f"{name}.csv", [header, *lines])(sound)
        outcome = train(
            sound, *("--train", "tr.csv", "--valid", "va.csv", "--test", "te.csv"), "--out", "m"
        )
        assert "train 52 positive events" in outcome.out
        assert "valid 8 positive events" in outcome.out
        assert "test 12 positive events" in outcome.out
        without = train(sound, "--train", "tr.csv", "--test", "te.csv", "--out", "m")
        assert "test 12 positive events" in without.out
        assert "valid 0" not in without.out

    def test_given_files_refuse_a_split(self, sound: Path) -> None:
        flags = ("--train", "events.csv", "--test", "events.csv", "--split", "random")
        outcome = run_command(("train", *flags, "--out", "m"), sound)
        assert outcome.code == 2
        assert "--split must not go with given files, got 'random'" in outcome.err

    def test_columns_can_be_stated(self, sound: Path) -> None:
        rows = [f"{row},{1 + place % 2}" for place, row in enumerate(events()[1:])]
        write("events.csv", ["a,b,c,d,e", *rows])(sound)
        write("items.csv", ["b,title,price", *items()[1:]])(sound)
        stated = ("--query-column", "a", "--item-column", "b", "--time-column", "d")
        files = ("--interactions", "events.csv", "--items", "items.csv")
        meant = ("--label-column", "c", "--weight-column", "e")
        outcome = train(sound, *files, *stated, *meant, "--out", "m")
        assert "ratings, each taken as a positive" in outcome.out
        assert "leave-last-out" in outcome.out
        (line,) = [line for line in outcome.out.splitlines() if "│ weight" in line]
        assert [cell.strip() for cell in line.split("│")[1:4]] == ["e", "weight", "stated"]
        answer = ask_json(sound / "m", "recommend", "--query", "3")
        assert set(answer["items"][0]["columns"]) == {"b", "title", "price"}

    def test_what_was_shown_and_where_can_be_stated(self, sound: Path) -> None:
        header, *rows = events()
        lines = [
            f"{row},{place % 5} {place % 3} new,{place % 8 + 1}" for place, row in enumerate(rows)
        ]
        write("events.csv", [f"{header},shown,rank", *lines])(sound)
        stated = ("--impressions-column", "shown", "--position-column", "rank")
        outcome = train(sound, "--interactions", "events.csv", *stated, "--out", "m")
        (line,) = [line for line in outcome.out.splitlines() if "impressions" in line]
        assert [cell.strip() for cell in line.split("│")[1:4]] == ["shown", "impressions", "stated"]
        assert "no event and no item table has, 'new' the first." in outcome.out
        (line,) = [line for line in outcome.out.splitlines() if "│ position" in line]
        assert [cell.strip() for cell in line.split("│")[1:4]] == ["rank", "position", "stated"]
        assert "assumed to be 1 / position" in outcome.out

    def test_null_ids_and_histories_are_left_out_on_wish(self, sound: Path) -> None:
        write("events.csv", [*events(), ",3,1,1500000000", "3,,1,1500000000"])(sound)
        wishes = ("--drop-null-ids", "--no-histories")
        outcome = train(sound, "--interactions", "events.csv", "--out", "m", *wishes)
        assert "Left out 2 of 74 rows without an id." in outcome.out
        assert not list((sound / "m").rglob("histories*"))
        assert not list((sound / "m").rglob("targets*"))
        assert ask_json(sound / "m", "inspect")["histories"] is False
        assert ask_json(sound / "m", "recommend", "--query", "1")["basis"] == "popularity"
        refused = run_command(("evaluate", "m"), sound)
        assert refused.code == 2
        assert "--no-histories" in refused.err

    def test_a_bundle_is_replaced_and_equal_runs_give_equal_weights(self, sound: Path) -> None:
        flags = ("--interactions", "events.csv", "--items", "items.csv", "--out", "m")
        train(sound, *flags)
        first = tree_of(sound / "m")
        train(sound, *flags)
        second = tree_of(sound / "m")
        assert first.keys() == second.keys()
        assert first["weights.safetensors"] == second["weights.safetensors"]

    def test_a_path_and_a_title_may_look_like_markup(self, sound: Path) -> None:
        (sound / "m[").mkdir()
        write("items.csv", items(title="[/b] [red]Film"))(sound)
        tables = ("--interactions", "events.csv", "--items", "items.csv")
        outcome = train(sound, *tables, "--out", "m[/red]")
        assert outcome.out.endswith("Its report is at m[/red].report.html.\n")
        bundle = sound / "m[/red]"
        assert "m[/red]" in ask(bundle, "inspect").out
        ask(bundle, "similar", "--item", "1")
        assert "[/b] [red]Film" in ask(bundle, "recommend", "--query", "1").out

    def test_resume_without_a_checkpoint_is_refused(self, sound: Path) -> None:
        command = ("train", "--interactions", "events.csv", "--out", "m", "--resume")
        outcome = run_command(command, sound)
        assert outcome.code == 2
        assert "--resume needs a checkpoint" in outcome.err
        assert not (sound / "m").exists()


class TestEvaluate:
    def test_json_has_the_shape_that_stays(self, tiny_bundle: Path) -> None:
        figures = ask_json(tiny_bundle, "evaluate")
        assert figures == json.loads((tiny_bundle / "metrics.json").read_text("utf-8"))
        wanted = {f"{name}@{k}" for name in METRICS for k in (10, 20, 100)}
        exposure = {"coverage@10", "popularity_bias@10", "novelty@10", "gini@10", "diversity@10"}
        for method in ("model", "popularity", "recent_popularity", "item_knn", "ease", "random"):
            assert figures[method].keys() == wanted | exposure
            for metric in wanted:
                value, low, high = figures["intervals"][method][metric]
                assert 0 <= low <= value == figures[method][metric] <= high <= 1
        assert set(figures["verdicts"]) == set(figures["differences"])
        assert figures["protocol"]["part"] == "test"
        assert figures["protocol"]["ranking"] == "full"

    def test_cutoffs_and_baselines_are_those_asked_for(self, tiny_bundle: Path) -> None:
        figures = ask_json(tiny_bundle, "evaluate", "-k", "3,200", "--baselines", "popularity")
        assert figures["intervals"].keys() == {"model", "popularity"}
        assert {name.split("@")[1] for name in figures["intervals"]["model"]} == {"3", "200"}
        assert figures["model"]["recall@200"] == 1.0  # all of the catalogue was looked at
        alone = ask_json(tiny_bundle, "evaluate", "--baselines", "none")
        assert alone["intervals"].keys() == {"model"}
        wrong = run_command(("evaluate", str(tiny_bundle), "--baselines", "item-knn"), tiny_bundle)
        assert wrong.code == 2
        assert "did you mean 'item_knn'?" in wrong.err

    @pytest.mark.parametrize(
        ("ks", "told"),
        [
            ("0", "-k must be at least 1, got 0"),
            ("10,10", "-k must name each cut-off once, got '10,10'"),
            ("10,many", "-k must be whole numbers with commas between, got '10,many'"),
        ],
    )
    def test_cutoffs_that_are_none_are_refused(self, tiny_bundle: Path, ks: str, told: str) -> None:
        refused = run_command(("evaluate", str(tiny_bundle), "-k", ks), tiny_bundle)
        assert refused.code == 2
        assert told in refused.err

    def test_people_get_a_line_a_method_and_what_it_means(self, tiny_bundle: Path) -> None:
        out = " ".join(ask(tiny_bundle, "evaluate", "--slice-by", "activity").out.split())
        assert "300 test queries, all 200 items, seen removed" in out
        for words in ("two-tower", "EASE with decay", "first 10", "hit rate", "popularity bias"):
            assert words in out
        for k in (10, 20, 100):  # of all queries, and of each slice
            assert out.count(f"first {k} ") == 2
        assert "The model " in out
        assert "Left out: BM25" in out

    def test_a_slice_by_a_column_that_is_not_there(self, tiny_bundle: Path) -> None:
        refused = run_command(
            ("evaluate", str(tiny_bundle), "--slice-by", "activty", "--baselines", "none"),
            tiny_bundle,
        )
        assert refused.code == 2
        assert "did you mean 'activity'?" in refused.err

    def test_sampled_candidates_say_that_they_inflate(self, tiny_bundle: Path) -> None:
        out = ask(tiny_bundle, "evaluate", "--negatives", "50", "--baselines", "none").out
        assert "51 candidates each" in out
        assert "inflated" in out

    def test_other_test_events_give_other_figures(self, tiny_bundle: Path, tmp_path: Path) -> None:
        best = Retriever.open(tiny_bundle).recommend(list(range(1, 21)), k=1)
        rows = [{"query_id": a.query_id, "item_id": a.item_ids[0]} for a in best]
        pl.DataFrame(rows).write_csv(tmp_path / "test.csv")
        flags = ("--test", str(tmp_path / "test.csv"), "--baselines", "popularity")
        figures = ask_json(tiny_bundle, "evaluate", *flags)
        assert figures["protocol"]["queries"] == 20
        assert figures["model"]["ndcg@10"] == 1.0
        assert figures["popularity"]["ndcg@10"] < 1.0

    def test_the_columns_of_other_events_can_be_stated(
        self, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "test.csv"
        file.write_text("who,what\n1,5\n2,6\n")
        flags = ("--query-column", "who", "--item-column", "what")
        given = ("--test", str(file), *flags, "--baselines", "none")
        figures = ask_json(tiny_bundle, "evaluate", *given)
        assert figures["protocol"]["queries"] == 2
        refused = run_command(("evaluate", str(tiny_bundle), "--test", str(file)), tmp_path)
        assert refused.code == 2
        assert "--query-column NAME" in refused.err
        lonely = run_command(("evaluate", str(tiny_bundle), *flags), tmp_path)
        assert lonely.code == 2
        assert "--query-column must go with --test" in lonely.err


class TestRecommend:
    def test_json_names_the_query_the_basis_and_the_items(self, tiny_bundle: Path) -> None:
        answer = ask_json(tiny_bundle, "recommend", "--query", "7", "-k", "4")
        assert answer["query_id"] == 7  # as the table has it
        assert answer["basis"] == "model"
        assert len(answer["items"]) == 4
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)
        for item in answer["items"]:
            assert item["columns"]["item_id"] == item["item_id"]
            assert item["columns"]["title"].startswith("Synthetic item")

    def test_it_answers_as_the_retriever_does(self, tiny_bundle: Path) -> None:
        retriever = Retriever.open(tiny_bundle)
        answer = ask_json(tiny_bundle, "recommend", "--query", "7", "-k", "5")
        expected = retriever.recommend(7, k=5)
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        assert not set(retriever.history(7)) & set(expected.item_ids)

    def test_a_history_counts_the_newest_item_last(self, tiny_bundle: Path) -> None:
        expected = Retriever.open(tiny_bundle).recommend(history=[1, 50, 120])
        answer = ask_json(tiny_bundle, "recommend", "--history", "1, 50,120")
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        assert answer["query_id"] is None

    def test_features_are_a_json_object(self, tiny_bundle: Path) -> None:
        given = {"segment": "segment-2", "signal": 1.5}
        expected = Retriever.open(tiny_bundle).recommend(features=given)
        answer = ask_json(tiny_bundle, "recommend", "--features", json.dumps(given))
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        assert answer["basis"] == "model"

    def test_a_stranger_gets_what_is_popular_and_is_told(self, tiny_bundle: Path) -> None:
        answer = ask_json(tiny_bundle, "recommend", "--query", "nobody")
        assert answer["query_id"] == "nobody"
        assert answer["basis"] == "popularity"
        assert "what is popular" in ask(tiny_bundle, "recommend", "--query", "nobody").out

    def test_people_see_titles(self, tiny_bundle: Path) -> None:
        best = Retriever.open(tiny_bundle).recommend(7, k=1).item_ids[0]
        out = ask(tiny_bundle, "recommend", "--query", "7", "-k", "1").out
        assert f"Synthetic item {best}" in out
        assert "title" in out
        assert "popular" not in out

    def test_k_above_what_exists_returns_what_exists(self, tiny_bundle: Path) -> None:
        known = len(set(Retriever.open(tiny_bundle).history(7)))
        answer = ask_json(tiny_bundle, "recommend", "--query", "7", "-k", "100000")
        assert len(answer["items"]) == 200 - known

    def test_a_filter(self, tiny_bundle: Path, tmp_path: Path) -> None:
        text = 'category = "category-1" or tags has "tag-7"'
        flags = ("--filter", text, "-k", "4")
        retriever = Retriever.open(tiny_bundle)
        expected = retriever.recommend(7, k=4, filter=text).item_ids
        assert expected != retriever.recommend(7, k=4).item_ids
        answer = ask_json(tiny_bundle, "recommend", "--query", "7", *flags)
        assert [item["item_id"] for item in answer["items"]] == expected
        near = ask_json(tiny_bundle, "similar", "--item", "7", *flags)
        found = [item["item_id"] for item in near["items"]]
        assert found == retriever.similar_items(7, 4, filter=text).item_ids
        ask(tiny_bundle, "recommend", "--all", "--out", str(tmp_path / "all.csv"), *flags)
        own = pl.read_csv(tmp_path / "all.csv").filter(pl.col("query_id") == 7)["item_id"]
        assert own.to_list() == expected

    def test_a_value_that_exists_nowhere_is_told(self, tiny_bundle: Path, tmp_path: Path) -> None:
        flags = ("--filter", "category = 'Category-1'")
        everyone = ("recommend", "--all", "--out", str(tmp_path / "all.csv"))
        for asked in (("recommend", "--query", "7"), ("similar", "--item", "7"), everyone):
            said = ask(tiny_bundle, *asked, *flags)
            assert "No item has \"Category-1\" in 'category'; did you mean" in said.out, asked
        answer = ask_json(tiny_bundle, "recommend", "--history", "x,y", *flags)
        assert len(answer["notes"]) == 2

    def test_a_filter_that_cannot_be_read_is_shown_with_carets(self, tiny_bundle: Path) -> None:
        for command in (("recommend", "--query", "7"), ("similar", "--item", "7")):
            asked = (command[0], str(tiny_bundle), *command[1:], "--filter", "item_id > 3 and")
            outcome = run_command(asked, tiny_bundle.parent)
            assert outcome.code == 2
            assert outcome.out == ""
            said, line, carets = outcome.err.splitlines()
            assert said == "twotower: filter must name a column here, got its end."
            assert line == "  item_id > 3 and"
            assert carets == "  " + " " * len(line.strip()) + "^"

    def test_rules(self, tiny_bundle: Path, tmp_path: Path) -> None:
        stated = (
            *("--boost", "category = 'category-1': 0.8", "--boost", "title contains ' : ': -1"),
            *("--cap", "category=2", "--diversify", "0.2", "--explore", "0.25", "--seed", "7"),
        )
        rules: list[Any] = [
            Boost("category = 'category-1'", 0.8),
            Boost("title contains ' : '", -1),
            Cap("category", 2),
            Diversify(0.2),
            Explore(0.25, 7),
        ]
        expected = Retriever.open(tiny_bundle).recommend(7, k=8, rules=rules)
        assert expected.explored
        answer = ask_json(tiny_bundle, "recommend", "--query", "7", "-k", "8", *stated)
        assert [item["item_id"] for item in answer["items"]] == expected.item_ids
        drawn = {i["item_id"]: i["propensity"] for i in answer["items"] if "propensity" in i}
        assert drawn == expected.explored
        shown = ask(tiny_bundle, "recommend", "--query", "7", "-k", "8", *stated).out
        for item, chance in expected.explored.items():
            assert f"{item} ({chance:.2g})" in shown.splitlines()[-1]
        ask(
            tiny_bundle,
            "recommend",
            "--all",
            "--out",
            str(tmp_path / "all.csv"),
            "-k",
            "8",
            *stated,
        )
        own = pl.read_csv(tmp_path / "all.csv").filter(pl.col("query_id") == 7)
        assert own["item_id"].to_list() == expected.item_ids
        assert own["propensity"].drop_nulls().to_list() == list(expected.explored.values())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--boost", "year >= 2000"], "--boost must be 'FILTER: NUMBER', got 'year >= 2000'."),
            (
                ["--boost", "year > 1: nan"],
                "--boost: by must be a number from -1000 to 1000, got nan.",
            ),
            (["--cap", "genre"], "--cap must be COLUMN=NUMBER, got 'genre'."),
            (["--cap", "category=0"], "--cap: most must be a whole number of at least 1, got 0."),
            (["--cap", "genre=1"], "cap must name a column of the items, got 'genre'"),
            (["--diversify", "2"], "--diversify: weight must be in [0, 1], got 2.0."),
            (["--explore", "-1"], "--explore: share must be in [0, 1], got -1.0."),
            (["--seed", "7"], "--seed must go with --explore, got 7 alone; leave it out."),
        ],
    )
    def test_wrong_rules_are_refused(
        self, tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        asked = ("recommend", str(tiny_bundle), "--query", "7", *arguments)
        outcome = run_command(asked, tmp_path)
        assert outcome.code == 2
        assert message in outcome.err

    @pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
    def test_everyone_at_once(self, tiny_bundle: Path, tmp_path: Path, ending: str) -> None:
        file = tmp_path / f"recs.{ending}"
        file.write_text("an older file")
        outcome = ask(tiny_bundle, "recommend", "--all", "--out", str(file), "-k", "3")
        assert outcome.out == f"Wrote {file}.\n"
        assert list(tmp_path.iterdir()) == [file]
        read: Any = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}
        frame: pl.DataFrame = read[ending](file)
        assert frame.height == 3 * 300
        assert frame["rank"].to_list()[:4] == [1, 2, 3, 1]
        own = frame.filter(pl.col("query_id") == 7)["item_id"].to_list()
        assert own == Retriever.open(tiny_bundle).recommend(7, k=3).item_ids

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--all"], "must be given together, got only --all"),
            (["--query", "1", "--out", "x.csv"], "must be given together, got only --out"),
            (["--query", "1", "--all", "--out", "x.csv"], "recommend needs"),
            (["--all", "--out", "."], "--out must end in"),
            (["--features", "[1]"], "must be a JSON object, got '[1]'"),
        ],
    )
    def test_contradictions_are_refused(
        self, tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        outcome = run_command(("recommend", str(tiny_bundle), *arguments), tmp_path)
        assert outcome.code == 2
        assert message in outcome.err
        assert not list(tmp_path.iterdir())


class TestSimilar:
    def test_json_has_the_item_and_its_neighbours(self, tiny_bundle: Path) -> None:
        answer = ask_json(tiny_bundle, "similar", "--item", "50", "-k", "7")
        found = [item["item_id"] for item in answer["items"]]
        assert answer["item_id"] == 50
        assert len(set(found) - {50}) == 7
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)
        assert all(-1 - 1e-6 <= score <= 1 + 1e-6 for score in scores)
        assert "query_id" not in answer

    def test_people_see_the_cosine(self, tiny_bundle: Path) -> None:
        out = ask(tiny_bundle, "similar", "--item", "50").out
        assert "cosine" in out
        assert "Synthetic item" in out


class TestExplain:
    def test_json_has_every_part(self, tiny_bundle: Path) -> None:
        told = ask_json(tiny_bundle, "explain", "--query", "1", "--item", "50")
        assert told["item_id"] == "50"
        assert {part["side"] for part in told["parts"]} == {"query", "item", "history"}
        assert all(isinstance(part["contribution"], float) for part in told["parts"])

    def test_people_see_the_score_and_the_events_that_matter_most(self, tiny_bundle: Path) -> None:
        out = ask(tiny_bundle, "explain", "--item", "50", "--history", "1,2,3,4,5,6,7,8,9").out
        assert "score" in out
        assert out.count("│ event") == 7  # the first five and the last two
        assert "2 events between" in out
        assert "Synthetic item" in out
        assert "they need not add up" in out


class TestViews:
    def test_one_command_trains_and_reports_each(self, tmp_path: Path) -> None:
        for name, seed in (("films", 0), ("books", 1)):
            rng = np.random.default_rng(seed)
            pl.DataFrame(
                {
                    "user": rng.integers(0, 40, 600),
                    "item": rng.integers(0, 30, 600),
                    "time": rng.integers(10**9, 10**9 + 10**6, 600),
                }
            ).write_csv(tmp_path / f"{name}.csv")
        views = "".join(
            f'[[views]]\nname = "{name}"\ninteractions = "{name}.csv"\n'
            for name in ("films", "books")
        )
        (tmp_path / "views.toml").write_text(views)
        asked = ("train", "--config", "views.toml", "--out", "m", "--lang", "zh", *QUICK)
        done = run_command(asked, tmp_path)
        assert done.code == 0, done
        assert "The bundles are in m." in done.out
        assert "films: " in done.out
        for name in ("films", "books"):
            page = (tmp_path / f"m-{name}.report.html").read_text("utf-8")
            assert len(page) > 10_000
            assert 'lang="zh-CN"' in page
            assert len(ask_json(tmp_path / "m" / name, "recommend", "--query", "1")["items"]) == 10
        wrong = ("train", "--config", "views.toml", "--interactions", "films.csv", "--out", "n")
        refused = run_command(wrong, tmp_path)
        assert refused.code == 2
        assert "--interactions cannot be combined with [[views]]" in refused.err


class TestInspect:
    def test_json_tells_what_the_bundle_holds(self, tiny_bundle: Path) -> None:
        told = ask_json(tiny_bundle, "inspect")
        assert (told["queries"], told["items"], told["dim"]) == (300, 200, 16)
        assert told["histories"] is True
        assert told["custom_towers"] == []
        assert told["index"] == "exact"
        on_disk = {name for name, data in tree_of(tiny_bundle).items() if data is not None}
        assert on_disk == {*told["files"], "manifest.json"}
        assert told["bytes"] == sum(told["files"].values())
        kinds = {(each["side"], each["name"]): each["kind"] for each in told["features"]}
        assert kinds["item", "category"] == "categorical"
        assert told["config"]["towers"]["dim"] == 16
        assert told["figures"] == json.loads((tiny_bundle / "metrics.json").read_text("utf-8"))
        assert told["provenance"]["data"] == "tiny world"

    def test_people_see_features_and_figures(self, tiny_bundle: Path) -> None:
        out = ask(tiny_bundle, "inspect").out
        for words in ("300 queries, 200 items, dim 16", "category", "NDCG@10", "config.toml"):
            assert words in out

    def test_no_command_writes_into_a_bundle(self, tiny_bundle: Path) -> None:
        before = tree_of(tiny_bundle)
        ask(tiny_bundle, "inspect")
        ask(tiny_bundle, "evaluate", "--baselines", "popularity")
        ask(tiny_bundle, "recommend", "--query", "1")
        ask(tiny_bundle, "similar", "--item", "1")
        assert tree_of(tiny_bundle) == before


class TestData:
    @pytest.fixture
    def by_hand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder in GroupLens' own format, smaller than theirs, and a cache of its own."""
        monkeypatch.setenv("TWOTOWER_CACHE", str(tmp_path / "cache"))
        folder = tmp_path / "by-hand"
        folder.mkdir()
        ratings = [f"{q}\t{i}\t5\t{881250000 + q * i}" for q in (1, 2) for i in (1, 2, 3)]
        genres = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)
        films = [f"{i}|Film {i} (1995)|01-Jan-1995||http://x|{genres}" for i in (1, 2, 3)]
        write("u.data", ratings)(folder)
        write("u.item", films, encoding="latin-1")(folder)
        write("u.user", ["1|24|M|writer|85711", "2|53|F|other|94043"])(folder)
        write("u.genre", [f"genre {code}|{code}" for code in range(19)])(folder)
        return folder

    def test_three_tables_and_the_terms_once(self, by_hand: Path) -> None:
        command = ("data", "movielens-100k", "--from-dir", str(by_hand), "--out", "films")
        first = run_command(command, by_hand.parent)
        assert first.code == 0, first
        assert "non-commercial" in first.out
        assert "6 events, 3 items, 2 queries" in first.out
        assert pl.read_parquet(by_hand.parent / "films" / "items.parquet")["title"][0]
        second = run_command(command, by_hand.parent)
        assert second.code == 0
        assert "non-commercial" not in second.out

    def test_json_names_the_files(self, by_hand: Path) -> None:
        command = ("data", "movielens-100k", "--from-dir", str(by_hand), "--json")
        outcome = run_command(command, by_hand.parent)
        paths = json.loads(outcome.out)
        assert set(paths) == {"interactions", "items", "queries"}
        assert all((by_hand.parent / path).is_file() for path in paths.values())
        assert "non-commercial" in outcome.err

    def test_what_it_suggests_could_be_typed(self, by_hand: Path) -> None:
        command = ("data", "movielens-100k", "--from-dir", str(by_hand), "--out", "films")
        suggested = run_command(command, by_hand.parent).out.splitlines()[-1].split()
        assert suggested[:2] == ["twotower", "train"]
        assert run_command((*suggested[1:], *QUICK), by_hand.parent).code == 0

    def test_a_synthetic_world_has_no_folder_to_come_from(self, tmp_path: Path) -> None:
        outcome = run_command(("data", "synthetic", "--from-dir", "x"), tmp_path)
        assert outcome.code == 2
        assert "--from-dir must go with MovieLens" in outcome.err

    def test_an_incomplete_copy_is_refused_and_leaves_nothing(self, by_hand: Path) -> None:
        (by_hand / "u.user").unlink()
        command = ("data", "movielens-100k", "--from-dir", str(by_hand), "--out", "films")
        outcome = run_command(command, by_hand.parent)
        assert outcome.code == 2
        assert "u.user" in outcome.err
        assert not (by_hand.parent / "films").exists()

    def test_a_full_disk_is_left_as_it_was(self, by_hand: Path) -> None:
        source = ("data", "movielens-100k", "--from-dir", str(by_hand))
        try:
            with small_disk(by_hand.parent, 8 << 10):
                outcome = run_command((*source, "--out", "disk/films"), by_hand.parent)
                assert outcome.code == 2
                assert "the disk is full" in outcome.err
                assert not list((by_hand.parent / "disk").iterdir())
        except NoDiskError as error:
            pytest.skip(str(error))

    def test_a_place_that_cannot_be_a_folder_is_refused(self, by_hand: Path) -> None:
        source = ("data", "movielens-100k", "--from-dir", str(by_hand))
        for out in ("by-hand/u.data", "by-hand/u.data/films"):
            outcome = run_command((*source, "--out", out), by_hand.parent)
            assert outcome.code == 2
            assert f"for {out!r}" in outcome.err


class TestConfig:
    def test_show_prints_what_config_takes(self, tmp_path: Path) -> None:
        shown = run_command(("config", "--show"), tmp_path)
        assert shown.code == 0
        assert Config.from_dict(tomllib.loads(shown.out)) == Config()
        write("all.toml", [shown.out])(tmp_path)
        again = run_command(("config", "--show", "--config", "all.toml"), tmp_path)
        assert again.out == shown.out

    def test_every_setting_is_shown_with_its_meaning(self) -> None:
        lines = run_command(("config", "--show"), Path()).out.splitlines()
        for number, line in enumerate(lines):
            if " =" in line and not line.startswith("# ``"):
                assert lines[number - 1].startswith("#"), line

    def test_settings_are_applied(self) -> None:
        out = run_command(("config", "--show", "--set", "towers.similarity=cosine"), Path()).out
        assert tomllib.loads(out)["towers"]["similarity"] == "cosine"

    def test_show_must_be_said(self) -> None:
        outcome = run_command(("config",), Path())
        assert outcome.code == 2
        assert "config must be given --show" in outcome.err

    def test_several_mistakes_come_at_once(self) -> None:
        flags = ("--set", "towers.dmi=1", "--set", "loss.knd=bce")
        outcome = run_command(("config", "--show", *flags), Path())
        assert outcome.code == 2
        assert "did you mean 'dim'?" in outcome.err
        assert "did you mean 'kind'?" in outcome.err


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"auc": float("nan"), "all": [float("inf"), 1.5, "é"]})
    assert json.loads(capsys.readouterr().out) == {"auc": None, "all": [None, 1.5, "é"]}

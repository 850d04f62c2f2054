"""The public names of the rooms, listed by hand: a name is added or removed on purpose."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

PUBLIC = {
    "twotower": """
        ArgumentError
        Boost
        BundleError
        Callback
        Cap
        Client
        Config
        ConfigError
        DataError
        Diversify
        Explore
        ExportError
        FilterError
        MissingExtraError
        Recommendation
        Recommendations
        Reranked
        Retriever
        ServerError
        Trained
        TrainedViews
        Tuned
        TwoTowerError
        Updated
        View
        __version__
        compare_runs
        diagnose_bundle
        diagnose_data
        evaluate_bundle
        index_items
        open_views
        prepare_folder
        recipe
        rerank
        train
        train_views
        tune
        update
        write_report
    """,
    "twotower.baselines": """
        ALS
        BM25
        Baselines
        EASE
        ItemKNN
        Popularity
        RandomOrder
        RecentPopularity
        Spectral
        Spectrum
        choose_als
        choose_bm25
        choose_ease
        choose_item_knn
        choose_recent_popularity
        choose_spectral
        fit_baselines
        spectrum_of
    """,
    "twotower.data": """
        Cases
        Dataset
        EntityTable
        Histories
        Interactions
        PairBatch
        PairBatches
        Part
        PrefixBatch
        PrefixBatches
        Preparation
        Vocabulary
        prepare
        read_table
        split
    """,
    "twotower.evaluation": """
        Evaluation
        Interval
        ModelScorer
        Scorer
        auc
        difference_intervals
        evaluate
        evaluate_on
        exposure
        graded_ndcg_at_k
        hit_rate_at_k
        hits_of
        log_loss
        map_at_k
        mean_intervals
        mrr_at_k
        ndcg_at_k
        precision_at_k
        rank
        recall_at_k
    """,
    "twotower.exports": """
        Exported
        connect_qdrant
        encode_table
        export_faiss
        export_npy
        export_onnx
        export_parquet
        export_pgvector
        export_qdrant
        item_inputs
        load_pgvector
        load_qdrant
        query_inputs
    """,
    "twotower.features": """
        CategoryEncoder
        CategoryTransform
        Feature
        IdTransform
        NumberTransform
        NumbersEncoder
        SentenceTransform
        SideEncoder
        SideTransforms
        Sides
        TagsEncoder
        TagsTransform
        TextEncoder
        TextTransform
        TimeTransform
        Transform
        VectorTransform
        infer_features
    """,
    "twotower.index": """
        ExactIndex
        Found
        Index
        LexicalIndex
        LexicalSettings
        TwoPassIndex
        convex
        exact_index
        reciprocal_ranks
        top_columns
    """,
    "twotower.losses": """
        AllItems
        BCELoss
        BPRLoss
        BothSides
        Candidates
        GBCELoss
        HardNegatives
        Impressions
        InBatch
        LogShares
        Loss
        Memory
        Mixed
        OwnItems
        Pairs
        PerQuery
        Popularity
        Sampler
        SoftmaxLoss
        StreamFrequency
        SymmetricSoftmaxLoss
        Uniform
        accidental_hits
        known_positives
        log_frequency
        mine
        softmax_loss
    """,
    "twotower.towers": """
        AttentionPooled
        CustomTower
        DecayedMean
        Encoding
        HistoryEncoder
        ItemTower
        PooledHistory
        QueryTower
        Recurrent
        SASRec
        SkipMLP
        TanhMLP
        Transformer
        TwoTower
        build_model
        to_tensors
    """,
    "twotower.training": """
        Callback
        Callbacks
        Optimizers
        Progress
        Task
        Trainer
        TrainingDivergedError
        WeightAverage
        resolve
    """,
}


@pytest.mark.parametrize("room", PUBLIC)
def test_the_names_of_a_room_are_those_of_the_list(room: str) -> None:
    module = import_module(room)
    names = PUBLIC[room].split()
    assert names == sorted(names)
    assert module.__all__ == dir(module) == names
    for name in names:
        value = getattr(module, name)
        if name == "__version__":
            continue
        assert not inspect.ismodule(value), f"{room}.{name} is a file of the room"
        assert value is getattr(import_module(value.__module__), name)


def described(value: object) -> list[tuple[str, object]]:
    """Return what a reader looks up: a function, or a class with its public methods."""
    found = [("", value)]
    if inspect.isclass(value):
        found += [
            (name, member)
            for name, member in vars(value).items()
            if inspect.isfunction(member) and not name.startswith("_")
        ]
    return found


@pytest.mark.parametrize("room", PUBLIC)
def test_every_public_name_says_what_it_takes(room: str) -> None:
    module = import_module(room)
    for name in PUBLIC[room].split():
        value = getattr(module, name)
        if name == "__version__":
            continue
        for member, thing in described(value):
            owners = value.__mro__ if member else ()
            texts = [inspect.getdoc(getattr(owner, member, None)) for owner in owners]
            assert inspect.getdoc(thing) or any(texts), f"{room}.{name}.{member} has no docstring"
        takes = inspect.isfunction(value) or (
            inspect.isclass(value)
            and inspect.isfunction(vars(value).get("__init__"))  # a data class has one of its own
            and not getattr(value, "_is_protocol", False)
            and not issubclass(value, BaseException)
        )
        if takes and inspect.signature(value).parameters:
            assert "Args:" in (inspect.getdoc(value) or ""), f"{room}.{name} describes no argument"


def test_a_name_that_is_not_there_is_told_and_a_file_of_a_room_still_is() -> None:
    losses = import_module("twotower.losses")
    with pytest.raises(
        AttributeError, match=r"module 'twotower\.losses' has no attribute 'Nothing'"
    ):
        losses.Nothing  # noqa: B018
    assert import_module("twotower.losses.softmax").SoftmaxLoss is losses.SoftmaxLoss


def test_importing_the_rooms_imports_neither_torch_nor_polars() -> None:
    rooms = ", ".join(PUBLIC)
    code = (
        f"import sys, {rooms}; print(sorted({{'torch', 'polars', 'numpy'}} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

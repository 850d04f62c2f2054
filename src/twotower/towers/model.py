"""``TwoTower``: a query tower and an item tower whose outputs have equal width."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from twotower.errors import ArgumentError, check_positive
from twotower.features.encoders import FixedFeatures, SideEncoder
from twotower.towers.event_vectors import EventVectors, RowVectors, total, vectors_of
from twotower.towers.history import HistoryEncoder, State
from twotower.towers.layers import SinceLast, unit_length
from twotower.towers.popularity import PopularityPrior
from twotower.towers.question_time import Asked, QuestionTime
from twotower.towers.spectral_part import SpectralPart

Features = Mapping[str, Tensor]


class ItemTower(nn.Module):
    """Item features -> one vector an item.

    Args:
        encoder: Encoder of the item's features.
        block: Layers on top of their sum, or None.
        dim: Width of the output.
    """

    def __init__(self, encoder: SideEncoder, block: nn.Module | None, dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.block = block
        self.dim = dim

    def inputs(self, features: FixedFeatures) -> Tensor:
        """Return the summed features, ``(n, dim)``: what a history reads of an item."""
        return cast("Tensor", self.encoder(features))

    def output(self, inputs: Tensor) -> Tensor:
        """Map ``inputs`` to the tower's output, ``(n, dim)``."""
        return inputs if self.block is None else cast("Tensor", self.block(inputs))

    def forward(self, features: Features) -> Tensor:
        """Map features of ``n`` items to ``(n, dim)``."""
        return self.output(self.inputs(features))


class QueryTower(nn.Module):
    """Query features and history -> one vector a query.

    Args:
        encoder: Encoder of the query's features, or None if it has none.
        history: Encoder of the history, or None.
        dim: Width of the output.
        block: Layers on top of the sum, or None.
        events: Encoder of the features of earlier events, or None.
        items: Encoder of earlier items, in place of the item tower's, or None.
        since: Encoder of the time since the event before, or None.
        question_time: Encoder of the time of the question, or None.
    """

    def __init__(
        self,
        encoder: SideEncoder | None,
        history: HistoryEncoder | None,
        dim: int,
        block: nn.Module | None = None,
        events: SideEncoder | None = None,
        items: SideEncoder | None = None,
        since: SinceLast | None = None,
        question_time: QuestionTime | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.history = history
        self.since = since
        self.question_time = question_time
        self.events = events
        self.items = items
        self.block = block
        self.dim = dim

    def forward(
        self,
        features: Features,
        item_vectors: Tensor,
        mask: Tensor,
        times: Tensor | None,
        wanted: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Map ``B`` queries to ``(B, dim)``, or ``n`` wanted positions of their histories to ``(n, dim)``.

        Args:
            features: One tensor a feature, ``B`` lines each.
            item_vectors: ``(B, L, dim)`` of the history, right-aligned, or ``RowVectors`` of them; ignored
                without a history encoder.
            mask: ``(B, L)`` bool.
            times: ``(B, L)`` seconds, or None.
            wanted: ``(B, L)`` bool positions, each read as if the history ended there; None wants the
                last of each. It needs a history encoder.
            asked: ``(B,)`` when each question is asked, or ``(B, L)`` where positions are wanted; None
                where that is not known.
        """
        owners = None if wanted is None else wanted.nonzero()[:, 0]
        parts: tuple[EventVectors, ...] = (vectors_of(item_vectors),)
        if self.since is not None and times is not None:
            parts = (*parts, cast("RowVectors", self.since(mask, times)))
        num = mask.shape[0] if owners is None else owners.shape[0]
        if self.history is None:
            width = self.dim if self.encoder is None else self.encoder.dim
            read = torch.zeros(num, width, device=mask.device)
        elif wanted is None:
            read = self.history.last_of_parts(parts, mask, times)
        else:
            read = self.history(total(parts), mask, times)[wanted]
            asked = None if asked is None else asked[wanted]
        return self.output(features, read, owners, asked)

    def output(
        self,
        features: Features,
        read: Tensor,
        owners: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Map what was read of histories to the tower's output, ``(n, dim)``.

        Args:
            features: One tensor a feature.
            read: ``(n, width of the features)`` of the history encoder; zeros where there is none.
            owners: ``(n,)`` int64 line of the features that each belongs to; None where they are as many.
            asked: ``(n,)`` when each question is asked, or None.
        """
        if self.question_time is not None and asked is not None:
            read = read + cast("Tensor", self.question_time(asked))
        if self.encoder is not None:
            encoded = self.encoder(features)
            read = read + (encoded if owners is None else encoded.index_select(0, owners))
        return read if self.block is None else cast("Tensor", self.block(read))


class CustomTower(nn.Module):
    """A module of the user's own in a tower's place.

    It is called with the dictionary of its side's transformed features, or with the one tensor
    where the side has just one, and must return ``(n, dim)``.

    Args:
        module: The user's module.
        feature_names: The side's fed features, in the schema's order.
        side: Named in errors.
    """

    def __init__(self, module: nn.Module, feature_names: Sequence[str], side: str) -> None:
        super().__init__()
        self.module = module
        self.feature_names = list(feature_names)
        self.side = side

    def forward(self, features: Features) -> Tensor:
        """Map features of ``n`` entities to ``(n, dim)``.

        Raises:
            ValueError: The module's output is not a matrix of one line an entity.
        """
        given = {name: features[name] for name in self.feature_names}
        first, *others = given.values()
        output, num = self.module(given if others else first), first.shape[0]
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[0] != num:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ArgumentError(f"the {self.side} tower must return ({num}, dim), got {shape}.")
        return output


class TwoTower(nn.Module):
    """The model: both towers, and how their outputs are compared.

    The score is the dot product of the two outputs. With ``similarity="cosine"`` both are
    normalised first, so the same dot product is the cosine.

    Args:
        query_tower: A ``QueryTower`` or a ``CustomTower``.
        item_tower: An ``ItemTower`` or a ``CustomTower``.
        similarity: ``"dot"`` or ``"cosine"``.
        temperature: Divisor of the score in the loss, above 0; None learns it, from 0.1 on for cosine,
            and keeps it at 1 for dot.
        history_ids: Whether a history reads only the ids of items, and none of their other features.
        sentences: The sentence encoder of both towers' texts, or None.
        popularity: The prior by popularity, or None.
        spectral: What a closed form adds to the vectors, or None.

    Raises:
        ValueError: The widths of the towers differ, where they are known before the first batch;
            the similarity is another, or the temperature is not finite and above 0.
    """

    def __init__(
        self,
        query_tower: nn.Module,
        item_tower: nn.Module,
        *,
        similarity: str = "dot",
        temperature: float | None = None,
        history_ids: bool = False,
        sentences: nn.Module | None = None,
        popularity: PopularityPrior | None = None,
        spectral: SpectralPart | None = None,
    ) -> None:
        super().__init__()
        if similarity not in ("dot", "cosine"):
            raise ArgumentError(f"similarity must be dot or cosine, got {similarity!r}.")
        check_positive(temperature=temperature)
        check_widths(getattr(query_tower, "dim", None), getattr(item_tower, "dim", None))
        self.query_tower = query_tower
        self.item_tower = item_tower
        self.similarity = similarity
        self.history_ids = history_ids
        self.sentences = sentences
        self.popularity = popularity
        self.spectral = spectral
        if temperature is None and similarity == "cosine":
            # Learnt as a logarithm, as CLIP does (Radford et al., ICML 2021, section 2.5).
            self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        else:
            self.register_buffer("log_temperature", torch.tensor(math.log(temperature or 1.0)))

    @property
    def temperature(self) -> Tensor:
        """The divisor of scores, a scalar; one that is learnt is kept at 0.01 or above."""
        value = self.log_temperature.exp()
        return value.clamp(min=0.01) if isinstance(self.log_temperature, nn.Parameter) else value

    @property
    def reads_history(self) -> bool:
        """Whether the query tower reads the query's earlier items."""
        return isinstance(self.query_tower, QueryTower) and self.query_tower.history is not None

    @property
    def reads_question_time(self) -> bool:
        """Whether the query tower reads when a question is asked."""
        tower = self.query_tower
        return isinstance(tower, QueryTower) and tower.question_time is not None

    @property
    def query_features(self) -> frozenset[str] | None:
        """Names of the query features that the query tower reads."""
        return _features_read(self.query_tower)

    @property
    def item_features(self) -> frozenset[str] | None:
        """Names of the item features that the item tower reads."""
        return _features_read(self.item_tower)

    def fixed_items(self, features: Features) -> FixedFeatures:
        """Return what ``item_inputs`` takes in place of features that are the same in every step."""
        tower = self.item_tower
        return tower.encoder.fixed(features) if isinstance(tower, ItemTower) else features

    def item_inputs(self, features: FixedFeatures) -> Tensor:
        """Return the summed features from which the item tower computes its output: ``(n, dim)``.

        A custom item tower has no inner sum of features, so that is its output.
        """
        if isinstance(self.item_tower, ItemTower):
            return self.item_tower.inputs(features)
        return cast("Tensor", self.item_tower(features))

    def want(
        self,
        items: Features | None = None,
        queries: Features | None = None,
        events: Features | None = None,
    ) -> None:
        """Name all that will be read to the tables that several processes keep: see ``ShardedTable``."""
        tower = self.query_tower
        if items is not None:
            for encoder in (
                getattr(self.item_tower, "encoder", None),
                getattr(tower, "items", None),
            ):
                if isinstance(encoder, SideEncoder):
                    encoder.want(items)
        for name, features in (("encoder", queries), ("events", events)):
            encoder = getattr(tower, name, None)
            if features is not None and isinstance(encoder, SideEncoder):
                encoder.want(features)

    @property
    def history_reads_inputs(self) -> bool:
        """Whether a history reads the ``item_inputs`` of an item, and nothing else."""
        return self._tower_reads_inputs and self.spectral is None

    @property
    def _tower_reads_inputs(self) -> bool:
        tower = self.query_tower
        own = isinstance(tower, QueryTower) and tower.items is not None
        return not (own or self.history_ids)

    def history_inputs(self, features: Features) -> Tensor:
        """Return what a history reads of ``n`` items: ``(n, width)``."""
        if self._tower_reads_inputs:
            inputs = self.item_inputs(features)
        elif self.history_ids:
            inputs = cast("ItemTower", self.item_tower).encoder.ids_alone(features)
        else:
            inputs = cast("Tensor", cast("QueryTower", self.query_tower).items(features))  # type: ignore[misc]
        if self.spectral is None:
            return inputs
        return self.spectral.of_events(inputs, features[self.spectral.feature])

    def item_outputs(self, inputs: Tensor) -> Tensor:
        """Map ``item_inputs`` to the compared vectors, ``(n, dim)``."""
        if isinstance(self.item_tower, ItemTower):
            return self._compared(self.item_tower.output(inputs))
        return self._compared(inputs)

    def encode_items(self, features: Features) -> Tensor:
        """Map features of ``n`` items to ``(n, dim)``."""
        vectors = self.item_outputs(self.item_inputs(features))
        if self.popularity is not None:
            vectors = self.popularity.of_items(vectors, features[self.popularity.feature])
        if self.spectral is not None:
            vectors = self.spectral.of_items(vectors, features[self.spectral.feature])
        return vectors

    def encode_queries(
        self,
        features: Features,
        item_vectors: Tensor | EventVectors | None = None,
        mask: Tensor | None = None,
        times: Tensor | None = None,
        wanted: Tensor | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Map ``B`` queries, or the wanted positions of their histories, to ``(n, dim)``.

        See ``QueryTower.forward`` for the shapes.

        Raises:
            ValueError: Neither features nor histories say how many queries there are.
        """
        if isinstance(self.query_tower, QueryTower):
            if mask is None or item_vectors is None:
                if not features:
                    raise ArgumentError("encode_queries needs features or histories, got neither.")
                num = next(iter(features.values())).shape[0]
                device = self.log_temperature.device
                mask = torch.zeros(num, 1, dtype=torch.bool, device=device)
                width = 0 if self.spectral is None else self.spectral.width
                item_vectors = torch.zeros(num, 1, self.query_tower.dim + width, device=device)
            own, others = self._split_events(vectors_of(item_vectors))
            vectors = self.query_tower(features, own, mask, times, wanted, asked)
            vectors = self._asking(vectors, mask.any(dim=1) if wanted is None else mask[wanted])
            if self.spectral is None or others is None:
                return vectors
            return self.spectral.of_queries(vectors, others, mask, wanted)
        vectors = self.query_tower(features)
        return self._asking(vectors, vectors.new_ones(len(vectors), dtype=torch.bool))

    def with_share(self, query_vectors: Tensor, share: float) -> Tensor:
        """Return the query vectors that another share beside the prior by popularity gives: ``(n, dim)``.

        Args:
            query_vectors: ``(n, dim)`` of ``encode_queries`` with a share of 1.
            share: Between 0 and 1; a closed form beside the towers stays as it is.
        """
        assert self.popularity is not None
        own, others = self._split(query_vectors)
        own = self.popularity.with_share(own, share)
        return own if others is None else torch.cat([own, others], dim=1)

    def event_inputs(self, item_inputs: Tensor, features: Features | None) -> Tensor:
        """Return what a history reads of events: their items, and what else is known of each.

        Args:
            item_inputs: ``(*shape, dim)`` of ``history_inputs``.
            features: One tensor a feature of the events, ``shape`` lines each; None adds nothing.
        """
        tower = self.query_tower
        if features is None or not isinstance(tower, QueryTower) or tower.events is None:
            return item_inputs
        shape = item_inputs.shape[:-1]
        flat = {name: values.flatten(0, len(shape) - 1) for name, values in features.items()}
        own, others = self._split(item_inputs)
        own = own + cast("Tensor", tower.events(flat)).view(own.shape)
        return own if others is None else torch.cat([own, others], dim=-1)

    def _split(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the query tower reads of ``history_inputs``, and what the closed form reads."""
        return (inputs, None) if self.spectral is None else self.spectral.split(inputs)

    def _split_events(self, events: EventVectors) -> tuple[EventVectors, EventVectors | None]:
        """Return the same of the events of histories."""
        return (events, None) if self.spectral is None else self.spectral.split_events(events)

    def step_queries(
        self,
        features: Features,
        item_vectors: Tensor,
        times: Tensor | None = None,
        state: State | None = None,
        asked: Asked | None = None,
    ) -> tuple[Tensor, State]:
        """Map ``B`` queries, each with one event more than ``state`` knows, to ``(B, dim)``.

        See ``HistoryEncoder.step``; the query tower must read histories. The state knows nothing of
        ``asked``, when the questions after the events are asked.
        """
        tower = self.query_tower
        assert isinstance(tower, QueryTower)
        assert tower.history is not None
        before: State = ()
        item_vectors, others = self._split(item_vectors)
        of_others: State | None = None
        if others is not None and state is not None:
            state, of_others = state[:-2], state[-2:]
        if tower.since is not None and times is not None:
            if state is not None:
                item_vectors = item_vectors + tower.since.step(times, state[0])
                state = state[1:]
            before = (times,)
        read, state = tower.history.step(item_vectors, times, state)
        vectors = tower.output(features, read, None, asked)
        asking = self._asking(vectors, vectors.new_ones(len(vectors), dtype=torch.bool))
        if self.spectral is None or others is None:
            return asking, (*before, *state)
        asking, of_others = self.spectral.step(asking, others, of_others)
        return asking, (*before, *state, *of_others)

    def _asking(self, vectors: Tensor, has_events: Tensor) -> Tensor:
        """Return the compared vectors of queries, of which some have events that are read."""
        vectors = self._compared(vectors)
        return (
            vectors if self.popularity is None else self.popularity.of_queries(vectors, has_events)
        )

    def _compared(self, vectors: Tensor) -> Tensor:
        return unit_length(vectors, self.training) if self.similarity == "cosine" else vectors


def _features_read(tower: nn.Module) -> frozenset[str] | None:
    if isinstance(tower, CustomTower):
        return frozenset(tower.feature_names)
    if isinstance(tower, (QueryTower, ItemTower)):
        return frozenset() if tower.encoder is None else frozenset(tower.encoder.names)
    return None


def check_widths(query_dim: int | None, item_dim: int | None) -> None:
    """Check that both towers have the same width; None is one that is not known before the first batch.

    Raises:
        ValueError: They have not; both are named.
    """
    if None not in (query_dim, item_dim) and query_dim != item_dim:
        raise ArgumentError(
            f"the towers must have equal dim, got query_tower {query_dim} and "
            f"item_tower {item_dim}; change one of the last layers."
        )

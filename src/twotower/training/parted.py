"""Encoding the queries of a batch in parts that threads compute side by side."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from twotower.draws import drawing_from
from twotower.workers import of_each

MOST_PARTS = 4
"""Parts of a batch at most: more would use more cores, and take longer on one."""


class Parted:
    """Vectors of queries that are computed in parts, each by one thread, with their gradients.

    Each part draws from a generator of its own, and gradients are added in the order of the parts, so that
    they are the same however many threads there are.

    Args:
        function: Computes the vectors of a slice of the queries from the inputs: ``(n, d)`` float.
        inputs: ``(m, d)`` float that the function reads.
        parts: Slices of the queries, in order.
        parameters: All parameters that the function may read.

    Source: Gao, Zhang, Han and Callan, RepL4NLP 2021 (GradCache), section 3, for the gradient that passes
        through a leaf. Differs: each part keeps its graph, and is computed once.
    """

    def __init__(
        self,
        function: Callable[[Tensor, slice], Tensor],
        inputs: Tensor,
        parts: Sequence[slice],
        parameters: Sequence[nn.Parameter],
    ) -> None:
        self._inputs = inputs
        self._targets = [x for x in (inputs, *parameters) if x.requires_grad]
        seeds = torch.randint(2**62, (len(parts),)).tolist()  # as the step's other draws

        def encode(place: int) -> tuple[Tensor, Tensor]:
            own = inputs.detach().requires_grad_(inputs.requires_grad)
            with drawing_from(seeds[place]):
                return own, function(own, parts[place])

        self._encoded = of_each(encode, range(len(parts)))
        found = [vectors.detach() for _, vectors in self._encoded]
        self._lengths = [len(vectors) for vectors in found]
        self.vectors = torch.cat(found).requires_grad_()
        """All of them, ``(n, d)``: a leaf, whose gradient ``backward`` passes on."""

    def backward(self) -> None:
        """Add the gradients of the inputs and of the parameters, given ``vectors.grad``."""
        gradient = self.vectors.grad
        if gradient is None:
            return
        of_parts = torch.split(gradient, self._lengths)

        def gradients(place: int) -> Sequence[Tensor | None]:
            own, vectors = self._encoded[place]
            if not vectors.requires_grad:
                return [None] * len(self._targets)
            read = [own if target is self._inputs else target for target in self._targets]
            return torch.autograd.grad(vectors, read, of_parts[place], allow_unused=True)

        found = of_each(gradients, range(len(of_parts)))
        for target, parts in zip(self._targets, zip(*found, strict=True), strict=True):
            for part in parts:
                if part is not None:
                    target.grad = part if target.grad is None else target.grad + part

"""Encoding a batch in pieces and again for its gradients: the batch may exceed the memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Recomputed:
    """Vectors that are computed piece by piece without a graph, and once more when their gradient is known.

    Only one piece's activations are ever held. The second pass draws the same random numbers as the
    first, so that dropout leaves out the same values and the gradients are those of one pass over the
    whole batch, up to rounding.

    Args:
        function: Computes the vectors of a slice, ``(n, d)``: one for each that it is given, or any number.
        num: What the function is given, in all.
        size: Of that a piece, at least 1.
        device: Whose generator the function draws from.

    Source: Gao, Zhang, Han and Callan, RepL4NLP 2021 (GradCache), section 3.
    """

    def __init__(
        self, function: Callable[[slice], Tensor], num: int, size: int, device: torch.device
    ) -> None:
        self._function = function
        self._pieces = [slice(start, min(start + size, num)) for start in range(0, num, size)]
        # Layers draw from the global generators: the processor's, and the device's where it has its own.
        self._generators: list[tuple[Any, tuple[torch.device, ...]]] = [(torch, ())]
        if device.type != "cpu":
            which = (device,) if device.type == "cuda" else ()  # there may be several
            self._generators.append((torch.get_device_module(device), which))
        self._states = []
        vectors = []
        with torch.no_grad():
            for piece in self._pieces:
                self._states.append(self._random_states())
                vectors.append(function(piece))
        self._lengths = [len(part) for part in vectors]
        self.vectors = torch.cat(vectors).requires_grad_()
        """All of them, ``(n, d)``: a leaf, whose gradient ``backward`` passes on."""

    def backward(self) -> None:
        """Add the gradients of all that the function read, given ``vectors.grad``."""
        gradient = self.vectors.grad
        if gradient is None:
            return
        before = self._random_states()
        gradients = torch.split(gradient, self._lengths)
        for piece, states, part in zip(self._pieces, self._states, gradients, strict=True):
            self._set(states)
            again = self._function(piece)
            if again.requires_grad:
                again.backward(part)  # type: ignore[no-untyped-call]
        self._set(before)

    def _random_states(self) -> list[Tensor]:
        return [module.get_rng_state(*which) for module, which in self._generators]

    def _set(self, states: list[Tensor]) -> None:
        for (module, which), state in zip(self._generators, states, strict=True):
            module.set_rng_state(state, *which)

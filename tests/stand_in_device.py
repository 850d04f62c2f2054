"""A CPU that stands in for a CUDA device: tensors say that they are there, and refuse what CUDA refuses.

Numbers are computed by the CPU. What differs is what may be computed: operands on two devices, a generator
of another one and ``numpy()`` of what is not in the processor's memory end in an error, as they do with a
GPU. Which kernels CUDA has, how fast they are and how they round is not seen here; ``pytest -m gpu`` is for
that. Settings name the device with its number, ``cuda:0``. It holds no sparse tensors, and only the thread
that asked for it has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
# What PyTorch believes inside, as autograd needs a device that is there. Whoever asks is told ``DEVICE``.
_INSIDE = torch.device("meta")
_NAMES = {DEVICE.type, _INSIDE.type}
_aten = torch.ops.aten
_MOVES = {_aten._to_copy, _aten.copy_}
_INDEXES = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


class Elsewhere(Tensor):
    """A tensor on the device, whose numbers are in ``held``, a tensor of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_INSIDE,
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def to(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda x: _INSIDE if x == DEVICE else x, (args, kwargs))
        return super().to(*args, **kwargs)

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {DEVICE} to numpy; use cpu() first.")

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held!r} on {DEVICE}"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


class _Factories(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what is computed of no tensor at all, such as ``zeros(3, device="cuda")``."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to load the compiler takes a second."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(function, args, kwargs or {})


class Generator(torch.Generator):
    """A generator that is known to draw for the device, or for the CPU."""

    of_device: ClassVar[dict[int, "Generator"]] = {}
    """Those that draw for the device, by their address."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        if torch.device(device).type == DEVICE.type:
            cls.of_device[made._cdata] = made  # type: ignore[attr-defined]
        return made


def _computed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a function of PyTorch gives, on the device where CUDA would have it."""
    asked = kwargs.get("device")
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    is_there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    if is_there and function.overloadpacket not in _MOVES:
        _check(function, args, kwargs, tensors)
    goes_there = is_there if asked is None else torch.device(asked).type in _NAMES
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in Generator.of_device) != goes_there:
        raise RuntimeError(f"{function} got a generator of another device than its numbers are on.")
    found = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    changed = _changed(function, args, kwargs)
    if changed:
        if is_there and torch.Tag.inplace_view in function.tags:  # its shape changes, too
            return return_and_correct_aliasing(  # type: ignore[no-untyped-call]
                function, args, kwargs, changed[0]
            )
        num = len(function._schema.returns)
        return (None, changed[0], tuple(changed))[min(num, 2)]
    return tree_map(_placed, found) if goes_there else found


def _check(function: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Refuse operands on two devices.

    A number on the CPU may stand beside tensors elsewhere, and rows on the CPU may index them.
    """
    if function.overloadpacket in _INDEXES:
        indexed, indices, *values = args
        if isinstance(indexed, Elsewhere):
            tensors = [indexed, *(x for x in values if isinstance(x, Tensor))]
        else:
            tensors = [indexed, *(x for x in tree_leaves(indices) if isinstance(x, Tensor))]
    changed = _changed(function, args, kwargs)
    others = [
        x
        for x in tensors
        if not isinstance(x, Elsewhere) and (x.ndim or any(x is y for y in changed))
    ]
    if others:
        raise RuntimeError(
            f"{function} expected all tensors to be on the same device, got {DEVICE} and cpu "
            f"{[tuple(x.shape) for x in others]}."
        )


def _changed(function: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that a function changes."""
    found = []
    for place, name in _written(function):
        given = args[place] if place < len(args) else kwargs.get(name)
        found += [x for x in tree_leaves(given) if isinstance(x, Tensor)]
    return found


@cache
def _written(function: Any) -> list[tuple[int, str]]:
    """Return the places and names of the arguments that a function changes."""
    arguments = enumerate(function._schema.arguments)
    return [(n, a.name) for n, a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Elsewhere) else leaf


def _placed(leaf: Any) -> Any:
    return Elsewhere(leaf) if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere) else leaf


def _rng_state(device: Any) -> Tensor:
    assert device == DEVICE
    return torch.get_rng_state()


def _set_rng_state(state: Tensor, device: Any) -> None:
    assert device == DEVICE
    torch.set_rng_state(state)


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """Let this process have one CUDA device, which the CPU stands in for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
        patch.setattr(torch.cuda, "device_count", lambda: 2)  # the other one is nobody's business
        patch.setattr(torch.cuda, "get_rng_state", _rng_state)
        patch.setattr(torch.cuda, "set_rng_state", _set_rng_state)
        patch.setattr(torch.backends.cudnn, "enabled", False)
        memory = SimpleNamespace(total_memory=2**34)
        patch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
        patch.setattr(torch, "Generator", Generator)
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        only_lift = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # ``torch.tensor`` moves numbers where it is seen
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Factories():  # type: ignore[no-untyped-call]
                yield DEVICE
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
            torch._C._set_only_lift_cpu_tensors(only_lift)
            Generator.of_device.clear()

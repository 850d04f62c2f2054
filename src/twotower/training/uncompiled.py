"""Optimizers that leave torch's compiler unloaded, which takes a second and which no training here uses."""

import inspect

import torch


class Uncompiled(torch.optim.Optimizer):
    """What torch's optimizers share, as it is written there.

    torch wraps these functions so that its compiler passes over them, and loads it for that when one is
    first called.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class Adam(Uncompiled, torch.optim.Adam):
    """``torch.optim.Adam``."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(Uncompiled, torch.optim.AdamW):
    """``torch.optim.AdamW``."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))

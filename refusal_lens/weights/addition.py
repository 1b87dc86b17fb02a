"""A bias for a model that has none, where its configuration can say so."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model.stream.empty import empty_model
from .arithmetic import NewBias
from .names import file_names


def config_with_bias(
    model: nn.Module, config: Any, change: NewBias, trust_remote_code: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What to change in config.json so that a module has a bias, and all biases that this adds.

    Every switch of the configuration that is off and speaks of a bias is tried on an empty model; the one that
    adds fewest tensors wins, and all but the wanted one are zeros. Raises InputError when none does.
    """
    tried: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
    for switch in _switches(config):
        changed = copy.deepcopy(config)
        setattr(changed, switch, True)
        biases = _added(model, changed, change, trust_remote_code)
        if biases:
            tried.append(({switch: True}, biases))
    if not tried:
        raise InputError(
            f"addition in {change.module}: {type(model).__name__} has no bias there and its config.json cannot "
            "ask for one; use --to lora, --to steered or hooks instead"
        )
    return min(tried, key=lambda option: len(option[1]))


def _switches(config: Any) -> Iterator[str]:
    for name, value in config.to_dict().items():
        if "bias" in name and value is False:
            yield name


def _added(
    model: nn.Module, config: Any, change: NewBias, trust_remote_code: bool
) -> dict[str, Tensor]:
    """The biases that a configuration has beyond the model's own; empty unless the wanted one is there."""
    try:
        other = empty_model(config, trust_remote_code=trust_remote_code)
    except InputError:
        return {}
    old, new = _shapes(model), _shapes(other)
    more = {name: shape for name, shape in new.items() if name not in old}
    same = all(new.get(name) == shape for name, shape in old.items())
    if change.parameter not in more or not same or not all(n.endswith("bias") for n in more):
        return {}
    names = file_names(other, more)
    if any(names.by_parameter.get(name) != (name,) for name in more):
        return {}
    zeros = {name: torch.zeros(shape) for name, shape in more.items()}
    return zeros | {change.parameter: change.vector.float()}


def _shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}

"""A model as its configuration describes it, without storage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ...errors import InputError
from .record import LOOKS_AT_VALUES
from .trace import Trace, trace

CANNOT = (
    *(ValueError, TypeError, KeyError, IndexError, ImportError, AttributeError),
    *(RuntimeError, ArithmeticError, AssertionError, StrictDataclassError),
)
"""What transformers raises for configurations that describe no model."""


def empty_model(config: Any, *, trust_remote_code: bool = False, meta: bool = False) -> nn.Module:
    """The Hugging Face causal model of a configuration, with parameters that have no values.

    Fake tensors, or with meta=True tensors on the meta device. Raises InputError when transformers cannot
    build it.
    """
    try:
        try:
            with torch.device("meta") if meta else FakeTensorMode():
                return _from_config(config, trust_remote_code)
        except DataDependentOutputException:
            # Its initialisation looks at values; on the meta device it does not.
            with torch.device("meta"):
                return _from_config(config, trust_remote_code)
    except CANNOT as error:
        raise InputError(
            f"model type {getattr(config, 'model_type', '?')}: transformers cannot build it "
            f"({(str(error).splitlines() or ['?'])[0]}); is it a causal language model?"
        ) from error


def _from_config(config: Any, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation="eager", trust_remote_code=trust_remote_code
    )
    return model.eval()


def trace_empty(model: nn.Module) -> Trace:
    """What writes to the residual stream of an empty model; needs neither memory nor values."""
    if next(model.parameters()).is_meta:
        with FakeTensorMode():
            model = _filled(model, _pretended)
    try:
        return trace(model)
    except LOOKS_AT_VALUES:
        # The forward pass looks at values (a mixture that loops over its experts): let it see zeros.
        return trace(_filled(model, _one_stored_zero))


def _pretended(tensor: Tensor) -> Tensor:
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cpu")


def _one_stored_zero(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=tensor.dtype).expand(tuple(tensor.shape))


def _filled(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the model with other tensors in the place of its own; what was shared stays shared."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(make(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = make(buffer)
    return copy.deepcopy(model, memo)

"""A chat model beside the base model that it was tuned from (paper, Fig. 24)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ..activations import cache_residuals
from ..conversations import Prompt
from ..direction import Direction
from ..door import checked
from ..errors import InputError
from ..metrics import cosine_similarity
from ..model import ChatModel
from ..progress import Progress


@checked
def agreement(mine: Sequence[str], theirs: Sequence[str]) -> float:
    """Share of replies that are equal, letter for letter. Raises InputError unless there are as many of both."""
    if not mine or len(mine) != len(theirs):
        raise InputError(f"replies: got {len(mine)} and {len(theirs)}, need as many, at least one")
    return sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)


@checked
def cosine_in_both(
    chat: ChatModel,
    base: ChatModel,
    direction: Direction,
    *,
    prompts: Mapping[str, Sequence[Prompt]],
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Cosine of resid_pre at the last position with the chat model's r, in both models, by layer.

    prompts: kind -> prompts. Columns kind, condition ("chat" or "base"), layer, position, mean, sd, n.
    """
    rows = []
    total, done = 2 * sum(map(len, prompts.values())), 0
    for condition, model in (("chat", chat), ("base", base)):
        for kind, asked in prompts.items():
            streams = cache_residuals(model, asked, places=["post[-1]"], batch_size=batch_size)
            done += len(asked)
            if on_progress is not None:
                on_progress("cosines", done, total)
            cosines = cosine_similarity(streams[:, 0], direction.vector)
            mean, sd = cosines.mean(0).tolist(), cosines.std(0, unbiased=False).tolist()
            shared = {"kind": kind, "condition": condition, "position": -1, "n": len(cosines)}
            rows += [
                shared | {"layer": layer, "mean": mean[layer], "sd": sd[layer]}
                for layer in range(model.n_layers)
            ]
    return pd.DataFrame(rows)[["kind", "condition", "layer", "position", "mean", "sd", "n"]]

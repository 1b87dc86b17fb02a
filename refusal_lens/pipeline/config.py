"""What a run is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .. import organism
from ..display import shown
from ..door import at_least, checked
from ..errors import InputError
from .concept import Concept


@shown()
@checked
@dataclass(frozen=True)
class RunConfig:
    """Every setting of `refusal-lens run`; the names are those of its options.

    model: Hugging Face name, folder, or "organism". base: the base model that the chat model was tuned from, to
    compare with (the organism's own by default). concept: a TOML file that says what the run is about, as
    `Concept.read` takes it. Without one it is `name`, refusal by default; prompts come from positive and negative
    (files or data set names), from splits (a folder in the reference repository's layout), or, with neither, from
    the organism's toy world; places and first_tokens are those of `Concept`. n_train, n_val and n_test: prompts of
    each kind, by default the concept's sizes. n_null random directions and n_moves norm-matched moves make the
    nulls. system, prefill and thinking are those of `ChatFormat.from_tokenizer`. batch_size: prompts in a forward
    pass, by default 64, or 256 for small models. allow_partial: go on where hooks leave out a write to the residual
    stream.
    """

    model: str = "organism"
    base: str | None = None
    concept: str | None = None
    positive: str | None = None
    negative: str | None = None
    splits: str | None = None
    name: str | None = None
    places: tuple[str, ...] | None = None
    first_tokens: tuple[str, ...] | None = None
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    revision: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    system: str | None = None
    prefill: str = ""
    thinking: bool | None = None
    kl_threshold: float = 0.1
    induce_threshold: float = 0.0
    prune_layers: float = 0.2
    mode: Literal["exhaustive", "lazy"] = "exhaustive"
    max_new_tokens: int | None = None
    batch_size: int | None = None
    n_null: int = 32
    n_moves: int = 8
    null_prompts: int = 32
    null_tokens: int = 16
    allow_partial: bool = False

    def __post_init__(self) -> None:
        for name in ("n_train", "n_val", "n_test", "max_new_tokens", "batch_size", "null_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: got {value}, need at least 1")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed: got {self.seed}, need 0 to 2^63 - 1")
        at_least(0, n_moves=self.n_moves)
        if not 0 <= self.prune_layers < 1:
            raise InputError(f"prune_layers: got {self.prune_layers}, need 0 <= share < 1")
        if self.n_null < 0 or self.null_prompts < 1:
            raise InputError(f"n_null: got {self.n_null}, need 0 (no nulls) or more")
        if (self.positive is None) != (self.negative is None):
            raise InputError("positive and negative prompts: got one of them, need both or neither")
        prompts = [name for name in ("concept", "positive", "splits") if getattr(self, name) is not None]
        if len(prompts) > 1:
            raise InputError(f"prompts: got --{prompts[0]} and --{prompts[1]}, need one of them")
        if self.concept is not None and (self.name, self.places, self.first_tokens) != (None,) * 3:
            raise InputError(
                "concept: got a file and --name, --places or --first-tokens, which the file says; leave those out"
            )
        if self.model != "organism" and not prompts:
            raise InputError(
                f"prompts for {self.model}: none given, and the bundled ones are of the organism's toy world; "
                "name --positive and --negative, --concept or --splits"
            )
        if self.name not in (None, "refusal") and not prompts:
            raise InputError(
                f"prompts of {self.name!r:.60}: none given, and the bundled ones are of refusal; name --positive and "
                "--negative, or --concept"
            )

    @property
    def base_model(self) -> str | None:
        """The base model to compare with, or None."""
        if self.base is None and self.model == "organism":
            return str(organism.folder("base"))
        return self.base

    def asked_concept(self) -> Concept:
        """What the run is about. Raises InputError for a file that holds no concept."""
        if self.concept is not None:
            return Concept.read(self.concept)
        name = self.name or "refusal"
        kinds = ("harmful", "harmless") if name == "refusal" else ("positive", "negative")
        return Concept(
            name, kinds, self.positive, self.negative, self.places or (), self.first_tokens
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able settings."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @property
    def rule(self) -> dict[str, float]:
        """The settings of the selection rule."""
        return self.pick("kl_threshold", "induce_threshold", "prune_layers")

    def pick(self, *names: str) -> dict[str, Any]:
        """Some of the settings, for a step's key."""
        return {name: self.as_dict()[name] for name in names}


def chat_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a run's conversations are written, from its settings: what `ChatModel.load` takes."""
    return {name: config[name] for name in ("system", "prefill", "thinking") if name in config}

"""What the model directory's config.json and generation_config.json say about generation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from common.errors import StartupError

# generation_config.json's name → ours, with the range that `SamplingParams` allows.
_SAMPLING_FIELDS: dict[str, tuple[str, type, float, float]] = {
    "temperature": ("temperature", float, 0.0, float("inf")),
    "top_p": ("top_p", float, 0.0, 1.0),
    "top_k": ("top_k", int, 0, float("inf")),
    "min_p": ("min_p", float, 0.0, 1.0),
    "repetition_penalty": ("repetition_penalty", float, 1e-6, float("inf")),
    "max_new_tokens": ("max_tokens", int, 1, float("inf")),
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What this tokenizer knows of the model without any scheduler.

    Attributes:
        name: in the API.
        max_token_id: the largest id that encoding can give.
        max_model_len: tokens of prompt and output; None if only the schedulers know.
        vocab_size: rows of the model's embedding; None if only the schedulers know.
        eos_ids: token ids that end an output.
        sampling_defaults: values for `SamplingParams` fields that a client leaves out.
    """

    name: str
    max_token_id: int
    max_model_len: int | None = None
    vocab_size: int | None = None
    eos_ids: tuple[int, ...] = ()
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)


def read_model_info(
    model_dir: Path,
    *,
    name: str,
    max_token_id: int,
    tokenizer_eos_id: int | None,
    max_model_len: int | None = None,
    with_sampling_defaults: bool = True,
) -> ModelInfo:
    """Read a Hugging Face model directory.

    Args:
        model_dir: has config.json, may have generation_config.json.
        name: in the API.
        max_token_id: of the tokenizer.
        tokenizer_eos_id: the tokenizer's own end token; it ends an output besides those that the
            files name, for chat models are published with files that name the base model's only.
        max_model_len: replaces what config.json says.
        with_sampling_defaults: take sampling defaults from generation_config.json.

    Raises:
        StartupError: a file is missing or has values that cannot be used.
    """
    config = _read_object(model_dir / "config.json")
    config = {**config, **config.get("text_config", {})}
    path = model_dir / "generation_config.json"
    generation = _read_object(path) if path.exists() else {}
    eos_ids = _eos_ids(generation.get("eos_token_id", config.get("eos_token_id")), model_dir)
    if tokenizer_eos_id is not None:
        eos_ids = (*eos_ids, tokenizer_eos_id)
    trained_len = config.get("max_position_embeddings", config.get("n_positions"))
    return ModelInfo(
        name=name,
        max_token_id=max_token_id,
        max_model_len=max_model_len or trained_len,
        vocab_size=config.get("vocab_size"),
        eos_ids=tuple(dict.fromkeys(eos_ids)),
        sampling_defaults=_sampling_defaults(generation) if with_sampling_defaults else {},
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise StartupError(f"{path}: {error}") from None


def _eos_ids(value: object, model_dir: Path) -> tuple[int, ...]:
    match value:
        case None:
            return ()
        case int():
            return (value,)
        case list() if all(isinstance(item, int) for item in value):
            return tuple(value)
        case _:
            raise StartupError(
                f"{model_dir}: eos_token_id is {value!r}, not an id or a list of ids"
            )


def _sampling_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    defaults: dict[str, float] = {}
    for theirs, (ours, kind, least, most) in _SAMPLING_FIELDS.items():
        value = generation.get(theirs)
        if value is None:
            continue
        if theirs == "top_k" and value == -1:  # off, as in vLLM
            value = 0
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most or kind(value) != value:
            raise StartupError(
                f"generation_config.json: {theirs} is {value!r}, not a {kind.__name__} between "
                f"{least} and {most}; --generation-config none ignores it"
            )
        defaults[ours] = kind(value)
    return defaults

"""The tokenizer that a model directory holds, read without running code that comes with it.

Most directories have a tokenizer.json that says all. Where another file changes what that says, or
there is none, transformers reads the directory: it knows every format, and takes half a second to
import.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from common.errors import ConfigError, StartupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"  # of transformers 4
ADDED_TOKENS_FILE = "added_tokens.json"  # likewise
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_DIRECTORY = "additional_chat_templates"
DEFAULT = "default"  # the name of the template that is used if no other fits better

# What templates know them by.
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTS = ("extra_special_tokens", "additional_special_tokens")  # in transformers 5, and 4
_SWITCHES = ("add_bos_token", "add_eos_token")  # which a tokenizer.json overrides
# Entries of the configuration that make of tokenizer.json something else.
_CHANGING = ("fast_tokenizer_files", "split_special_tokens", "fix_mistral_regex")


@dataclass(frozen=True, slots=True)
class ModelTokenizer:
    """All that turns text into ids.

    Attributes:
        backend: encodes.
        special_tokens: by the names that templates know: `bos_token`, `eos_token` and so on.
        chat_templates: by name; most models have one, called "default", or none.
    """

    backend: Tokenizer
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    @property
    def eos_id(self) -> int | None:
        """The id of the tokenizer's own end token."""
        token = self.special_tokens.get("eos_token")
        return None if token is None else self.backend.token_to_id(token)


def load_tokenizer(model_dir: Path, chat_template: Path | None = None) -> ModelTokenizer:
    """Load the tokenizer of a model directory.

    Args:
        model_dir: Hugging Face layout.
        chat_template: jinja file that replaces the model's own templates.

    Raises:
        ConfigError: there is no such directory, or the template file cannot be read.
        StartupError: the directory has no tokenizer that can be used.
    """
    if not model_dir.is_dir():
        raise ConfigError(f"--model {model_dir}: no such directory")
    try:
        tokenizer = _read(model_dir) or _read_with_transformers(model_dir)
    except StartupError:
        raise
    except Exception as error:  # tokenizers raises nothing narrower
        raise StartupError(f"{model_dir}: no usable tokenizer: {error}") from error
    if chat_template is None:
        return tokenizer
    try:
        template = chat_template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {chat_template}: {error}") from None
    return ModelTokenizer(tokenizer.backend, tokenizer.special_tokens, {DEFAULT: template})


def from_transformers(tokenizer: "PreTrainedTokenizerBase") -> ModelTokenizer:
    """What a tokenizer of transformers is made of.

    Raises:
        StartupError: it is written in Python, which is slow and does not tell how it decodes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise StartupError(
            f"{type(tokenizer).__name__} has no fast tokenizer: convert the model's tokenizer "
            f"to a {TOKENIZER_FILE}"
        )
    templates = _named_templates(tokenizer.chat_template)
    return ModelTokenizer(backend, tokenizer.special_tokens_map, templates)


def _read_with_transformers(model_dir: Path) -> ModelTokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # only now: see above

    has_file = (model_dir / TOKENIZER_FILE).exists()
    kind: Any = PreTrainedTokenizerFast if has_file else AutoTokenizer
    return from_transformers(
        kind.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    )


def _read(model_dir: Path) -> ModelTokenizer | None:
    """None: tokenizer.json does not say all."""
    if not (model_dir / TOKENIZER_FILE).exists():
        return None
    backend = Tokenizer.from_file(str(model_dir / TOKENIZER_FILE))
    config = _read_object(model_dir / CONFIG_FILE)
    is_old = "added_tokens_decoder" not in config
    if is_old:
        config |= _read_object(model_dir / SPECIAL_TOKENS_FILE)
    special_tokens = {n: _content(config[n]) for n in _NAMED if config.get(n) is not None}
    if backend.padding is not None:
        special_tokens.setdefault("pad_token", backend.padding["pad_token"])
    has_more = (
        any(config.get(name) for name in _CHANGING)
        or _has_names_of_its_own(config)
        or (is_old and (model_dir / ADDED_TOKENS_FILE).exists())
        or not _adds_nothing(config, special_tokens, backend.get_added_tokens_decoder())
    )
    if has_more:
        return None
    return ModelTokenizer(backend, special_tokens, _chat_templates(model_dir, config))


def _adds_nothing(
    config: Mapping[str, Any], special_tokens: Mapping[str, str], added: Mapping[int, AddedToken]
) -> bool:
    """Whether all tokens that a configuration names are in the tokenizer, and as it has them."""
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        if repr(added.get(int(token_id))) != repr(AddedToken(**token)):
            return False
    known = {token.content for token in added.values()}
    extra = [_content(token) for name in _LISTS for token in config.get(name) or []]
    return known.issuperset([*special_tokens.values(), *extra])


def _has_names_of_its_own(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names tokens as only this model does, such as `image_token`."""
    names = {name for name in config if name.endswith("_token")} - {*_NAMED, *_SWITCHES}
    return bool(names) or any(isinstance(config.get(name), dict) for name in _LISTS)


def _content(token: Any) -> str:
    """The text of a token, which may be written out with all that is known of it."""
    content = token["content"] if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise TypeError(f"{token!r} is not a token")
    return content


def _chat_templates(model_dir: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files go before what the configuration holds."""
    files = {path.stem: path for path in (model_dir / TEMPLATE_DIRECTORY).glob("*.jinja")}
    if (model_dir / TEMPLATE_FILE).exists():
        files[DEFAULT] = model_dir / TEMPLATE_FILE
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    return _named_templates(config.get("chat_template"))


def _named_templates(templates: Any) -> dict[str, str]:
    match templates:
        case None:
            return {}
        case str():
            return {DEFAULT: templates}
        case dict():
            return dict(templates)
        case _:
            return {each["name"]: each["template"] for each in templates}


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])

"""What can happen to the tokenizer's state, and what it can ask for. Pure types.

Events: everything a link reports (`common.link.LinkEvent`), and those below. Actions are performed
in order by `service.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from common.errors import RequestError
from common.link import LinkEvent
from common.messages import AnyMessage, Prompt


@dataclass(frozen=True, slots=True)
class Encode:
    """Turn the prompt into ids; answered by `Encoded` or `EncodeFailed` with the same ticket."""

    ticket: int
    prompt: Prompt
    max_model_len: int | None  # a prompt with more tokens than this may be refused at once


@dataclass(frozen=True, slots=True)
class Send:
    """Queue a message to a peer.

    If the link refuses it, `SendRefused` follows before any other event, and so it does for all
    that these actions still have for the same peer: messages to a peer never overtake each other.
    """

    to: Literal["gateway", "scheduler"]
    instance_id: str
    message: AnyMessage


@dataclass(frozen=True, slots=True)
class Warn:
    """Write a warning to the log."""

    event: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The prompt of a request has become ids (packed)."""

    ticket: int
    prompt_ids: bytes


@dataclass(frozen=True, slots=True)
class EncodeFailed:
    ticket: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class SendRefused:
    send: Send


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the peers to send nothing new; what comes before they hear it is served."""


Action: TypeAlias = Encode | Send | Warn
Event: TypeAlias = LinkEvent | Encoded | EncodeFailed | SendRefused | Tick | Drain

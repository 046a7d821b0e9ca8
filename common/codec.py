"""Message ⇄ bytes: MessagePack arrays `[tag, *fields]`, validated against the message's type.

Nothing but the types of `common.messages` can come out of `decode`, whatever goes in.
"""

from typing import Final

import msgspec

from common.errors import ProtocolError
from common.messages import AnyMessage

# Above the largest message that a service makes: all token ids of the largest HTTP body allowed.
MAX_MESSAGE_BYTES: Final = 64 * 1024**2

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """The message as it travels.

    Raises:
        ProtocolError: it would be larger than `MAX_MESSAGE_BYTES`; every peer would refuse it.
    """
    data = _encoder.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} of {len(data)} bytes exceeds {MAX_MESSAGE_BYTES}",
            reason="oversized",
        )
    return data


def decode(data: bytes, max_bytes: int = MAX_MESSAGE_BYTES) -> AnyMessage:
    """The inverse of `encode`.

    Raises:
        ProtocolError: `reason` is `oversized`, `malformed` (truncated, not MessagePack, trailing
            bytes) or `invalid` (unknown tag, wrong number or types of fields).
    """
    if len(data) > max_bytes:
        raise ProtocolError(f"message of {len(data)} bytes exceeds {max_bytes}", reason="oversized")
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise ProtocolError(str(error), reason="invalid") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(str(error), reason="malformed") from None

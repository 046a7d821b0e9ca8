"""Everything that can go wrong on purpose.

    SplitfuseError
    ├── ConfigError          a flag, variable or file is unusable        process exits with 2
    ├── StartupError         the service cannot come up                  process exits with 3
    ├── ProtocolError        a peer's fault: its message is dropped, it is named in the log
    ├── RecordError          a record of what the scheduler did cannot be made or read
    ├── InvalidTransition    our fault: a request moved between states that are not connected
    └── RequestError         one request's fault or fate, carries a `FailureCode`

A `RequestError` never leaves its request: it travels upstream as `messages.RequestFailed`
and becomes an HTTP status at the gateway.
"""

from enum import StrEnum


class SplitfuseError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(SplitfuseError):
    """A flag, an environment variable or a file has a value that cannot be used."""


class StartupError(SplitfuseError):
    """The service cannot start: model unreadable, address taken, memory too small."""


class ProtocolError(SplitfuseError):
    """A peer sent something that is not a valid message for this link.

    Args:
        message: what is wrong with it.
        reason: one word for the metric's label.
    """

    def __init__(self, message: str, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason


class RecordError(SplitfuseError):
    """A record of what the scheduler did, or the state in it, cannot be made or read."""


class InvalidTransition(SplitfuseError):
    """A request was asked to move between two states that are not connected."""


class FailureCode(StrEnum):
    """Why a request failed; the value is what clients see as `error.code`."""

    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    KV_CACHE_EXCEEDED = "kv_cache_exceeded"
    MODEL_NOT_FOUND = "model_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERNAL = "internal_error"

    @property
    def http_status(self) -> int:
        """The status that the gateway answers with while headers are still held."""
        return _HTTP_STATUS[self]


_HTTP_STATUS = {
    FailureCode.INVALID_REQUEST: 400,
    FailureCode.CONTEXT_LENGTH_EXCEEDED: 400,
    FailureCode.KV_CACHE_EXCEEDED: 400,
    FailureCode.MODEL_NOT_FOUND: 404,
    FailureCode.REQUEST_TOO_LARGE: 413,
    FailureCode.CANCELLED: 499,
    FailureCode.INTERNAL: 500,
    FailureCode.OVERLOADED: 503,
    FailureCode.UNAVAILABLE: 503,
    FailureCode.TIMEOUT: 504,
}


class RequestError(SplitfuseError):
    """One request cannot go on.

    Args:
        code: the kind of failure.
        message: a sentence for the client; names the limit and the value.
        param: the request field at fault, if one is.
    """

    def __init__(self, code: FailureCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

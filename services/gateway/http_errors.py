"""Errors as HTTP: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from common.errors import FailureCode, RequestError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    499: "cancelled",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout_error",
}
# Seconds until it is worth asking again: a queue moves on at once, a service restarts in a while.
_RETRY_AFTER_S = {FailureCode.OVERLOADED: 1, FailureCode.UNAVAILABLE: 5}


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class HttpError:
    """One error answer."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> ErrorBody:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return ErrorBody(ErrorDetail(self.message, kind, self.param, self.code))


def http_error(error: RequestError) -> HttpError:
    """The answer that a failed request gets."""
    retry_after_s = _RETRY_AFTER_S.get(error.code)
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return HttpError(error.code.http_status, error.code, error.message, error.param, headers)

"""Whether a gateway takes work: a decision at the door, before anything is sent.

Pure. A refusal is a `RequestError` that names the limit; nothing waits in a queue that cannot move.
"""

from common.errors import FailureCode, RequestError
from services.gateway.streams import GatewayState


def check_admission(
    state: GatewayState, model: str, num_new: int, max_num_queued_reqs: int, draining: bool
) -> None:
    """Refuse `num_new` sequences for `model`, or return.

    A model whose tokenizers have all just gone still counts as served: its requests wait for one
    to come back (see `streams.MAX_WAIT_S`).

    Raises:
        RequestError: INVALID_REQUEST, MODEL_NOT_FOUND, OVERLOADED or UNAVAILABLE.
    """
    if draining:
        raise RequestError(FailureCode.UNAVAILABLE, "the server is shutting down")
    if not state.models:
        raise RequestError(
            FailureCode.UNAVAILABLE, "the server is not ready: no tokenizer serves a model yet"
        )
    if model not in state.models:
        served = ", ".join(sorted(state.models))
        raise RequestError(
            FailureCode.MODEL_NOT_FOUND,
            f"the model {model[:200]!r} does not exist; served here: {served}",
            "model",
        )
    if num_new > max_num_queued_reqs:
        raise RequestError(
            FailureCode.INVALID_REQUEST,
            f"the request asks for {num_new} sequences (prompts times n), "
            f"more than the {max_num_queued_reqs} that this server ever runs at once",
            "n",
        )
    if state.num_requests + num_new > max_num_queued_reqs:
        raise RequestError(
            FailureCode.OVERLOADED,
            f"the server is full: {state.num_requests} sequences are in work, "
            f"{num_new} more would exceed the limit of {max_num_queued_reqs}",
        )

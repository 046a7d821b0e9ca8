import pytest

from common.errors import FailureCode, RequestError
from common.link import PeerChanged, PeerDown, PeerUp
from common.messages import SamplingParams, TextOptions, TextPrompt, TokenizeRequest
from services.gateway.admission import check_admission
from services.gateway.events import Submit, Tick
from services.gateway.streams import MAX_WAIT_S, GatewayState
from tests.unit.gateway.playground import ready, tokenizer


def a_state(num_live: int = 0) -> GatewayState:
    state = GatewayState(audit_period_s=10.0)
    state.handle(PeerUp(tokenizer()), 0.0)
    state.handle(PeerChanged(tokenizer(), ready()), 0.0)
    for index in range(num_live):
        request = TokenizeRequest(f"r{index}", TextPrompt("x"), SamplingParams(), TextOptions())
        state.handle(Submit(request, "tiny"), 0.0)
    return state


def refusal(
    state: GatewayState, model: str = "tiny", num_new: int = 1, draining: bool = False
) -> RequestError:
    with pytest.raises(RequestError) as caught:
        check_admission(state, model, num_new, max_num_queued_reqs=8, draining=draining)
    return caught.value


def test_the_last_free_place_is_given() -> None:
    check_admission(a_state(num_live=7), "tiny", 1, max_num_queued_reqs=8, draining=False)


def test_one_too_many_is_refused_with_both_numbers() -> None:
    error = refusal(a_state(num_live=7), num_new=2)

    assert error.code is FailureCode.OVERLOADED
    assert "7 sequences" in error.message
    assert "limit of 8" in error.message


def test_what_can_never_fit_is_the_clients_mistake() -> None:
    assert refusal(a_state(), num_new=9).code is FailureCode.INVALID_REQUEST


def test_a_draining_gateway_takes_nothing() -> None:
    assert refusal(a_state(), draining=True).code is FailureCode.UNAVAILABLE


def test_an_unknown_model_is_told_from_a_server_that_is_not_ready() -> None:
    assert refusal(a_state(), model="other").code is FailureCode.MODEL_NOT_FOUND
    assert refusal(GatewayState(audit_period_s=10.0)).code is FailureCode.UNAVAILABLE


def test_a_model_whose_tokenizer_restarts_still_takes_requests_for_a_while() -> None:
    state = a_state()
    state.handle(PeerDown(tokenizer(), "killed"), 1.0)

    state.handle(Tick(), MAX_WAIT_S)
    check_admission(state, "tiny", 1, max_num_queued_reqs=8, draining=False)
    state.handle(Tick(), MAX_WAIT_S + 1)
    assert refusal(state).code is FailureCode.UNAVAILABLE

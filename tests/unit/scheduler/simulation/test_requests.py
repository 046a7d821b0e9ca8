import pytest

from common.token_ids import unpack_ids
from common.workload.timeline import RequestShape
from services.scheduler.simulation.requests import EOS, Requests

SHAPE = RequestShape(num_prompt_tokens=5, num_output_tokens=3, tenant="a", priority=2)


def test_a_request_has_the_lengths_of_its_shape() -> None:
    message = Requests(vocab_size=100).make(7, SHAPE)

    assert len(unpack_ids(message.prompt_ids)) == 5
    assert message.sampling.max_tokens == 3
    assert (message.tenant, message.priority) == ("a", 2)


def test_no_two_prompts_begin_alike() -> None:
    requests = Requests(vocab_size=10)
    prompts = {requests.make(number, SHAPE).prompt_ids for number in range(100)}

    assert len(prompts) == 100
    assert all(0 <= token < 10 for prompt in prompts for token in unpack_ids(prompt))


def test_a_prompt_of_one_token_is_possible() -> None:
    message = Requests(vocab_size=100).make(7, RequestShape(1, 1))

    assert list(unpack_ids(message.prompt_ids)) == [7]


def test_without_a_limit_of_clients_no_token_ends_an_output() -> None:
    requests = Requests(vocab_size=100)
    sampling = requests.make(7, SHAPE).sampling

    assert EOS not in [requests.sample(sampling, num_before) for num_before in range(5)]


def test_with_a_limit_of_clients_the_last_token_of_an_output_is_a_stop_token() -> None:
    requests = Requests(vocab_size=100, max_tokens=50)
    sampling = requests.make(7, SHAPE).sampling

    assert sampling.max_tokens == 50
    assert [requests.sample(sampling, n) == EOS for n in range(3)] == [False, False, True]


def test_a_request_that_has_ended_is_forgotten() -> None:
    requests = Requests(vocab_size=100, max_tokens=50)
    sampling = requests.make(7, SHAPE).sampling
    requests.forget("7")

    assert requests.sample(sampling, 2) != EOS


def test_a_vocabulary_without_a_stop_token_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size 1 must be 2 or more"):
        Requests(vocab_size=1)

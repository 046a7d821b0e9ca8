import pytest

from common.errors import ConfigError, StartupError
from splitfuse.bench.prompts import IdPrompts, TextPrompts
from splitfuse.bench.sse_client import Endpoint
from splitfuse.bench.target import find_target, served_model
from tests.unit.splitfuse.bench.openai_server import openai_server
from tests.unit.splitfuse.bench.word_tokenizer import word_tokenizer


@pytest.mark.parametrize("takes_ids", [True, False])
@pytest.mark.parametrize("takes_extras", [True, False])
def test_a_server_gets_the_richest_requests_that_it_takes(
    takes_ids: bool, takes_extras: bool
) -> None:
    with openai_server(takes_ids=takes_ids, takes_extras=takes_extras) as server:
        target = find_target(Endpoint.of(server.url), "tiny", word_tokenizer(200), 0.5)

    assert isinstance(target.prompts, IdPrompts if takes_ids else TextPrompts)
    assert target.takes_extras is takes_extras
    assert server.bodies[-1]["temperature"] == 0.5
    assert server.bodies[-1]["model"] == "tiny"
    assert server.bodies[-1].get("return_token_ids", False) is takes_extras


def test_a_server_that_wants_text_needs_a_tokenizer() -> None:
    with (
        openai_server(takes_ids=False) as server,
        pytest.raises(ConfigError, match=r"--tokenizer lets them be text.*must be a string"),
    ):
        find_target(Endpoint.of(server.url), "tiny", None, 0.0)


def test_a_server_that_refuses_everything_is_quoted() -> None:
    with openai_server() as server:
        server.fails = True
        with pytest.raises(ConfigError, match="I fail"):
            find_target(Endpoint.of(server.url), "tiny", word_tokenizer(200), 0.0)


def test_the_first_model_is_the_one_to_ask_for() -> None:
    with openai_server() as server:
        server.model_names = ["first", "second"]

        assert served_model(server.url, None) == "first"


def test_a_server_without_a_model_or_without_an_answer_is_named() -> None:
    with openai_server() as server:
        server.model_names = []
        with pytest.raises(StartupError, match=f"{server.url} names no model"):
            served_model(server.url, None)

    with pytest.raises(StartupError, match="ConnectError"):
        served_model(server.url, None)

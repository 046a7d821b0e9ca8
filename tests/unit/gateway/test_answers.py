import json
from typing import Any

import msgspec

from common.messages import TextLogprob
from common.token_ids import pack_ids
from services.gateway.answers import Answer, ChunkWriter, Heading, Piece, Tally, whole_answer
from services.gateway.openai_api import Generation, parse_chat, parse_completion

HEADING = Heading("cmpl-1", 1_700_000_000, "tiny")
LOGPROB = TextLogprob("a", b"a", -0.25, (("a", b"a", -0.25), ("\ufffd", b"\xe2", -3.0)), 5)


def ids(count: int) -> bytes:
    return pack_ids(range(7, 7 + count))


def completion(**fields: Any) -> Generation:
    return parse_completion(json.dumps({"model": "tiny", "prompt": "x"} | fields).encode())


def chat(**fields: Any) -> Generation:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    return parse_chat(json.dumps(body | fields).encode())


def as_json(answer: Answer) -> Any:
    return msgspec.json.decode(msgspec.json.encode(answer))


def chunks(generation: Generation, *pieces: Piece) -> list[Any]:
    tally = Tally(len(generation.prompts), generation.n)
    writer = ChunkWriter(generation, HEADING, tally)
    made = [chunk for piece in pieces for chunk in writer.chunks(piece)]
    return [as_json(chunk) for chunk in made + writer.last_chunks()]


def test_a_prompt_counts_once_however_many_choices_continue_it() -> None:
    tally = Tally(num_prompts=2, n=2)
    for index in range(4):
        tally.add(Piece(index, "", ids(3), num_prompt_tokens=10, num_cached_tokens=4))
        tally.add(Piece(index, "", ids(1), num_prompt_tokens=10, num_cached_tokens=9))

    usage = tally.usage()

    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (20, 16, 36)
    assert usage.prompt_tokens_details.cached_tokens == 8


def test_cached_tokens_are_those_of_the_first_choice_whichever_comes_first() -> None:
    tally = Tally(num_prompts=1, n=2)
    tally.add(Piece(1, "", ids(1), num_prompt_tokens=10, num_cached_tokens=9))
    tally.add(Piece(0, "", ids(1), num_prompt_tokens=10, num_cached_tokens=4))

    assert tally.usage().prompt_tokens_details.cached_tokens == 4


def test_pieces_that_show_nothing_make_no_chunk() -> None:
    generation = completion(stream=True)

    assert chunks(generation, Piece(0, "", ids(1))) == []
    assert len(chunks(generation, Piece(0, "", ids(1), [LOGPROB]))) == 1
    assert len(chunks(generation, Piece(0, "", ids(0), finish_reason="stop"))) == 1


def test_each_choice_of_a_chat_begins_with_its_role_even_before_its_text() -> None:
    got = chunks(chat(n=2), Piece(1, "", ids(1)), Piece(0, "a", ids(1)), Piece(1, "b", ids(1)))

    deltas = [(c["choices"][0]["index"], c["choices"][0]["delta"]) for c in got]
    assert deltas == [
        (1, {"role": "assistant", "content": ""}),
        (0, {"role": "assistant", "content": ""}),
        (0, {"content": "a"}),
        (1, {"content": "b"}),
    ]


def test_a_closing_piece_carries_its_text_and_its_reason() -> None:
    got = chunks(chat(), Piece(0, "end", ids(1), finish_reason="stop", stop_reason="###"))
    bare = chunks(chat(), Piece(0, "", ids(1), finish_reason="length"))

    assert got[-1]["choices"][0]["delta"] == {"content": "end"}
    assert got[-1]["choices"][0]["stop_reason"] == "###"
    assert bare[-1]["choices"][0]["delta"] == {}
    assert bare[-1]["choices"][0]["finish_reason"] == "length"


def test_usage_is_absent_unless_asked_for() -> None:
    piece = Piece(0, "a", ids(1), num_prompt_tokens=5, finish_reason="stop")
    plain = chunks(completion(stream=True), piece)
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = chunks(completion(stream=True, stream_options=options), piece)

    assert all("usage" not in chunk for chunk in plain)
    assert [chunk["usage"]["total_tokens"] for chunk in asked] == [6, 6]
    assert asked[-1]["choices"] == []


def test_chat_logprobs_spell_tokens_in_bytes() -> None:
    (_, chunk) = chunks(chat(logprobs=True, top_logprobs=2), Piece(0, "a", ids(1), [LOGPROB]))

    assert chunk["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "a",
                "logprob": -0.25,
                "bytes": [97],
                "top_logprobs": [
                    {"token": "a", "logprob": -0.25, "bytes": [97]},
                    {"token": "\ufffd", "logprob": -3.0, "bytes": [226]},
                ],
            }
        ],
        "refusal": None,
    }


def test_a_whole_chat_answer_has_openais_fields() -> None:
    generation = chat(stream=False)
    piece = Piece(0, "hello", ids(2), (), "stop", None, num_prompt_tokens=3)

    assert as_json(whole_answer(generation, HEADING, Tally(1, 1), [piece])) == {
        "id": "cmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"content": "hello", "role": "assistant", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": None,
    }


def test_output_ids_come_beside_the_text_if_asked_for() -> None:
    asked, silent = completion(return_token_ids=True), completion()
    piece = Piece(0, "hello", ids(2), finish_reason="stop")

    whole = as_json(whole_answer(asked, HEADING, Tally(1, 1), [piece]))
    assert whole["choices"][0]["token_ids"] == [7, 8]
    assert (
        "token_ids"
        not in as_json(whole_answer(silent, HEADING, Tally(1, 1), [piece]))["choices"][0]
    )


def test_streamed_ids_come_even_while_their_text_is_held_back() -> None:
    generation = completion(return_token_ids=True, stream=True)

    got = chunks(generation, Piece(0, "", ids(1)), Piece(0, "é", ids(1), finish_reason="stop"))

    assert [chunk["choices"][0]["token_ids"] for chunk in got] == [[7], [7]]

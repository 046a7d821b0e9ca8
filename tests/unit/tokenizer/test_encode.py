import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from common.errors import ConfigError, FailureCode, RequestError, StartupError
from common.messages import ChatPrompt, Prompt, TextPrompt, TokenPrompt
from common.token_ids import pack_ids, unpack_ids
from services.tokenizer.encode import Encoder
from services.tokenizer.model_tokenizer import from_transformers, load_tokenizer
from tests.unit.tokenizer import models


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(model_dir: Path) -> Encoder:
    return Encoder(load_tokenizer(model_dir))


def with_template(template: str | None) -> Encoder:
    tokenizer = models.wrap(models.byte_level())
    tokenizer.chat_template = template
    return Encoder(from_transformers(tokenizer))


def chat(*messages: dict[str, Any], **options: Any) -> ChatPrompt:
    return ChatPrompt(json.dumps(messages).encode(), **options)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def refusal(encoder: Encoder, prompt: Prompt) -> RequestError:
    with pytest.raises(RequestError) as caught:
        encoder.encode(prompt)
    assert caught.value.code == FailureCode.INVALID_REQUEST
    return caught.value


def test_text_is_encoded_as_transformers_does_with_its_special_tokens() -> None:
    wrapped = models.wrap(models.byte_fallback())
    ids = unpack_ids(Encoder(from_transformers(wrapped)).encode(TextPrompt(models.TEXTS[1])))
    assert list(ids) == wrapped(models.TEXTS[1])["input_ids"]
    assert ids[0] == models.byte_fallback().token_to_id("<s>")


def test_a_chat_is_what_transformers_makes_of_it(model_dir: Path, encoder: Encoder) -> None:
    reference = PreTrainedTokenizerFast.from_pretrained(model_dir)
    messages = [user("Größe?"), {"role": "assistant", "content": "🙂"}, user("你好")]

    ids = unpack_ids(encoder.encode(chat(*messages)))

    expected = reference.apply_chat_template(messages, add_generation_prompt=True)
    assert list(ids) == expected["input_ids"]


def test_the_template_alone_writes_special_tokens_of_a_chat() -> None:
    tokenizer = models.wrap(models.byte_fallback())  # adds <s> to plain text
    tokenizer.chat_template = "<s>{{ messages[0]['content'] }}"
    ids = unpack_ids(Encoder(from_transformers(tokenizer)).encode(chat(user("fox"))))
    assert ids.count(models.byte_fallback().token_to_id("<s>")) == 1


def test_the_last_message_can_be_continued(encoder: Encoder) -> None:
    prompt = chat(
        user("Count."),
        {"role": "assistant", "content": "one, two"},
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert encoder.render(prompt).endswith("<|im_start|>assistant\none, two")


def test_text_parts_are_joined_by_newlines(encoder: Encoder) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert encoder.render(chat(user(parts))) == encoder.render(chat(user("one\ntwo")))


def test_other_parts_are_refused_by_their_type(encoder: Encoder) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://example.org/cat.png"}}
    error = refusal(encoder, chat(user([{"type": "text", "text": "What?"}, image])))
    assert "'image_url', but this model takes text only" in error.message
    assert error.param == "messages"


def test_tools_and_template_options_reach_the_template() -> None:
    encoder = with_template("{{ tools[0]['name'] }} {{ mood }} {{ documents | length }}")
    prompt = chat(
        user("x"),
        tools=b'[{"name": "clock"}]',
        chat_template_kwargs=b'{"mood": "calm", "documents": [{"text": "a"}]}',
    )
    assert encoder.render(prompt) == "clock calm 1"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages", "conversation"])
def test_template_options_cannot_steer_the_rendering_itself(encoder: Encoder, name: str) -> None:
    kwargs = json.dumps({name: "x"}).encode()
    error = refusal(encoder, chat(user("x"), chat_template_kwargs=kwargs))
    assert error.message == f"chat_template_kwargs may not set {name}."


def test_a_templates_own_complaint_reaches_the_client(encoder: Encoder) -> None:
    error = refusal(encoder, chat({"role": "pirate", "content": "Arr"}))
    assert error.message == ("The chat template cannot render these messages: Unknown role: pirate")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content.nothing.more }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for m in 5 %}{% endfor %}",
    ],
)
def test_a_template_that_breaks_costs_the_request_only(template: str) -> None:
    error = refusal(with_template(template), chat(user("x")))
    assert error.message.startswith("The chat template cannot render these messages: ")


def test_without_a_template_the_client_is_told_what_to_do() -> None:
    error = refusal(with_template(None), chat(user("x")))
    assert "/v1/completions" in error.message
    assert "--chat-template" in error.message


@pytest.mark.parametrize(
    ("prompt", "param"),
    [(TextPrompt(""), "prompt"), (TokenPrompt(b""), "prompt"), (chat(), "messages")],
)
def test_an_empty_prompt_is_refused(prompt: Prompt, param: str) -> None:
    error = refusal(with_template("{% for m in messages %}x{% endfor %}"), prompt)
    assert error.param == param


@pytest.mark.parametrize(
    "messages",
    [b"", b"{}", b'["hi"]', b"[NaN]", rb'[{"content": "\ud800"}]', b"[" * 100_000],
    ids=["empty", "object", "string", "nan", "surrogate", "deep"],
)
def test_messages_that_are_not_a_list_of_objects_are_refused(
    encoder: Encoder, messages: bytes
) -> None:
    assert refusal(encoder, ChatPrompt(messages)).param == "messages"


def test_ids_are_passed_on(encoder: Encoder) -> None:
    packed = pack_ids([3, 1, 4])
    assert encoder.encode(TokenPrompt(packed)) == packed


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_an_enormous_prompt_is_refused_unencoded(kind: str) -> None:
    text = "x " * 100_000
    with pytest.raises(RequestError, match="length is 50 tokens, but the prompt has at least") as e:
        models.encoder(kind).encode(TextPrompt(text), max_model_len=50)
    assert e.value.code == FailureCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize("kind", list(models.KINDS))
def test_a_prompt_that_may_fit_is_never_refused_for_its_size(kind: str) -> None:
    encoder = models.encoder(kind)
    for text in (*models.TEXTS, "The" * 50, " " * 500):
        num_tokens = len(unpack_ids(encoder.encode(TextPrompt(text))))
        assert encoder.encode(TextPrompt(text), max_model_len=num_tokens)


def test_truncation_and_padding_of_the_tokenizer_file_are_off() -> None:
    tokenizer = models.wrap(models.byte_level())
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    ids = unpack_ids(Encoder(from_transformers(tokenizer)).encode(TextPrompt(models.TEXTS[0])))
    assert list(ids) == models.byte_level().encode(models.TEXTS[0]).ids


def test_a_template_file_replaces_the_models_own(model_dir: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("<<{{ messages[0]['content'] }}>>")
    encoder = Encoder(load_tokenizer(model_dir, template))
    assert encoder.render(chat(user("x"))) == "<<x>>"


def test_an_unreadable_template_file_is_a_configuration_error(
    model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--chat-template"):
        load_tokenizer(model_dir, tmp_path / "none.jinja")


def test_a_missing_model_directory_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        load_tokenizer(tmp_path / "none")


@pytest.mark.parametrize("content", ["", "{", "{}", '{"added_tokens": [], "model": 5}'])
def test_a_directory_with_a_broken_tokenizer_is_named_at_start(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(StartupError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)

import io
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.config import load_config
from splitfuse.app_tree import python_environment
from splitfuse.chat import HELP, Conversation, chat
from splitfuse.options import ChatConfig
from tests.unit.splitfuse.fake_openai import PATIENCE_S, FakeOpenAI, fake_openai


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with fake_openai() as running:
        yield running


def chat_with(url: str, lines: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    return chat(load_config(ChatConfig, [url, *flags]))


def test_each_line_of_a_pipe_is_answered_on_a_line(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_with(server.url, "a b\n\nc d\n", monkeypatch) == 0

    assert capsys.readouterr().out == "b a \nd c \n"


def test_an_answer_cannot_command_the_terminal(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_with(server.url, "\x1b[2Ja \x9b31mé🙂\n", monkeypatch)

    assert capsys.readouterr().out == "31mé🙂 [2Ja \n"


def test_the_conversation_so_far_goes_with_each_message(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--system", "be kind", "--temperature", "0.5", "--max-tokens", "9")
    chat_with(server.url, "a b\nc\n", monkeypatch, *flags)

    assert server.bodies[1] == {
        "model": "fake",
        "stream": True,
        "temperature": 0.5,
        "max_tokens": 9,
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "a b"},
            {"role": "assistant", "content": "b a "},
            {"role": "user", "content": "c"},
        ],
    }


def test_quit_leaves_before_the_lines_behind_it(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat_with(server.url, "/quit\na\n", monkeypatch) == 0
    assert server.bodies == []


def test_a_refusal_in_a_script_is_an_error(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_with(server.url, "refuse\n", monkeypatch) == 1
    assert "I refuse" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat_with("http://127.0.0.1:1", "a\n", monkeypatch) == 1

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "http://127.0.0.1:1" in error


def test_a_url_that_ends_in_v1_means_the_same(
    server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat_with(f"{server.url}/v1/", "a\n", monkeypatch) == 0
    assert len(server.bodies) == 1


def test_new_and_system_forget_what_was_said() -> None:
    conversation = Conversation(None)
    conversation.add("hi", "hello")
    conversation.command("/new")
    assert conversation.messages("a") == [{"role": "user", "content": "a"}]

    conversation.add("hi", "hello")
    conversation.command("/system be brief")
    assert conversation.messages("a") == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
    ]

    conversation.command("/system")
    assert conversation.messages("a") == [{"role": "user", "content": "a"}]


def test_an_unknown_command_prints_help_and_changes_nothing() -> None:
    conversation = Conversation("s")
    conversation.add("hi", "hello")

    assert conversation.command("/help") == HELP
    assert len(conversation.messages("a")) == 4


class Terminal:
    """`splitfuse chat` in a terminal of its own, where Ctrl-C is a key."""

    def __init__(self, url: str) -> None:
        self._unread = b""
        self._controller, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "splitfuse", "chat", url],
            env={**python_environment(os.environ), "TERM": "dumb"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def read_until(self, text: str) -> None:
        """Wait until `text` is printed, behind what was waited for before."""
        while text.encode() not in self._unread:
            self._unread += os.read(self._controller, 4096)
        self._unread = self._unread.partition(text.encode())[2]

    def close(self) -> int:
        code = self.process.wait(PATIENCE_S)
        os.close(self._controller)
        return code


def test_ctrl_c_cancels_the_answer_and_ctrl_d_leaves(server: FakeOpenAI) -> None:
    terminal = Terminal(server.url)
    terminal.read_until("> ")
    terminal.type("slow\n")
    terminal.read_until("zzz zzz")

    terminal.process.send_signal(signal.SIGINT)

    terminal.read_until("(cancelled)")
    terminal.read_until("> ")
    assert server.client_gone.wait(PATIENCE_S)
    terminal.type("a b\n")
    terminal.read_until("b a")
    terminal.read_until("> ")
    terminal.type("\x04")
    assert terminal.close() == 0

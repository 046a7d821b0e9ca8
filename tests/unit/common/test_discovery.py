import socket
from pathlib import Path

import pytest

from common.discovery import AddressBook, find_endpoints, socket_path, split_tcp, tcp_endpoint
from tests.support.in_loop import in_loop

A, B = "tcp://10.0.0.1:7101", "tcp://10.0.0.2:7101"


def test_what_is_listed_is_due_once() -> None:
    book = AddressBook()
    assert book.found([B, A]) == frozenset()

    assert book.due(now=0.0) == [A, B]
    assert book.due(now=1.0) == []


def test_a_lost_endpoint_is_due_again_after_its_wait() -> None:
    book = AddressBook()
    book.found([A])
    book.due(now=0.0)

    book.hung_up(A, redial_at=5.0)

    assert book.due(now=4.9) == []
    assert book.due(now=5.0) == [A]


def test_an_endpoint_that_is_gone_from_the_list_is_reported_and_not_dialled_again() -> None:
    book = AddressBook()
    book.found([A, B])
    book.due(now=0.0)

    assert book.found([B]) == {A}
    book.hung_up(A, redial_at=0.0)

    assert book.due(now=9.0) == []
    assert book.found([B]) == frozenset()


def test_an_endpoint_that_comes_back_does_not_wait_for_what_was_before() -> None:
    book = AddressBook()
    book.found([A])
    book.due(now=0.0)
    book.found([])
    book.hung_up(A, redial_at=100.0)

    book.found([A])

    assert book.due(now=1.0) == [A]


def test_a_second_way_to_the_same_instance_is_dialled_only_when_the_first_is_lost() -> None:
    book = AddressBook()
    book.found([A, B])
    book.due(now=0.0)

    book.hung_up(A, redial_at=1.0, twin=B)
    assert book.due(now=2.0) == []

    book.hung_up(B, redial_at=3.0)
    assert book.due(now=3.0) == [A, B]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("tcp://scheduler:7102", ("scheduler", 7102)),
        ("tcp://127.0.0.1:1", ("127.0.0.1", 1)),
        ("tcp://[::1]:7102", ("::1", 7102)),
    ],
)
def test_tcp_addresses_split_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_tcp(address) == parts


def test_an_ipv6_endpoint_has_brackets() -> None:
    assert tcp_endpoint("fe80::1", 7102) == "tcp://[fe80::1]:7102"
    assert tcp_endpoint("10.0.0.1", 7102) == "tcp://10.0.0.1:7102"


@in_loop()
async def test_a_name_stands_for_all_its_addresses() -> None:
    expected = {
        tcp_endpoint(str(record[4][0]), 7101) for record in socket.getaddrinfo("localhost", None)
    }
    assert await find_endpoints("tcp://localhost:7101", "tokenizer") == expected


@in_loop()
async def test_a_directory_stands_for_the_sockets_of_the_wanted_kind(tmp_path: Path) -> None:
    wanted = [socket_path(str(tmp_path), "scheduler", name) for name in ("a", "b")]
    others = [socket_path(str(tmp_path), "tokenizer", "c"), tmp_path / "scheduler-d.tmp"]
    for path in [*wanted, *others]:
        path.touch()

    assert await find_endpoints(f"ipc://{tmp_path}", "scheduler") == {f"ipc://{p}" for p in wanted}


@in_loop()
async def test_a_directory_that_is_not_there_yet_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await find_endpoints(f"ipc://{tmp_path}/later", "scheduler")

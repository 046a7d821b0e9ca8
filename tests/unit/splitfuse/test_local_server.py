import pytest

from splitfuse.local_server import local_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:81"),
        ("0.0.0.0", "http://127.0.0.1:81"),
        ("::", "http://[::1]:81"),
        ("::1", "http://[::1]:81"),
        ("localhost", "http://localhost:81"),
    ],
)
def test_a_server_is_reached_where_it_binds_or_by_loopback_if_that_is_everywhere(
    host: str, url: str
) -> None:
    assert local_url(host, 81) == url

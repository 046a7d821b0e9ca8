import stat
from pathlib import Path

import pytest

from common.curve import PUBLIC_FILE, SECRET_FILE, MeshKeys, generate_keys, keys_for, load_keys
from common.errors import ConfigError


def test_generated_keys_can_be_loaded_and_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "keys"
    generate_keys(directory)

    keys = load_keys(directory)

    assert (len(keys.public), len(keys.secret)) == (40, 40)
    assert stat.S_IMODE((directory / SECRET_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir()} == {PUBLIC_FILE, SECRET_FILE}


def test_two_meshes_have_different_keys(tmp_path: Path) -> None:
    generate_keys(tmp_path / "a")
    generate_keys(tmp_path / "b")

    assert load_keys(tmp_path / "a") != load_keys(tmp_path / "b")


def test_keys_are_not_replaced(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    before = load_keys(tmp_path)

    with pytest.raises(ConfigError, match="keys are not replaced"):
        generate_keys(tmp_path)

    assert load_keys(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("kept", [SECRET_FILE, PUBLIC_FILE])
def test_half_of_an_old_pair_gets_no_half_of_a_new_one(tmp_path: Path, kept: str) -> None:
    (tmp_path / kept).write_text("old")

    with pytest.raises(ConfigError, match=f"{kept} exists: keys are not replaced"):
        generate_keys(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [kept]


def test_a_secret_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    generate_keys(tmp_path)
    (tmp_path / SECRET_FILE).chmod(0o644)

    with pytest.raises(ConfigError, match=r"readable by everybody \(mode 644\): chmod 600"):
        load_keys(tmp_path)


def test_missing_keys_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*`splitfuse keys .*` makes them"):
        load_keys(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 40, b"\xff" * 40, b"x" * 4000])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    generate_keys(tmp_path)
    (tmp_path / SECRET_FILE).write_bytes(content)

    with pytest.raises(ConfigError, match="do not match"):
        load_keys(tmp_path)


def test_keys_do_not_appear_when_printed() -> None:
    assert "secret" not in repr(MeshKeys(b"public", b"secret"))


@pytest.mark.parametrize(
    "address",
    [
        "ipc:///run/splitfuse/tokenizer",
        "tcp://127.0.0.1:7101",
        "tcp://127.8.9.1:7101",
        "tcp://[::1]:7101",
        "tcp://localhost:7101",
    ],
)
def test_links_that_stay_on_this_machine_need_no_keys(address: str) -> None:
    assert keys_for(address, None, allow_plaintext=False) is None


@pytest.mark.parametrize(
    "address",
    ["tcp://0.0.0.0:7101", "tcp://[::]:7101", "tcp://10.0.0.1:7101", "tcp://scheduler:7102"],
)
def test_links_that_leave_this_machine_need_keys_or_an_explicit_word(
    address: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--mesh-keys DIR .* or --allow-plaintext-tcp"):
        keys_for(address, None, allow_plaintext=False)

    assert keys_for(address, None, allow_plaintext=True) is None
    generate_keys(tmp_path)
    assert keys_for(address, tmp_path, allow_plaintext=False) == load_keys(tmp_path)

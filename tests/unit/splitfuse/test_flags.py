from pathlib import Path

from splitfuse.flags import to_flags


def test_options_become_flags_with_dashes() -> None:
    assert to_flags({"max_num_seqs": 8, "top": 0.5}) == ["--max-num-seqs=8", "--top=0.5"]


def test_a_switch_that_is_off_is_said_so() -> None:
    assert to_flags({"a": True, "b": False}) == ["--a", "--no-b"]


def test_an_option_that_is_none_is_left_out() -> None:
    assert to_flags({"uds": None}) == []


def test_lists_are_joined_by_commas() -> None:
    assert to_flags({"allowed_origins": ["http://a", "http://b"]}) == [
        "--allowed-origins=http://a,http://b"
    ]


def test_paths_are_absolute_so_that_a_service_may_run_anywhere() -> None:
    assert to_flags({"uds": Path("x")}) == [f"--uds={Path.cwd() / 'x'}"]


def test_a_value_that_begins_with_a_dash_is_no_flag_of_its_own() -> None:
    assert to_flags({"served_model_name": "--port"}) == ["--served-model-name=--port"]

import subprocess
import sys

import splitfuse
from splitfuse.app_tree import python_environment

HEAVY = ("torch", "transformers", "numpy", "httpx", "pydantic", "common", "kernels", "services")


def loaded_modules(code: str) -> set[str]:
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; import sys; print(*sys.modules)"],
        env=python_environment({}),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_modules("import splitfuse") & set(HEAVY) == set()


def test_the_python_api_loads_neither_torch_nor_anything_that_a_wheel_hides() -> None:
    loaded = loaded_modules("import splitfuse; splitfuse.pipeline, splitfuse.client")

    assert loaded & {"torch", "transformers", "common", "kernels", "services"} == set()


def test_every_public_name_exists() -> None:
    for name in splitfuse.__all__:
        assert getattr(splitfuse, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(splitfuse, "pipelines")

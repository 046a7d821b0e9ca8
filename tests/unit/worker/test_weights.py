"""Checkpoints in one file and in shards, and everything that can be wrong with one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import StartupError
from kernels.host_array import BFLOAT16, FLOAT16, FLOAT32, Dtype
from services.worker.models.config import read_config
from services.worker.models.model import Model
from services.worker.models.registry import make_model
from services.worker.torch_backends import to_tensor
from services.worker.weights import Weights
from tests.support.tiny_models import make_tiny, make_tiny_llama

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make_tiny_llama(tmp_path)
    return tmp_path


def declared(directory: Path) -> Model:
    return make_model(read_config(directory))


def load(directory: Path, dtype: Dtype = FLOAT32) -> dict[str, torch.Tensor]:
    weights = Weights(directory, declared(directory), dtype)
    return {name: to_tensor(weight) for name, weight in weights.items()}


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def shard(directory: Path) -> list[str]:
    """Split the one file in three with an index, as large models come; returns the file names."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    weight_map = {name: files[i % 3] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, directory / file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return files


def test_projections_are_fused_row_by_row(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")

    weights = load(checkpoint)

    attn = "model.layers.1.self_attn"
    qkv = torch.cat([tensors[f"{attn}.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(weights["layers.1.qkv"], qkv)
    assert set(weights) == set(declared(checkpoint).program.weights)


def test_experts_load_alike_from_tensors_of_their_own_and_from_fused_ones(tmp_path: Path) -> None:
    make_tiny("mixtral", tmp_path / "apart")
    make_tiny("mixtral", tmp_path / "fused", fused_experts=True)

    apart, fused = load(tmp_path / "apart"), load(tmp_path / "fused")

    names = load_file(tmp_path / "fused" / "model.safetensors").keys()
    assert not any("block_sparse_moe" in name for name in names)
    assert all(torch.equal(apart[name], fused[name]) for name in apart)


def test_misshaped_experts_are_named_with_both_shapes(tmp_path: Path) -> None:
    make_tiny("mixtral", tmp_path, fused_experts=True)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    tensors[name] = tensors[name].transpose(1, 2).contiguous()
    rewrite(tmp_path, tensors)

    with pytest.raises(StartupError, match=r"gate_up_proj .* \[5, 60, 168\].* \[5, 168, 60\]"):
        load(tmp_path)


def test_shards_load_like_one_file(checkpoint: Path) -> None:
    whole = load(checkpoint)
    shard(checkpoint)

    sharded = load(checkpoint)

    assert all(torch.equal(sharded[name], whole[name]) for name in whole)


def test_tensors_are_converted_on_their_way(checkpoint: Path) -> None:
    exact = load(checkpoint)

    bfloat16, float16 = load(checkpoint, BFLOAT16), load(checkpoint, FLOAT16)

    assert all(torch.equal(bfloat16[name], exact[name].bfloat16()) for name in exact)
    assert all(torch.equal(float16[name], exact[name].half()) for name in exact)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_files_may_hold_other_dtypes(checkpoint: Path, stored: torch.dtype) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    rewrite(checkpoint, {name: tensor.to(stored) for name, tensor in tensors.items()})

    weights = load(checkpoint, BFLOAT16)

    expected = tensors[Q_PROJ].to(stored).bfloat16()
    assert torch.equal(weights["layers.1.qkv"][: len(expected)], expected)


def test_what_float16_cannot_hold_is_infinite(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    rewrite(checkpoint, tensors)

    assert load(checkpoint, FLOAT16)["norm"][3] == torch.inf


def test_a_dtype_that_is_no_plain_number_is_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[Q_PROJ] = tensors[Q_PROJ].to(torch.float8_e4m3fn)
    rewrite(checkpoint, tensors)

    with pytest.raises(StartupError, match=r"q_proj.weight has dtype F8_E4M3; supported are"):
        load(checkpoint)


def test_a_weight_is_read_when_it_is_asked_for_and_counted(checkpoint: Path) -> None:
    calls: list[tuple[int, int]] = []
    weights = Weights(
        checkpoint, declared(checkpoint), FLOAT32, lambda done, total: calls.append((done, total))
    )

    assert calls == []
    assert dict(weights).keys() == weights.keys()

    assert calls == [(i, len(weights)) for i in range(1, len(weights) + 1)]


def test_missing_and_unexpected_tensors_are_named(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop(Q_PROJ)
    rewrite(checkpoint, tensors)

    with pytest.raises(StartupError) as refusal:
        load(checkpoint)

    assert f"missing: {Q_PROJ}" in str(refusal.value)
    assert "not expected: model.extra.weight" in str(refusal.value)


def test_many_missing_tensors_are_counted(checkpoint: Path) -> None:
    rewrite(checkpoint, {"model.norm.weight": torch.ones(60)})

    with pytest.raises(StartupError, match=r"missing: lm_head.weight, .* and 24 more"):
        load(checkpoint)


def test_a_misshaped_tensor_is_named_with_both_shapes(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[Q_PROJ] = torch.zeros(60, 61)
    rewrite(checkpoint, tensors)

    with pytest.raises(StartupError, match=r"q_proj.weight in .* \[60, 61\].* \[60, 60\]"):
        load(checkpoint)


def test_old_rope_tables_and_the_copy_of_a_tied_table_are_left_alone(tmp_path: Path) -> None:
    make_tiny_llama(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    rewrite(tmp_path, tensors)

    assert "lm_head" not in load(tmp_path)


def test_a_pickled_checkpoint_is_refused_with_a_way_out(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")

    with pytest.raises(StartupError, match=r"has no model.safetensors.*pytorch_model.bin cannot"):
        load(checkpoint)


def test_a_damaged_file_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(StartupError, match=r"cannot read the weights .*model.safetensors"):
        load(checkpoint)


def test_a_file_that_shrinks_while_it_is_read_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = Weights(checkpoint, declared(checkpoint), FLOAT32)
    os.truncate(path, path.stat().st_size // 2)

    with pytest.raises(StartupError, match=r"model.safetensors: it has become shorter"):
        dict(weights)


def test_a_tensor_that_an_index_puts_in_the_wrong_shard_is_named(checkpoint: Path) -> None:
    files = shard(checkpoint)
    path = checkpoint / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = next(
        file for file in files if file != index["weight_map"]["model.norm.weight"]
    )
    path.write_text(json.dumps(index))

    with pytest.raises(StartupError, match=r"model-0000.*: no model.norm.weight, which model.safe"):
        load(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    files = shard(checkpoint)
    (checkpoint / files[1]).unlink()

    with pytest.raises(StartupError, match=files[1]):
        load(checkpoint)

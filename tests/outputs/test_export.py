import os

import pytest
import torch
from torch import nn

from normlab.errors import CheckpointError, ResourceError
from normlab.outputs.export import export_generator, read_generator


def test_a_generator_comes_back_with_its_buffers_and_its_metadata(tmp_path):
    generator = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    generator(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    path = tmp_path / "generator.safetensors"
    export_generator(generator, path, {"architecture": "dcgan", "name": "größe"})
    tensors, metadata = read_generator(path)
    state = generator.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert metadata == {"architecture": "dcgan", "name": "größe"}
    assert os.listdir(tmp_path) == ["generator.safetensors"]


def test_two_names_for_one_weight_are_both_written(tmp_path):
    generator = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    generator[1].weight = generator[0].weight
    export_generator(generator, tmp_path / "generator.safetensors", {})
    tensors, metadata = read_generator(tmp_path / "generator.safetensors")
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert metadata == {}


def test_what_is_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "generator.safetensors"
    export_generator(nn.Linear(3, 3), path, {})
    tensors, _ = read_generator(path)
    before = tensors["weight"].clone()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(tensors["weight"], before)


@pytest.mark.parametrize("content", [b"", b"not a generator", bytes(100)])
def test_a_file_of_another_kind_is_a_checkpoint_error_that_names_it(tmp_path, content):
    path = tmp_path / "generator.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{path}: cannot be read as safetensors"):
        read_generator(path)


def test_a_missing_file_and_a_missing_folder_are_told(tmp_path):
    path = tmp_path / "missing" / "generator.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_generator(path)
    with pytest.raises(ResourceError, match="cannot be written"):
        export_generator(nn.Linear(1, 1), path, {})

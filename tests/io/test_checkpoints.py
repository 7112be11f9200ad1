"""Files of tensors: what is written is read by safetensors, as what its own function writes."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from shapespace.io.checkpoints import _DTYPES, load_tensors, save_tensors


def some_tensors() -> dict[str, torch.Tensor]:
    """Of every type; a scalar, an empty one, and one that is not contiguous."""
    torch.manual_seed(0)
    tensors = {f"of.{name}": (100 * torch.rand(3, 5)).to(dtype) for dtype, name in _DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.rand(4, 3).T}


def test_safetensors_reads_the_file_as_its_own(tmp_path: Path) -> None:
    tensors, path = some_tensors(), tmp_path / "codes.safetensors"
    save_tensors(path, tensors, {"kind": "codes", "names": ["größe"]})
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    ours, reference = load(path.read_bytes()), load(save(contiguous))
    assert ours.keys() == reference.keys()
    for name, tensor in reference.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["shapespace"])["names"] == ["größe"]
    read, metadata = load_tensors(path, "codes")
    assert metadata["kind"] == "codes"
    assert torch.equal(read["turned"], tensors["turned"])


def test_numbers_are_aligned(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    save_tensors(path, some_tensors(), {"kind": "codes"})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sizes = {name: tensor.element_size() for name, tensor in some_tensors().items()}
    assert all((8 + length + header[name]["data_offsets"][0]) % size == 0 for name, size in sizes.items())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is reset on Linux")
def test_writing_does_not_copy_the_tensors(tmp_path: Path) -> None:
    tensors = {str(index): torch.ones(4_000_000) for index in range(4)}  # 64 MB
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of memory cannot be reset here")
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    save_tensors(tmp_path / "codes.safetensors", tensors, {"kind": "codes"})
    assert resident("VmHWM") - before < 8_000


def resident(key: str) -> int:
    """Memory of this process (kB)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

"""Haar patching and its inverse against the original modules."""

from pathlib import Path

import pytest
import torch

from vadis.tokenizers.layers import HaarPatcher, HaarUnpatcher

from .fixtures import arrays, cases, manifest


@pytest.mark.parametrize(("folder", "case"), cases("haar"))
def test_same_patches(folder: Path, case: str) -> None:
    about, data = manifest(folder)["cases"][case], arrays(folder, f"{case}.")
    patch = HaarPatcher(about["patch_size"], about["method"])
    unpatch = HaarUnpatcher(about["patch_size"], about["method"])
    patched = patch(data["x"])
    torch.testing.assert_close(patched, data["patched"], atol=1e-6, rtol=0)
    torch.testing.assert_close(unpatch(patched), data["unpatched"], atol=1e-6, rtol=0)
    torch.testing.assert_close(unpatch(data["free"]), data["free_unpatched"], atol=1e-6, rtol=0)
    for name, (dtype, shape) in manifest(folder)["state_dict_per_module"].items():
        assert list(patch.state_dict()[name].shape) == shape
        assert str(patch.state_dict()[name].dtype) == f"torch.{dtype}"

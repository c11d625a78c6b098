"""A small part of `benchmarks/fuzz.py`: damaged inputs are refused with one clear line, harmless rewrites load equal."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"
READERS = "bvh,amc,deepmimic,npz,archive,info,sources,overrides,message,request,frames,text-encoder,image,model-info"
CASES = 20


@pytest.mark.skipif(not FUZZ.is_file(), reason="benchmarks are not part of the source archive")
@pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
def test_no_reader_is_surprised():
    for package in ("transformers", "peft", "pyarrow", "pygltflib", "PIL"):
        pytest.importorskip(package)
    words = [sys.executable, str(FUZZ), READERS, "--cases", str(CASES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

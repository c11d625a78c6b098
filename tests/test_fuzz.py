"""A small part of `benchmarks/fuzz.py`: damaged inputs are refused with one clear line, harmless rewrites load equal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"
CASES = 15


@pytest.mark.skipif(not FUZZ.is_file(), reason="benchmarks are not part of the source archive")
@pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
def test_no_reader_is_surprised() -> None:
    for package in ("transformers", "peft", "accelerate", "pyarrow", "pygltflib", "PIL"):
        pytest.importorskip(package)
    words = [sys.executable, str(FUZZ), "all", "--cases", str(CASES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr

"""A small part of `benchmarks/fuzz.py`: damaged inputs are refused with one clear line, harmless rewrites load equal."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parent.parent / "benchmarks" / "fuzz.py"
CASES = 12


@pytest.mark.skipif(not FUZZ.is_file(), reason="benchmarks are not part of the source archive")
@pytest.mark.skipif(sys.platform != "linux", reason="the harness reads /proc")
def test_no_reader_is_surprised():
    done = subprocess.run(
        [sys.executable, str(FUZZ), "all", "--cases", str(CASES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""Results of a long computation kept step by step, so that a killed run costs the step in hand and no more."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from vadis.files import WORK


class Parts:
    """The steps of one computation in their order: `take(make)` gives the arrays of the next one.

    They are read back when an earlier run made them, which must have been the same computation: the `work` of
    `vadis.files.atomic_folder` answers for that. Lies at `folder`/WORK/`name`; used as a context manager.
    """

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / WORK / f"{name}.parts"
        path.touch()
        self._file = path.open("r+b")
        self._known = True  # whether the next step may be there

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def take(self, make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """The arrays of the next step; `make` makes them when they aren't there yet."""
        if self._known:
            start = self._file.tell()
            try:
                return [self._read() for _ in range(int(self._read()))]
            except (ValueError, EOFError):  # the end, or what a kill cut
                self._known = False
                self._file.seek(start)
                self._file.truncate()
        arrays, record = list(make()), BytesIO()
        for array in (np.array(len(arrays)), *arrays):
            np.lib.format.write_array(record, array, allow_pickle=False)
        self._file.write(record.getvalue())
        self._file.flush()  # the system has it: a kill can't take it any more
        return arrays

    def _read(self) -> np.ndarray:
        return np.lib.format.read_array(self._file, allow_pickle=False)

"""`vadis analyze frequency CORPUS-or-FILES -o FOLDER`: where the energy of motion features lies."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, check_number, check_output_folder, print_json, say
from vadis.errors import FileError, MissingExtra, VadisError

if TYPE_CHECKING:
    import numpy as np

    from vadis.tokenizers.frequency import FrequencyReport


@dataclass(frozen=True)
class AnalyzeFrequency:
    """Cosine transform of features along time: energy by channel and coefficient, what truncation costs, plots.

    Writes channels.csv (a row per channel), groups.csv (a row per slice and stream), clips.csv (a row per clip: errors after
    truncation), report.json and the plots frequency.png and reconstruction.png.

    vadis analyze frequency corpora/cmu -o analysis
    vadis analyze frequency walk.npy run.npy --from hml263 -o analysis
    """

    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="CORPUS-or-FILES")]
    """A corpus, or .npy files of features."""
    out: Annotated[str, arg(aliases=["-o"])]
    """Folder to write."""
    representation: Annotated[str | None, arg(name="from")] = None
    """Representation of .npy files; guessed from their width otherwise."""
    fps: float | None = None
    """Frame rate of .npy files; by default that of the representation."""
    k: tuple[int, int] = (5, 25)
    """Coefficients that truncation keeps, of poses and places, and of rates and contacts."""
    k_total: int = 50
    """Coefficients of the energy map; shorter clips are left out."""
    threshold: float = 0.6
    """Share of energy in the first 5 coefficients from which a channel counts as slow."""
    window: float | None = None
    """Cut clips into pieces of this many seconds first: shares depend on the length."""
    clips: int = 2000
    """At most this many pieces, evenly picked."""
    plots: bool = True
    """Draw the plots (needs matplotlib)."""
    json: bool = False
    """Print report.json."""

    def run(self) -> None:
        folder = check_output_folder(self.out)
        check_number("--threshold", self.threshold, 0, 1)
        check_number("--k-total", self.k_total, 2, 10_000)
        if self.plots:
            _need_matplotlib()
        import numpy as np

        from vadis.component_files import write_json
        from vadis.files import atomic_write
        from vadis.tokenizers import frequency
        from vadis.tokenizers.dsft.split import SplitSpec, split_for

        name, fps, clips = _read(self)
        if self.window is not None:
            size = max(2, round(check_number("--window", self.window, 0.1, 600, "s") * fps))
            clips = [x[i : i + size] for x in clips for i in range(0, len(x) - size + 1, size)]
        clips = clips[:: max(1, -(-len(clips) // self.clips))]
        found = frequency.analyze(clips, fps, 5, self.k_total)
        split = split_for(name)
        slow, fast = np.flatnonzero(found.ratio >= self.threshold), np.flatnonzero(found.ratio < self.threshold)
        rows = [
            frequency.truncation_errors(x, split, self.k, _local_positions(name))
            for x in clips
            if len(x) >= self.k_total
        ]
        groups = _groups(name, split, found)
        page = {
            "representation": name, "fps": fps, "clips": found.clips, "frames": found.frames, "K": self.k,
            "split_by_frequency": {"base": len(slow), "phys": len(fast)}, "groups": groups,
            "truncation": frequency.summary(rows),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        by_slice = _slice_of(name)
        channels = [
            {"channel": i, "slice": by_slice[i], "stream": "base" if i in set(split.base.tolist()) else "phys",
             "by_frequency": "base" if found.ratio[i] >= self.threshold else "phys", "first_5": found.ratio[i],
             "first_5_moving": found.ratio_moving[i], "below_1_hz": found.below_hertz[i]}
            for i in range(len(found.ratio))
        ]  # fmt: skip
        for file, table in (("channels.csv", channels), ("groups.csv", groups), ("clips.csv", rows)):
            with atomic_write(folder / file) as temporary:
                _write_csv(temporary, table)
        write_json(folder / "report.json", page)
        if self.plots:
            from vadis.cli.analyze_plots import draw_frequency, draw_reconstruction

            auto = SplitSpec.from_columns("frequency", slow, fast) if len(slow) else split
            with atomic_write(folder / "frequency.png") as temporary:
                draw_frequency(temporary, found, split, auto, self.threshold, f"{name}, {found.clips} clips")
            with atomic_write(folder / "reconstruction.png") as temporary:
                draw_reconstruction(temporary, rows, self.k)
        if self.json:
            print_json(page)
        else:
            _print(page)


def _print(page: dict[str, Any]) -> None:
    print(f"{page['representation']} at {page['fps']:g}/s: {page['clips']} clips, {page['frames']} frames")
    print(f"{'':<26}{'channels':>9}{'first 5':>9}{'moving':>9}{'< 1 Hz':>9}{'K for 86 %':>12}")
    for row in page["groups"]:
        print(f"{row['group']:<26}{row['channels']:>9}{row['first_5']:>9.2f}{row['first_5_moving']:>9.2f}"
              f"{row['below_1_hz']:>9.2f}{row['k_for_86']:>12}")  # fmt: skip
    sizes = page["split_by_frequency"]
    print(f"split by frequency: {sizes['base']} base, {sizes['phys']} phys")
    for name, values in page["truncation"].items():
        if name != "T":
            print(f"{name:<26}mean {values['mean']:.4f}  median {values['median']:.4f}  max {values['max']:.4f}")


def _read(options: AnalyzeFrequency) -> tuple[str, float, "list[np.ndarray]"]:
    """Representation, frame rate and clips `(T, D)` of the sources."""
    paths = [check_input(source) for source in options.sources]
    if not paths:
        raise VadisError("name a corpus or .npy files.")
    if (paths[0] / "corpus.json").is_file():
        from vadis.data.corpus import Corpus

        if len(paths) > 1 or options.representation or options.fps:
            raise VadisError("a corpus stands alone and says its own representation and frame rate.")
        corpus = Corpus.open(paths[0])
        step = max(1, len(corpus) // options.clips)
        return corpus.representation, corpus.fps, [corpus.frames_of(i).numpy() for i in range(0, len(corpus), step)]
    import numpy as np

    from vadis.io.arrays import read_array
    from vadis.representations import names, representation

    files = [p for path in paths for p in (sorted(path.rglob("*.npy")) if path.is_dir() else [path])]
    clips = [read_array(file).astype(np.float32) for file in files]
    if not clips:
        raise FileError("there are no .npy files in these folders.")
    widths = {x.shape[1] if x.ndim == 2 else 0 for x in clips}
    known = {representation(n).dim: n for n in reversed(names())}
    name = options.representation or known.get(next(iter(widths)), "")
    if len(widths) != 1 or not name:
        raise FileError(f"the files must hold (T, D) features of one known width; found {sorted(widths)}. Say --from.")
    if representation(name).dim not in widths:
        raise FileError(f"{name} has {representation(name).dim} columns; the files have {widths.pop()}.")
    return name, options.fps or representation(name).fps, clips


def _local_positions(name: str) -> slice | None:
    """Columns of joint positions in the frame of the body, metres."""
    from vadis.representations import representation

    return representation(name).slices.get("joint_positions") if name in ("hml263", "ms272", "ms272_absroot") else None


def _slice_of(name: str) -> list[str]:
    from vadis.representations import representation

    rep = representation(name)
    by_column = ["" for _ in range(rep.dim)]
    for title, columns in rep.slices.items():
        for i in range(*columns.indices(rep.dim)):
            by_column[i] = title
    return by_column


def _groups(name: str, split: Any, found: "FrequencyReport") -> list[dict[str, Any]]:
    """Means over each slice of the representation and over both streams."""
    import numpy as np

    from vadis.representations import representation
    from vadis.tokenizers.frequency import coefficients_for, coverage

    rep = representation(name)
    sets = {title: np.arange(rep.dim)[columns] for title, columns in rep.slices.items()}
    sets |= {title: c for title, c in zip(("base", "phys"), split.columns, strict=True) if len(c)}
    return [
        {"group": title, "channels": len(c), "first_5": float(found.ratio[c].mean()),
         "first_5_moving": float(found.ratio_moving[c].mean()), "below_1_hz": float(found.below_hertz[c].mean()),
         "k_for_86": coefficients_for(coverage(found.energies, c))}
        for title, c in sets.items()
    ]  # fmt: skip


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        say("--no-plots leaves them out")
        raise MissingExtra("plots need matplotlib: pip install 'vadis[export]'.") from error

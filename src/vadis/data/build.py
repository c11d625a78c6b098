"""From archives or folders of motion files and caption lists to a corpus: the stages of `vadis data build`.

load → repair glitches (split where they can't be repaired) → retarget to the 22 joints → resample → check → encode.
Every stage is a plain function on one motion; nothing is skipped silently: what is left out is counted by reason in
`corpus.json`. The result does not depend on the order of the sources or on how often the work was interrupted.
"""

import hashlib
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from vadis.data.captions import mirror_text
from vadis.data.corpus import MAX_SECONDS, Caption, Corpus, CorpusWriter
from vadis.data.glitches import repair
from vadis.errors import FileError, VadisError
from vadis.files import apart, stamp
from vadis.io import load_motion
from vadis.io.archive import iter_motion_files
from vadis.motion import Motion
from vadis.records import read_rows
from vadis.representations import representation as find_representation
from vadis.retargeting import retarget


@dataclass(frozen=True)
class BuildOptions:
    """How a corpus is made."""

    representation: str = "ms272"
    """Features that the corpus holds, at their frame rate: ms272, hml263, …"""
    mirror: bool = False
    """Also store a left-right mirrored copy of every clip, with left and right swapped in its captions."""
    min_seconds: float = 0.8
    """Shorter parts are left out."""
    max_below_floor: float = 0.35
    """Metres; a clip whose lowest joint goes further below its own floor is left out as broken."""
    validation_every: int = 12
    """Every n-th group goes to the split "val"; 0 puts everything into "train"."""
    group: str = r"^(.*)$"
    """Regular expression on the clip's name; clips whose first group agrees stay on the same side of the split."""
    limit: int = 0
    """Stop after this many files; 0 means all."""


Name = Annotated[str, Field(min_length=1, max_length=1000)] | int
Seconds = Annotated[float, Field(ge=0, lt=MAX_SECONDS)]
_KINDS = ("detailed", "upper", "lower")


class CaptionRow(TypedDict):
    """A line of a caption list: `text`, or the described form."""

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)  # type: ignore[misc]
    clip: Name
    text: NotRequired[str]
    start_s: NotRequired[Seconds]
    end_s: NotRequired[Seconds]
    """0 or none: the end of the clip."""
    kind: NotRequired[str]
    source: NotRequired[str]
    whole: NotRequired[list[str]]
    detailed: NotRequired[str | None]
    upper: NotRequired[str | None]
    lower: NotRequired[str | None]


class Facts(TypedDict):
    """A line of a manifest: what is used of it; whatever else stands there is kept."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore[misc]
    clip: Name
    fps: NotRequired[Annotated[float, Field(ge=1, le=10_000)] | None]
    licence: NotRequired[str]
    source: NotRequired[str]


def read_captions(paths: Iterable[str | Path]) -> dict[str, list[Caption]]:
    """Caption lists by clip name from JSONL files.

    A row has `clip`, `start_s`, `end_s` (0: the clip's end) and either `text` (of the kind `kind` or `source`, "whole" where
    neither is given) or the described form:
    `whole` (a list of sentences), `detailed`, `upper`, `lower`. Raises FileError naming file, line and field.
    """
    found: dict[str, list[Caption]] = defaultdict(list)
    for path in map(Path, paths):
        if not os.path.isfile(path):
            raise FileError(f"can't read the captions {path}: there is no such file.")
        for number, row in read_rows(CaptionRow, path, "not a caption row: "):
            start, end = row.get("start_s", 0.0), row.get("end_s", 0.0)
            if end and not start < end:
                raise FileError(
                    f"{path}, line {number}: not a caption row: it begins at {start:g} s and ends at {end:g} s; an end is later, "
                    "or 0 for the clip's."
                )
            if "text" in row:
                texts = [(row["text"], row.get("kind", row.get("source", "whole")))]
            elif row.keys() & {"whole", *_KINDS}:
                texts = [(text, "whole") for text in row.get("whole", ())]
                texts += [(text, kind) for kind in _KINDS if (text := row.get(kind))]
            else:
                raise FileError(
                    f"{path}, line {number}: not a caption row: it needs text, or whole, detailed, upper or lower."
                )
            found[str(row["clip"])] += [Caption(text.strip(), start, end, kind) for text, kind in texts if text.strip()]
    return dict(found)


def read_manifest(path: str | Path | None) -> dict[str, dict[str, Any]]:
    """Facts by clip name from a JSONL manifest (`clip`, given once, and anything else); empty without a path.

    Raises FileError naming file, line and field.
    """
    if path is None:
        return {}
    if not os.path.isfile(path):
        raise FileError(f"can't read the manifest {path}: there is no such file.")
    found: dict[str, dict[str, Any]] = {}
    for number, row in read_rows(Facts, path, "can't read the manifest's row: "):
        name = str(row["clip"])
        if name in found:
            raise FileError(
                f"{path}, line {number}: the clip {name!r:.80} is given twice; a manifest has a row a clip."
            )
        found[name] = row  # type: ignore[assignment]
    return found


def prepare(motion: Motion, fps: float, options: BuildOptions) -> tuple[list[Motion], list[str]]:
    """Clean parts of one raw motion on the 22 joints at `fps`, and the reasons for which parts were left out.

    Every part carries `meta["start"]`: its first moment in seconds of the raw motion.
    """
    parts, reasons = repair(motion)[0], []
    kept = []
    for part in parts:
        if part.seconds < options.min_seconds:
            reasons.append("shorter than the minimum" if len(parts) == 1 else "short piece between glitches")
            continue
        mapped = retarget(part).resample(fps)
        if float(mapped.positions[..., 1].min()) < -options.max_below_floor:
            reasons.append("far below the floor")
            continue
        kept.append(mapped.replace(meta=mapped.meta | {"start": part.meta["first_frame"] / part.fps}))
    return kept, reasons


def _shift(captions: Sequence[Caption], start: float, seconds: float, whole: float) -> list[Caption]:
    """Captions as they apply to a part: clipped to it; those that lose more than half of their span are dropped."""
    result = []
    for caption in captions:
        first, last = caption.start, caption.end if caption.end > caption.start else whole
        a, b = max(first - start, 0.0), min(last - start, seconds)
        if b - a > 0.5 * min(last - first, whole):
            result.append(Caption(caption.text, round(a, 3), round(b, 3), caption.kind))
    return result


def assign_splits(groups: Sequence[str], every: int) -> dict[str, str]:
    """Split by group: groups are put in the order of a hash of their names and every n-th goes to "val"."""
    order = sorted(set(groups), key=lambda g: hashlib.sha256(g.encode()).hexdigest())
    return {g: "val" if every and k % every == every - 1 else "train" for k, g in enumerate(order)}


def build_corpus(
    sources: Sequence[str | Path],
    out: str | Path,
    captions: Sequence[str | Path] = (),
    manifest: str | Path | None = None,
    options: BuildOptions | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> Corpus:
    """Build a corpus from archives, folders or files of motion; see the module's docstring for the stages.

    Args:
        sources: archives (`.tar.xz`, `.tar.gz`, `.zip`), folders or single motion files.
        out: folder of the corpus.
        captions: JSONL lists (`read_captions`), matched by the file's name without suffix. A sentence that has no more than half
            of its time in its clip is left out, one that runs past its clip is cut to it, and both are counted; lists may hold
            clips that aren't among the sources.
        manifest: JSONL with `licence`, `source`, `fps` (the true rate) and more by clip.
        progress: show a progress bar on stderr.
        say: told how many sentences are of clips that aren't among the sources, if any are.

    Interrupted work is taken up again by the same call. Raises FileError or VadisError for unusable sources or options.
    """
    apart(out, *sources, *captions, *([manifest] if manifest else []))
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    options = options or BuildOptions()
    rep = find_representation(options.representation)
    texts, facts = read_captions(captions), read_manifest(manifest)
    try:
        pattern = re.compile(options.group)
    except re.error as error:
        raise VadisError(f"group={options.group!r} is not a regular expression: {error}.") from None

    def group_of(name: str) -> str:
        match = pattern.search(name)
        return next((g for g in match.groups() if g), match.group(0)) if match else name

    names = [Path(name).stem for source in sources for name, _ in iter_motion_files(source)]
    double = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if double:
        raise FileError(
            f"{len(double)} clip names occur twice in the sources ({', '.join(double[:5])}); rename the files."
        )
    if options.mirror and (taken := sorted({f"M{n}" for n in names} & set(names))):
        raise FileError(f"mirrored copies would take the names of {', '.join(taken[:5])}; rename those files.")
    if not names:
        raise FileError(f"no motion files in {', '.join(map(str, sources))}.")
    elsewhere = texts.keys() - set(names)
    if say and elsewhere:
        count = sum(len(texts[name]) for name in elsewhere)
        say(
            f"passed over: {count:,} captions of {len(elsewhere):,} clips that are not among the sources, such as {min(elsewhere)!r:.60}"
        )
    total = min(len(names), options.limit or len(names))
    splits = assign_splits([group_of(n) for n in names], options.validation_every)
    about = {"sources": [Path(s).name for s in sources], "captions": [Path(c).name for c in captions],
             "options": {k: getattr(options, k) for k in options.__dataclass_fields__}}  # fmt: skip
    inputs = stamp(*sources, *captions, *([manifest] if manifest else []))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        CorpusWriter(out, options.representation, rep.fps, about, resume=True, inputs=inputs) as writer,
        Progress(*columns, disable=not progress, transient=True) as bar,
    ):
        task = bar.add_task("building", total=total)
        # Files are worked off in order, so on resuming every file before the last one that left a trace is complete.
        traces = [any(key in writer for key in (n, f"{n}.0", f"{n}!0")) for n in names]
        complete = max((k for k, seen in enumerate(traces) if seen), default=0)
        done = 0
        for source in sources:
            for file_name, path in iter_motion_files(source):
                if done == total:
                    break
                done += 1
                name = Path(file_name).stem
                bar.update(task, advance=1, description=name[:24].ljust(24))
                if done > complete:
                    _add_clip(
                        writer,
                        rep,
                        name,
                        path,
                        texts.get(name, []),
                        facts.get(name, {}),
                        splits,
                        group_of(name),
                        options,
                    )
    return Corpus.open(out)


def _add_clip(
    writer: CorpusWriter,
    rep: Any,
    name: str,
    path: Path,
    captions: list[Caption],
    facts: dict[str, Any],
    splits: dict[str, str],
    group: str,
    options: BuildOptions,
) -> None:
    try:
        motion = load_motion(path)
        if facts.get("fps"):
            motion = motion.replace(fps=float(facts["fps"]))
        whole = motion.seconds
        parts, reasons = prepare(motion, rep.fps, options)
    except VadisError as error:
        writer.reject(name, f"{type(error).__name__}: {str(error).split(':')[0][:80]}")
        return
    for k, reason in enumerate(reasons):
        writer.reject(f"{name}!{k}", reason)
    outside = [c for c in captions if not _shift([c], 0.0, whole, whole)]
    for k in range(len(outside)):
        writer.reject(f"{name}!caption {k}", "caption of a time that its clip doesn't have")
    frame = 1 / rep.fps  # what rounding may add
    for k in range(sum(c.end > whole + frame for c in captions if c not in outside)):
        writer.reject(f"{name}!rest {k}", "end of a caption's time that its clip doesn't have")
    for k, part in enumerate(parts):
        start = part.meta["start"]
        texts = _shift(captions, start, part.seconds, whole)
        clip = name if len(parts) == 1 else f"{name}.{k}"
        keep = {"start": round(start, 3), "skeleton": part.meta.get("retargeted_from", "")}
        keep |= {key: facts[key] for key in ("props_or_obstacles", "subject") if key in facts}
        notes = {"split": splits[group], "group": group, "licence": str(facts.get("licence", "unknown")),
                 "source": str(facts.get("source", path.parent.name)), **keep}  # fmt: skip
        if clip not in writer:
            writer.add(clip, _encode(rep, part, clip), texts, **notes)
        if options.mirror and f"M{clip}" not in writer:
            flipped = [Caption(mirror_text(c.text), c.start, c.end, c.kind) for c in texts]
            writer.add(f"M{clip}", _encode(rep, part.mirror(), f"M{clip}"), flipped, **notes, mirrored=True)


def _encode(rep: Any, motion: Motion, clip: str) -> torch.Tensor:
    """The features of a motion; what the representation warns of begins with the clip's name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = rep.encode(motion)
    for warning in caught:
        warnings.warn(f"{clip}: {warning.message}", warning.category, stacklevel=2)
    return features


def describe(corpus: Corpus) -> dict[str, Any]:
    """Counts and hours of a corpus by split, source and licence, with caption counts, for `vadis data stats`."""
    frames = torch.tensor(corpus.column("frames"), dtype=torch.float64)
    hours: dict[str, dict[str, float]] = {}
    for key in ("split", "source", "licence"):
        table: dict[str, float] = defaultdict(float)
        for value, count in zip(corpus.column(key), frames.tolist(), strict=True):
            table[value] += count / corpus.fps / 3600
        hours[key] = {k: round(v, 4) for k, v in sorted(table.items(), key=lambda kv: -kv[1])}
    kinds: dict[str, int] = defaultdict(int)
    words: set[str] = set()
    for captions in corpus.column("captions"):
        for caption in captions:
            kinds[caption["kind"]] += 1
            words |= set(re.findall(r"[a-z]+", caption["text"].lower()))
    return {
        "clips": len(corpus),
        "hours": round(float(frames.sum()) / corpus.fps / 3600, 4),
        "hours_by": hours,
        "captions": dict(kinds),
        "words": len(words),
        "rejected": corpus.about.get("rejected", {}),
    }

"""`vadis benchmark tokenizers --data CORPUS --models …`."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from vadis.cli.common import check_input, check_output_folder, print_json, say
from vadis.errors import VadisError
from vadis.files import atomic_write
from vadis.records import MAX_BYTES, checked, parse_json, read_bytes


@dataclass(frozen=True)
class BenchmarkTokenizers:
    """Tokenizers on the same held-out clips: errors, drift, jitter, skating, rate, codebook use, speed; table and plots.

    A result is kept in the output folder and measured again only when the model or the data have changed.

    Example: vadis benchmark tokenizers --data corpora/mini --models vadis-mini vq=runs/vq/model -o benchmarks/tokenizers
    """

    data: str
    """Corpus folder; its clips are converted to a model's representation and frame rate where they differ."""
    models: list[str]
    """Folders, bundled names or Hub ids of tokenizers or pipelines; `name=folder` sets the name in the table."""
    out: Annotated[str, arg(aliases=["-o"])] = "tokenizers"
    """Folder of the table, the plots and the individual results."""
    split: str | None = "val"
    """Split of the corpus; `--split None` takes all."""
    seconds: float = 10.5
    """Clips are cut to this length; the drift over 10 s needs a little more."""
    limit: int | None = None
    """At most this many clips, evenly spread."""
    evaluator: str | None = None
    """Folder or name of an evaluator, for FID."""
    allow_download: bool = False
    """Fetch from the Hub what a file in a model's folder names there."""
    json: bool = False
    """Print JSON instead of the table."""

    def run(self) -> None:
        folder = check_output_folder(self.out)
        from vadis.data.corpus import Corpus
        from vadis.evaluation.compare_plots import bars_plot, markdown_table, rate_distortion_plot
        from vadis.evaluation.compare_tokenizers import held_out_clips
        from vadis.loading import load

        corpus = Corpus.open(check_input(self.data))
        clips = held_out_clips(corpus, self.split, seconds=self.seconds, limit=self.limit)
        evaluator = load(self.evaluator, allow_download=self.allow_download) if self.evaluator else None
        folder.mkdir(parents=True, exist_ok=True)
        reports = [self._report(name, source, corpus, clips, evaluator, folder) for name, source in self._named()]
        table = markdown_table(reports)
        with atomic_write(folder / "table.md") as temporary:
            temporary.write_text(table, encoding="utf-8")
        rate_distortion_plot(reports, folder / "rate_distortion.png")
        bars_plot(reports, folder / "errors.png")
        say(f"{folder / 'table.md'}, rate_distortion.png, errors.png")
        if self.json:
            print_json([report.as_dict() for report in reports])
        else:
            print(table, end="")

    def _named(self) -> list[tuple[str, str]]:
        pairs = [(m.partition("=")[0], m.partition("=")[2]) if "=" in m else (Path(m).name, m) for m in self.models]
        twice = {name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1}
        if twice:
            raise VadisError(f"the name {sorted(twice)[0]} stands for two models: write name=folder.")
        return pairs

    def _report(self, name: str, source: str, corpus: Any, clips: list[Any], evaluator: Any, folder: Path) -> Any:
        from vadis.data.segments import fingerprint
        from vadis.evaluation.compare_tokenizers import TokenizerReport, fit_clips, measure
        from vadis.pipelines.load import load_tokenizer

        tokenizer = load_tokenizer(source, allow_download=self.allow_download)
        key = {
            "model": fingerprint(tokenizer),
            "data": [str(self.data), self.split, self.seconds, len(clips), sum(map(len, clips))],
            "evaluator": self.evaluator and fingerprint(evaluator),
        }
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.json"
        if path.is_file():
            page = parse_json(read_bytes(path, MAX_BYTES), path, finite=False)  # a figure may be NaN
            if isinstance(page, dict) and page.get("key") == key:
                report = checked(TokenizerReport, page.get("report"), f"{path} is damaged, remove it")
                return replace(report, name=name)
        say(f"measuring {name} …")
        fitting = fit_clips(clips, corpus.representation, corpus.fps, tokenizer)
        report = measure(tokenizer, fitting, name=name, evaluator=evaluator)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"key": key, "report": report.as_dict()}, indent=1), encoding="utf-8")
        return report

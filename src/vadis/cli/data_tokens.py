"""`vadis data tokens CORPUS OUT --tokenizer MODEL`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, check_number, output_folder, say
from vadis.cli.writing import Out, Target
from vadis.errors import VadisError


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Turn a corpus into motion tokens with their captions: what a language model is trained on.

    vadis data tokens corpora/cmu corpora/cmu-words --tokenizer vadis-mini

    Instead of a corpus it reads rows of MotionVLA (`train.jsonl`, and `val.jsonl` beside it), whose tokens are ready.
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus, or a .jsonl file of rows."""
    target: Target = None
    """Folder to write; an existing one is replaced once everything is done."""
    out: Out = ()
    """The same as OUT."""
    tokenizer: str
    """The trained tokenizer (DSFT too): a folder, a bundled model or a Hub id. Of rows: the one that made their tokens."""
    static: int = 0
    """Instead tokenise this many poses of the corpus, each held for 64 frames, with sentences that describe the pose."""
    min_seconds: float = 0.4
    """Shorter stretches are left out."""
    max_seconds: float | None = None
    """Longer stretches are left out."""
    captionless: bool = True
    """Also take clips without captions (for unconditional motion and for continuing)."""
    seed: int = 0
    """Seed of the choice of poses."""
    device: str = "cpu"
    """cpu or cuda."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""

    def run(self) -> None:
        out = output_folder(self.target, self.out, "vadis data tokens")
        path = check_input(self.corpus)
        check_number("--static", self.static, 0, 10_000_000)
        from vadis.pipelines.load import load_tokenizer

        tokenizer = load_tokenizer(self.tokenizer, device=self.device, allow_download=self.allow_download)
        if path.suffix == ".jsonl":
            made = self._rows(path, tokenizer, out)
        else:
            made = self._corpus(path, tokenizer, out)
        say(f"{len(made)} stretches, {int(made.steps.sum()):,} {'tokens' if made.streams else 'steps'}")
        print(out)

    def _rows(self, path: Path, tokenizer: Any, out: Path) -> Any:
        from vadis.language.ms_swift import import_rows

        if not tokenizer.two_streams:
            raise VadisError(f"rows hold tokens of DSFT; {self.tokenizer} is a {type(tokenizer).__name__}.")
        files = {"train": path}
        if path.name == "train.jsonl" and (path.parent / "val.jsonl").is_file():
            files["val"] = path.parent / "val.jsonl"
        return import_rows(files, out, tokenizer)

    def _corpus(self, path: Path, tokenizer: Any, out: Path) -> Any:
        from vadis.data.corpus import Corpus
        from vadis.data.static_poses import static_corpus
        from vadis.files import kept_work
        from vadis.language.token_corpus import tokenize_corpus

        corpus = Corpus.open(path)
        options: dict[str, Any] = {"min_seconds": self.min_seconds, "max_seconds": self.max_seconds}
        options |= {"captionless": self.captionless, "about": {"tokenizer": self.tokenizer, "static": self.static}}
        if not self.static:
            return tokenize_corpus(corpus, tokenizer, out, **options)
        with kept_work(out.with_name(f"{out.name}-static"), "static") as folder:
            corpus = static_corpus(corpus, folder / path.name, self.static, seed=self.seed)
            return tokenize_corpus(corpus, tokenizer, out, **options)

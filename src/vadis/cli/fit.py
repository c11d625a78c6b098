"""`vadis fit dsft CORPUS -o FOLDER`: tokenizers that are fitted in seconds rather than trained."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, check_number, output_folder, print_json, say
from vadis.cli.writing import Out, Target

if TYPE_CHECKING:
    from vadis.data.corpus import Corpus


@dataclass(frozen=True)
class FitDSFT:
    """Fit a DSFT tokenizer on the train split of a corpus and report its rate and error on the held-out clips.

    vadis fit dsft corpora/cmu -o tokenizers/dsft --k 20 40 --window 4
    """

    corpus: Annotated[Positional[str], arg(metavar="CORPUS")]
    """Folder of the corpus."""
    target: Target = None
    """Folder to write."""
    out: Out = ()
    """The same as OUT."""
    k: tuple[int, int] = (5, 25)
    """Cosine coefficients kept of each window: of poses and places, and of rates and contacts."""
    scale: tuple[float, float] = (10.0, 10.0)
    """Integers per standard deviation, of each stream."""
    vocab: tuple[int, int] = (4096, 4096)
    """Ids of each stream, at most 4096."""
    window: float | None = 4.0
    """Clips are cut into pieces of this many seconds; None: they are coded whole, whatever their length."""
    codec: Literal["integer", "bytelevel"] = "integer"
    """integer is exact; bytelevel makes the original's tokens."""
    normalize: Literal["zscore", "none"] | None = None
    """By default zscore for integer, none for bytelevel."""
    root_precision: float | None = None
    """Steps of the root's rates are this much finer; by default 3 for integer, 1 for bytelevel."""
    row_bounded: bool = False
    """No token crosses from one frequency to the next."""
    split: str | None = None
    """Columns of the streams: semantic, upstream_shifted (263 only); by default those of the representation."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> None:
        out, path = output_folder(self.target, self.out, "vadis fit dsft"), check_input(self.corpus)
        if self.window is not None:
            check_number("--window", self.window, 0.1, 600, "s")
        from vadis.data.corpus import Corpus
        from vadis.tokenizers.dsft.tokenizer import DSFTTokenizer

        corpus = Corpus.open(path)
        frames = None if self.window is None else max(2, round(self.window * corpus.fps))
        train = corpus.subset("train") if "train" in corpus.column("split") else corpus
        clips = [train.frames_of(i).numpy() for i in range(len(train))]
        say(f"fitting on {len(clips)} clips, {sum(map(len, clips))} frames")
        tokenizer = DSFTTokenizer.fit(
            clips, corpus.representation, self.k, self.scale, self.vocab, self.codec, self.normalize,
            split=self.split, fps=corpus.fps, root_precision=self.root_precision, row_bounded=self.row_bounded,
            window=frames,
        )  # fmt: skip
        tokenizer.save_pretrained(out)
        say(f"{' + '.join(map(str, tokenizer.vocab_sizes))} ids → {out}")
        held_out = _held_out(corpus)
        found = tokenizer.report(held_out.frames_of(i) for i in range(len(held_out)))
        if self.json:
            print_json(found)
        else:
            for name, value in found.items():
                print(f"{name:<24}{value:.6g}")


def _held_out(corpus: "Corpus") -> "Corpus":
    """The test or val split; where there is neither, everything, said on stderr."""
    splits = set(corpus.column("split"))
    for name in ("test", "val"):
        if name in splits:
            return corpus.subset(name)
    say("this corpus has no held-out clips: the report is on the clips that were fitted")
    return corpus

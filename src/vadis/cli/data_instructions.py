"""`vadis data instructions TOKENS`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from vadis.cli.common import check_input, check_number, check_output_folder, print_json, say

if TYPE_CHECKING:
    from vadis.language.instructions import Part

Task = Literal["text_to_motion", "motion_to_text", "prediction", "in_between", "part_completion", "unconditional"]


@dataclass(frozen=True)
class Instructions:
    """Show what a language model is asked, or write it as rows for MotionVLA and ms-swift.

    vadis data instructions corpora/cmu-words --tasks text_to_motion motion_to_text --count 10
    vadis data instructions corpora/cmu-dsft --rows rows/
    """

    tokens: Annotated[Positional[str], arg(metavar="TOKENS")]
    """Folder of `vadis data tokens` or `vadis data encode`."""
    rows: str | None = None
    """Write `train.jsonl`, `val.jsonl` and `motion_tokens.txt` into this folder (tokens of DSFT only)."""
    every_caption: bool = False
    """With --rows: a row for each sentence about the whole body, not only for the first."""
    own_splits: bool = False
    """With --rows: keep the corpus' splits instead of shuffling and cutting at nine tenths."""
    durations: bool = True
    """With --rows: a line that says how long the motion is, without which its tokens can't be decoded."""
    tasks: tuple[Task, ...] = ("text_to_motion",)
    """Tasks to draw from."""
    count: int = 5
    """Instructions to print."""
    seed: int = 0
    """Seed of the draws; rows are always shuffled with 42, as in the original."""

    def run(self) -> None:
        path = check_input(self.tokens)
        if self.rows is not None:
            check_output_folder(self.rows)
            from vadis.language.ms_swift import export_corpus
            from vadis.language.token_corpus import TokenCorpus

            written = export_corpus(
                TokenCorpus.open(path), self.rows, every_caption=self.every_caption, durations=self.durations,
                own_splits=self.own_splits,
            )  # fmt: skip
            say(f"{written.train} rows for training, {written.val} for validation")
            for why, number in written.dropped.items():
                say(f"{number} dropped: {why}")
            print(self.rows)
            return
        from vadis.language.instruction_sampler import InstructionData, TokenSource
        from vadis.language.instruction_sampler import Instructions as Reader

        check_number("--count", self.count, 1, 100_000)
        data = InstructionData((TokenSource(str(path), split=None),), tasks=dict.fromkeys(self.tasks, 1.0))
        for item in Reader(data).at(self.seed, 0, self.count):
            page = {"task": item.task, "clip": item.clip, "source": item.source}
            print_json(page | {"prompt": [_shown(p) for p in item.prompt], "answer": [_shown(p) for p in item.answer]})


def _shown(part: "Part") -> object:
    """A text, or what is in the place of a motion."""
    from vadis.tokenizers.dsft.sequence import Encoded

    if isinstance(part, str):
        return part
    counted = {"tokens": part.tokens.num_tokens} if isinstance(part.tokens, Encoded) else {"steps": len(part.tokens)}
    return {"motion": counted if part.part is None else counted | {"part": part.part}}

"""`vadis tokenize`, `vadis detokenize` and `vadis reconstruct`: a motion file through a tokenizer and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from vadis.cli.common import check_apart, check_output, outputs, print_json, say
from vadis.cli.reading import on_model_skeleton, read_motion
from vadis.cli.writing import Out, Target, check_outputs, write
from vadis.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from vadis.motion import Motion


@dataclass(frozen=True)
class Tokenize:
    """Turn a motion file into tokens, together with what decoding needs.

    vadis tokenize walk.bvh -o walk.tokens.npz --model vadis-mini
    """

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Motion file of any readable kind; it is retargeted and resampled as the model needs."""
    target: Target = None
    """File to write, .npz."""
    out: Out = ()
    """The same as OUT."""
    model: str = "vadis-mini"
    """Folder, bundled name or Hub id of a tokenizer, or of a pipeline that has one."""
    fps: float | None = None
    """Frame rate of the input, for files that don't state it."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""

    def run(self) -> None:
        import numpy as np

        from vadis.data.segments import fingerprint
        from vadis.io.tokens import TokenFile

        path = check_output(outputs(self.target, self.out, "vadis tokenize")[0], (".npz",))
        check_apart(path, self.source)
        tokenizer = _steps_tokenizer(self.model, self.allow_download)
        _, features = _read(self.source, self.fps, tokenizer)
        tokens = tokenizer.encode(features).cpu().numpy()
        if tokens.dtype == np.int64 and tokenizer.vocab_size <= 2**16:
            tokens = tokens.astype(np.uint16)
        frames = len(tokens) * tokenizer.frames_per_token
        rep, fps = tokenizer.representation, tokenizer.fps
        TokenFile(tokens, self.model, fingerprint(tokenizer), rep, fps, frames).save(path)
        print(path)
        say(
            f"{frames} frames → {len(tokens)} steps × {tokenizer.tokens_per_step}, {tokenizer.frames_per_token} frames per step"
        )


@dataclass(frozen=True)
class Detokenize:
    """Turn tokens of `vadis tokenize` back into a motion.

    vadis detokenize walk.tokens.npz -o walk.glb
    """

    source: Annotated[Positional[str], arg(metavar="TOKENS.npz")]
    """File of `vadis tokenize`."""
    target: Target = None
    """File to write: .bvh .glb .npz .npy, .png (a contact sheet) or .html (a page that plays it)."""
    out: Out = ()
    """The same as OUT; several -o may be given."""
    model: str | None = None
    """The model that made the tokens; by default the bundled one, or with --allow-download the one of the Hub, that the
    file names."""
    allow_download: bool = False
    """Fetch from the Hub what the file, or one in the model's folder, names there."""

    def run(self) -> None:
        from vadis.data.segments import fingerprint
        from vadis.hub import bundled_models
        from vadis.io.tokens import TokenFile
        from vadis.places import named_in_file
        from vadis.representations import representation

        paths = check_outputs(outputs(self.target, self.out), self.source)
        stored = TokenFile.load(self.source)
        model = self.model or named_in_file(
            stored.model, f"{self.source}: its model", known=bundled_models(), allow_download=self.allow_download,
            otherwise="name the model yourself with --model",
        )  # fmt: skip
        tokenizer = _steps_tokenizer(model, self.allow_download)
        if fingerprint(tokenizer) != stored.sha256:
            raise ModelError(
                f"{self.source} was made by other weights than those of {model}: its tokens mean "
                "nothing to them. Name the model that made them with --model."
            )
        tokens = stored.tokens if tokenizer.continuous else stored.tokens.astype("int64")
        motion = representation(tokenizer.representation).decode(tokenizer.decode(tokens), fps=tokenizer.fps)
        for path in paths:
            for written in write([motion], path, [path.stem]):
                print(written)


@dataclass(frozen=True)
class Reconstruct:
    """Put a motion through a tokenizer and back, and say what it lost.

    vadis reconstruct walk.bvh -o both.html --model vadis-mini
    """

    source: Annotated[Positional[str], arg(metavar="IN")]
    """Motion file of any readable kind."""
    target: Target = None
    """File to write: .bvh .glb .npz .npy, or .png and .html, which show the recorded motion beside the decoded one."""
    out: Out = ()
    """The same as OUT; several -o may be given."""
    model: str = "vadis-mini"
    """Folder, bundled name or Hub id of a tokenizer, or of a pipeline that has one."""
    fps: float | None = None
    """Frame rate of the input, for files that don't state it."""
    allow_download: bool = False
    """Fetch from the Hub what a file in the model's folder names there."""
    json: bool = False
    """Print what was lost as JSON."""

    def run(self) -> None:
        from vadis.evaluation.compare_tokenizers import measure
        from vadis.pipelines.load import load_tokenizer
        from vadis.representations import representation

        paths = check_outputs(outputs(self.target, self.out), self.source)
        tokenizer = load_tokenizer(self.model, allow_download=self.allow_download)
        motion, features = _read(self.source, self.fps, tokenizer)
        made = representation(tokenizer.representation).decode(tokenizer.reconstruct(features), fps=tokenizer.fps)
        for path in paths:
            pair = path.suffix.lower() in (".png", ".html")
            titles = [Path(self.source).stem, Path(self.model).name]
            both = [motion.crop(0, made.num_frames), made]
            for written in write(both if pair else [made], path, titles if pair else [path.stem]):
                (say if self.json else print)(str(written))
        report = measure(tokenizer, [features], name=self.model)
        if self.json:
            print_json(report.as_dict())
        else:
            say(
                f"local error {report.local_mm:.1f} mm, global {report.global_mm:.0f} mm, rotations "
                f"{report.rotation_degrees:.1f}°, jitter × {report.jitter_ratio:.2f}, {report.bits_per_second:.0f} bits/s"
            )


def _steps_tokenizer(model: Any, allow_download: bool) -> Any:
    """A tokenizer whose tokens are an array; raises ModelError for DSFT, which codes a clip as a sequence of its own kind."""
    from vadis.pipelines.load import load_tokenizer
    from vadis.tokenizers.base import Tokenizer

    tokenizer = load_tokenizer(model, allow_download=allow_download)
    if not isinstance(tokenizer, Tokenizer):
        raise ModelError(
            f"{model} is a {type(tokenizer).__name__}, whose codes don't fit a token file: use its encode and to_text in "
            "Python, or `vadis reconstruct`."
        )
    return tokenizer


def _read(source: str, fps: float | None, tokenizer: Any) -> tuple["Motion", "Tensor"]:
    """The motion on the model's skeleton at its rate, and its features."""
    from vadis.representations import representation

    motion = on_model_skeleton(read_motion(source, fps=fps), tokenizer.fps)
    return motion, representation(tokenizer.representation).encode(motion)

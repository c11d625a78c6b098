"""The command line: `vadis VERB …`. This module only dispatches, so that `vadis --help` needs neither torch nor tyro.

A verb is a module here with a dataclass whose fields are its flags and whose `run()` does the work, and one line in
`VERBS`. Results go to stdout or files, progress to stderr. What a user did wrong, and files that can't be read or
written, end in one sentence on stderr and exit code 2, anything else that fails in one sentence and exit code 1;
`--debug` shows the traceback of both.
"""

import contextlib
import difflib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import NoReturn

from vadis.cli.common import quietly
from vadis.errors import VadisError

VERBS = {
    "generate": ("vadis.cli.generate:Generate", "make a motion from a sentence"),
    "caption": ("vadis.cli.caption:Caption", "say in words what a motion shows"),
    "stream": ("vadis.cli.stream:Stream", "a body that does what you type, while it moves; to a file or a viewer"),
    "live": ("vadis.cli.live:Live", "the same in the browser, with a text box"),
    "convert": ("vadis.cli.convert:Convert", "motion file or features → another format or representation"),
    "retarget": ("vadis.cli.retarget:Retarget", "put a motion on the 22-joint skeleton that all models use"),
    "clean": ("vadis.cli.clean:Clean", "stop feet from sliding, take out jitter"),
    "tokenize": ("vadis.cli.tokenize:Tokenize", "motion file → tokens"),
    "detokenize": ("vadis.cli.tokenize:Detokenize", "tokens → motion file"),
    "reconstruct": ("vadis.cli.tokenize:Reconstruct", "through a tokenizer and back, and what that lost"),
    "info": ("vadis.cli.info:Info", "say what a file or model is and what to do with it"),
    "models": ("vadis.cli.models:Models", "the models that come with vadis"),
    "view": ("vadis.cli.view:View", "watch motions in the browser, or write a page that plays them"),
    "serve": ("vadis.cli.serve:Serve", "models over HTTP and WebSocket"),
    "fit dsft": ("vadis.cli.fit:FitDSFT", "a frequency tokenizer of a corpus, in seconds"),
    "train": ("vadis.cli.train:Train", "train a tokenizer or generator from a recipe"),
    "study scaling": ("vadis.cli.study:Scaling", "model size × share of the data, trained and measured alike; plots"),
    "study ablation": ("vadis.cli.study:Ablation", "variants of a recipe that differ in one thing each, as tables"),
    "evaluate": ("vadis.cli.evaluate:Evaluate", "metrics of a model or of predictions, beside real motion"),
    "leaderboard": ("vadis.cli.leaderboard:Leaderboard", "several evaluations on one sortable page"),
    "data build": ("vadis.cli.data_build:Build", "motion files and captions → corpus"),
    "data augment": ("vadis.cli.data_augment:Augment", "a larger captioned corpus from a small one"),
    "data scenes": (
        "vadis.cli.data_scenes:Scenes",
        "rooms with pictures, instructions and the motions that follow them",
    ),
    "data encode": ("vadis.cli.data_encode:Encode", "corpus → tokens and text features for training a generator"),
    "data tokens": ("vadis.cli.data_tokens:Tokens", "corpus → tokens and captions for training a language model"),
    "data instructions": (
        "vadis.cli.data_instructions:Instructions",
        "what a language model is asked, shown or written as rows for ms-swift",
    ),
    "data check": ("vadis.cli.data_check:Check", "read a whole corpus and verify every clip"),
    "data overlap": ("vadis.cli.data_overlap:Overlap", "repeated captions and motion: of test in train, or inside"),
    "data stats": ("vadis.cli.data_stats:Stats", "clips, hours, captions and licences of a corpus"),
    "benchmark tokenizers": (
        "vadis.cli.benchmark_tokenizers:BenchmarkTokenizers",
        "tokenizers side by side on held-out clips",
    ),
    "benchmark stream": (
        "vadis.cli.benchmark_stream:BenchmarkStream",
        "time per latent, and until a new text takes effect",
    ),
    "analyze frequency": ("vadis.cli.analyze:AnalyzeFrequency", "where the energy of motion features lies, with plots"),
    "import": ("vadis.cli.import_checkpoint:Import", "published checkpoint → a folder that vadis loads"),
    "doctor": ("vadis.doctor:Doctor", "versions, device, and what each missing extra would unlock"),
}
"""Verb → where its dataclass is, and its line of help."""

EXAMPLES = """\
Examples:
  vadis generate "a person walks in a circle" --seconds 6 -o walk.glb
  vadis convert walk.bvh walk.npy --to ms272
  vadis view walk.bvh other.bvh -o both.html
  vadis info thing.npy

`vadis VERB --help` lists the flags of a verb. `-q` leaves out progress, `--debug` shows the traceback of a failure.
"""


def top_help() -> str:
    """The page of `vadis --help`."""
    lines = [f"  {name:<22}{line}" for name, (_, line) in VERBS.items()]
    head = "usage: vadis VERB [arguments]\n\nOne toolkit for human motion: files, features, tokens, text to motion."
    return "\n".join([head, "", "Verbs:", *lines, "", EXAMPLES])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` without the program's name, by default the process's own."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug, quiet = "--debug" in words, bool({"-q", "--quiet"} & set(words))
    words = [w for w in words if w not in ("--debug", "-q", "--quiet")]
    try:
        with warnings.catch_warnings(), quietly(quiet):
            if not debug:
                _one_line_warnings()
            return _run(words)
    except SystemExit as stop:  # argument errors and --help, already printed
        return stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    except KeyboardInterrupt:
        print("vadis: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vadis … | head`
        sys.stderr.close()
        return 141
    except Exception as error:
        if debug:
            raise
        print(f"vadis: {_sentence(error)}", file=sys.stderr)
        return 2 if isinstance(error, VadisError | OSError) else 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(top_help(), end="")
        return 0
    if words[0] in ("-V", "--version", "version"):
        from vadis import __version__

        print(f"vadis {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    group = [name for name in VERBS if name.startswith(f"{verb} ")]
    if group and (not rest or rest[0] in ("-h", "--help")):
        print("\n".join(f"  vadis {name:<22}{VERBS[name][1]}" for name in group))
        return 0
    if group:
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    if verb not in VERBS:
        _unknown(verb)
    from vadis.cli.common import in_flags, parse

    module, name = VERBS[verb][0].split(":")
    command = parse(getattr(import_module(module), name), f"vadis {verb}", rest)
    with _fetched_models_shown():
        try:
            return command.run() or 0
        except VadisError as error:
            message = in_flags(str(error), command)
            if message == str(error):
                raise
            raise type(error)(message) from error


@contextlib.contextmanager
def _fetched_models_shown() -> Iterator[None]:
    """Say on stderr which commit of a model of the Hub is taken."""
    log, handler = logging.getLogger("vadis.hub"), logging.StreamHandler()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _one_line_warnings() -> None:
    """Show our warnings as one line on stderr, and those that other packages address to their programmers not at all."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", kind)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|huggingface_hub)\b")
    warnings.showwarning = show


def _unknown(verb: str) -> NoReturn:
    near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
    hint = f"Did you mean `vadis {near[0]}`?" if near else "`vadis --help` lists what there is."
    raise VadisError(f"there is no command {verb[:60]!r}. {hint}")


def _sentence(error: Exception) -> str:
    """An exception on one line."""
    if isinstance(error, VadisError):
        return " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("vadis"):
        return f"the package {error.name} is not installed; `vadis doctor` says which extra brings it."
    if isinstance(error, MemoryError):
        return "not enough memory for this; try a shorter or smaller input."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}."
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text[:300]} (run again with --debug, and please report it)."

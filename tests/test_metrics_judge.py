"""Judged metrics: reading of replies, scores, and judges over HTTP, local, by an evaluator and replayed."""

import base64
import json
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from conftest import procedural_walk

from vadis.errors import VadisError
from vadis.evaluation.judge import (
    RenderedClip,
    condition_consistency,
    generalizability,
    literal_choice,
    read_choice,
    read_object,
    read_verdict,
)
from vadis.evaluation.judges import HTTPJudge, LocalVLM, ReplayJudge, RetrievalJudge, png, render_clip, thinned

CLIP = RenderedClip(np.random.default_rng(0).integers(0, 255, (3, 8, 10, 3), dtype=np.uint8), 5.0, "noise")
OPTIONS = ["walk", "jump", "wave"]


def test_strict_replies_name_an_option_by_number() -> None:
    good = ['{"index": 2}', 'So:\n```json\n{"description": "arms: up", "index": "2"}\n```', 'I say {"index": 2} - done']
    assert [read_choice(reply, OPTIONS, "strict") for reply in good] == [2, 2, 2]
    bad = [
        "wave",
        '{"index": 3}',
        '{"index": true}',
        '{"index": -1}',
        '{"index": 1.0}',
        "",
        "{",
        "[2]",
        '{"choice": 2}',
    ]
    assert [read_choice(reply, OPTIONS, "strict") for reply in bad] == [None] * len(bad)


def test_strict_verdicts_are_booleans() -> None:
    assert read_verdict('{"match": true}', "strict") is True and read_verdict('{"match": false}', "strict") is False
    assert [read_verdict(r, "strict") for r in ("yes", '{"match": "yes"}', '{"match": 1}', "")] == [None] * 4
    assert read_object('{"a": {"b": 1}} and more') == {"a": {"b": 1}}


def test_literal_reading_has_the_published_faults() -> None:
    assert read_choice("The closest match is: Wave.", OPTIONS, "literal") == 2
    assert read_choice("One hand moves: it waves. It is: wave", OPTIONS, "literal") is None
    assert literal_choice('Thought.\n\nAnswer: "wave"') == '"wave'
    assert read_verdict("The eyes move", "literal") is True
    assert read_verdict("no answer at all", "literal") is False


def test_consistency_counts_right_picks_in_a_fixed_order() -> None:
    labels, others = ["walk", "jump", "wave"], [["run", "sit"], ["run", "sit"], ["run", "sit"]]
    first = condition_consistency(ReplayJudge(['{"index": 0}'] * 3), [CLIP] * 3, labels, others, seed=4)
    again = condition_consistency(ReplayJudge(['{"index": 0}'] * 3), [CLIP] * 3, labels, others, seed=4)
    assert [item.options for item in first.items] == [item.options for item in again.items]
    assert all(sorted(item.options) == sorted([item.text, "run", "sit"]) for item in first.items)
    places = [item.options.index(item.text) for item in first.items]
    told = condition_consistency(
        ReplayJudge([json.dumps({"index": p}) for p in places]), [CLIP] * 3, labels, others, seed=4
    )
    assert told.accuracy == 1.0 and told.correct == told.total == 3
    assert first.accuracy == pytest.approx(sum(p == 0 for p in places) / 3)
    assert told.name == "condition_consistency@replay" and (told.renderer, told.fps, told.seed) == ("noise", 5.0, 4)
    assert json.loads(json.dumps(told.as_dict()))["items"][0]["text"] == "walk"


def test_a_label_among_the_distractors_is_right_either_way() -> None:
    for index in (0, 1):
        score = condition_consistency(ReplayJudge([json.dumps({"index": index})]), [CLIP], ["Walk"], [["walk"]])
        assert score.accuracy == 1.0


def test_unreadable_replies_are_wrong_when_strict() -> None:
    replies = ['{"match": true}', "hard to say", '{"match": false}', '{"match": true}']
    score = generalizability(ReplayJudge(replies), [CLIP] * 4, ["a", "b", "c", "d"])
    assert (score.accuracy, score.total, score.unread) == (0.5, 4, 1)
    assert [item.correct for item in score.items] == [True, None, False, True]
    literal = generalizability(ReplayJudge.of(score, "literal"), [CLIP] * 4, ["a", "b", "c", "d"])
    assert literal.parse == "literal" and literal.total == 4 and literal.prompt_hash != score.prompt_hash


def test_votes_take_the_majority() -> None:
    yes, no = '{"match": true}', '{"match": false}'
    score = generalizability(ReplayJudge([yes, no, yes, no, no, yes]), [CLIP] * 2, ["a", "b"], votes=3)
    assert [item.correct for item in score.items] == [True, False] and score.votes == 3
    assert [len(item.replies) for item in score.items] == [3, 3]


def test_scores_of_mixed_clips_are_refused() -> None:
    other = RenderedClip(CLIP.frames, 10.0, "noise")
    with pytest.raises(VadisError, match="different renderers"):
        generalizability(ReplayJudge(['{"match": true}'] * 2), [CLIP, other], ["a", "b"])
    with pytest.raises(VadisError, match=r"for each clip.*\[1, 2\]"):
        generalizability(ReplayJudge([]), [CLIP], ["a", "b"])
    with pytest.raises(VadisError, match="only 1 replies were recorded"):
        generalizability(ReplayJudge(["x"]), [CLIP] * 2, ["a", "b"])


def unpng(data: bytes) -> np.ndarray:
    """A PNG of `png` back to its pixels."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    size = int.from_bytes(data[33:37], "big")
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(height, 1 + 3 * width)
    return rows[:, 1:].reshape(height, width, 3)


def test_pictures_are_kept_exactly() -> None:
    pillow = pytest.importorskip("PIL.Image")
    import io

    np.testing.assert_array_equal(unpng(png(CLIP.frames[0])), CLIP.frames[0])
    np.testing.assert_array_equal(np.asarray(pillow.open(io.BytesIO(png(CLIP.frames[0])))), CLIP.frames[0])
    frames = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    assert thinned(frames, 4).ravel().tolist() == [0, 33, 66, 99] and len(thinned(frames, 200)) == 100


class Endpoint:
    """A chat endpoint on this machine that answers with the given (status, reply) pairs and keeps the requests."""

    def __init__(self, answers: list[tuple[int, Any]]) -> None:
        self.requests: list[tuple[dict[str, Any], str | None]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                page = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((page, self.headers.get("Authorization")))
                status, reply = answers[min(len(endpoint.requests), len(answers)) - 1]
                body = json.dumps(reply).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", reply)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Any]:
    made: list[Endpoint] = []

    def make(*answers: tuple[int, Any]) -> Endpoint:
        made.append(Endpoint(list(answers)))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def chat(text: str) -> tuple[int, Any]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def test_http_judge_sends_pictures_and_reads_the_choice(endpoint: Any) -> None:
    server = endpoint(chat('{"index": 1}'))
    judge = HTTPJudge(server.url, "some/vlm", api_key="secret", most_frames=2)
    assert not server.requests
    assert judge.choose(CLIP, OPTIONS).index == 1
    page, key = server.requests[0]
    text, *pictures = page["messages"][0]["content"]
    assert key == "Bearer secret" and page["model"] == "some/vlm" and page["temperature"] == 0
    assert "0. walk\n1. jump\n2. wave" in text["text"]
    sent = [unpng(base64.b64decode(p["image_url"]["url"].partition(",")[2])) for p in pictures]
    np.testing.assert_array_equal(np.stack(sent), CLIP.frames[[0, 2]])


def test_http_judge_tries_again_and_then_gives_up(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("vadis.evaluation.judges.time.sleep", pauses.append)
    server = endpoint((503, {}), (200, {"odd": 1}), chat('{"match": true}'))
    assert HTTPJudge(server.url, "m").verify(CLIP, "walk").match is True
    assert len(server.requests) == 3 and pauses == [1.0, 2.0] and server.requests[0][1] is None
    down = endpoint((503, {}))
    with pytest.raises(VadisError, match="gave no reply in 3 tries"):
        HTTPJudge(down.url, "m").verify(CLIP, "walk")
    with pytest.raises(VadisError, match="answered about none of 2 clips"):
        generalizability(HTTPJudge(down.url, "m", tries=1, parse="literal"), [CLIP] * 2, ["a", "b"])
    strict = generalizability(HTTPJudge(down.url, "m", tries=1), [CLIP] * 2, ["a", "b"])
    assert (strict.accuracy, strict.total, strict.unread) == (0.0, 2, 2)


def test_http_judge_stops_at_a_refusal(endpoint: Any) -> None:
    server = endpoint((401, {"error": "bad key"}))
    with pytest.raises(VadisError, match=r"refused the request \(401 .*bad key.*check address, model and key"):
        generalizability(HTTPJudge(server.url, "m"), [CLIP] * 5, list("abcde"))
    assert len(server.requests) == 1
    away = endpoint((302, server.url + "/chat/completions"))
    with pytest.raises(VadisError, match="refused the request"):
        HTTPJudge(away.url, "m", api_key="secret").verify(CLIP, "walk")
    assert len(server.requests) == 1  # the key went nowhere else
    with pytest.raises(VadisError, match="http:// or https://"):
        HTTPJudge("file:///etc/passwd", "m")


def test_many_clips_at_once_keep_their_order(endpoint: Any) -> None:
    server = endpoint(chat('{"match": true}'))
    score = generalizability(HTTPJudge(server.url, "m"), [CLIP] * 6, list("abcdef"), workers=3)
    assert score.accuracy == 1.0 and [item.text for item in score.items] == list("abcdef") and len(server.requests) == 6


def test_evaluator_as_judge() -> None:
    motion = procedural_walk(20)
    words = {"walk": [1.0, 0.1], "jump": [0.0, 1.0], "wave": [-1.0, 0.0]}
    judge = RetrievalJudge(lambda m: [m.num_frames / 20, 0.0], lambda texts: [words[t] for t in texts], threshold=0.9)
    clip = RenderedClip(CLIP.frames, 5.0, "none", motion)
    assert judge.choose(clip, OPTIONS).index == 0
    assert judge.verify(clip, "walk").match is True and judge.verify(clip, "jump").match is False
    score = condition_consistency(judge, [clip], ["walk"], [["jump", "wave"]])
    assert score.accuracy == 1.0 and score.name == "condition_consistency@tmr"
    with pytest.raises(VadisError, match="measures the motion itself"):
        judge.verify(CLIP, "walk")


def test_calibration_tells_matched_from_shuffled() -> None:
    rng = np.random.default_rng(0)
    text = rng.normal(size=(200, 32))
    motion = text + 0.5 * rng.normal(size=text.shape)
    threshold = RetrievalJudge.calibrate(text, motion)
    cosine = (text * motion).sum(1) / np.linalg.norm(text, axis=1) / np.linalg.norm(motion, axis=1)
    assert (cosine >= threshold).mean() > 0.98 and 0.2 < threshold < 0.9
    with pytest.raises(VadisError, match="at least 8 paired"):
        RetrievalJudge.calibrate(text[:4], motion[:4])


def test_rendered_clips_show_the_whole_walk() -> None:
    clip = render_clip(procedural_walk(31), fps=2, size=96)
    assert clip.frames.shape == (3, 96, 96, 3) and clip.frames.dtype == np.uint8 and clip.fps == 2
    ink = (clip.frames.min(-1) < 140).any(0)
    rows, columns = np.nonzero(ink)
    assert ink.sum() > 50 and rows.min() > 0 and rows.max() < 95 and columns.min() > 0 and columns.max() < 95
    assert (clip.frames[0] != clip.frames[-1]).any() and clip.motion is not None and clip.renderer == "mannequin-96px"


def test_a_local_model_answers() -> None:
    """A tiny LLaVA with random weights: what it says means nothing, but it is asked with every picture."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "<pad>", "<image>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789{}:.,\"'?-"]
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    template = "{% for part in messages[0]['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", chat_template=template,
        num_additional_image_tokens=1,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=2, image_token_id=2)
    judge = LocalVLM(transformers.LlavaForConditionalGeneration(config), processor, new_tokens=5, most_frames=2)
    choice = judge.choose(CLIP, OPTIONS)
    assert choice.index is None and isinstance(choice.raw, str) and judge.choose(CLIP, OPTIONS) == choice
    score = generalizability(judge, [CLIP], ["walk"])
    assert score.unread == 1 and score.judge == "LlavaForConditionalGeneration"
    with pytest.raises(VadisError, match="processor together with the model"):
        LocalVLM(judge.model)

"""Speed of a language model that writes motion: `python benchmarks/motion_lm.py --check`.

SmolLM2-135M with 512 new motion symbols, untrained (the time does not depend on it), one CPU thread. Processor time stands
beside the time on the clock, since it does not change as much with what else the machine does. Ratios are of processor time:
how much slower it is without the cache, how much the whole vocabulary's head costs, what transformers' own `generate` with the
same grammar takes, what int8 weights and a batch gain. `--check` compares the tokens.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vadis.language.add_motion import extend
from vadis.language.backbones import load_backbone
from vadis.language.causal_lm import CausalModel
from vadis.language.grammar import MotionGrammar, MotionLogitsProcessor
from vadis.language.layout import MotionLayout
from vadis.language.motion_lm import MotionLM
from vadis.tokenizers.vqvae import VQTokenizer, VQTokenizerConfig

SENTENCE = "a person walks forward, turns around and waves with the right hand"


def build(backbone: str) -> MotionLM:
    """The language model with new symbols."""
    tokenizer = VQTokenizer(VQTokenizerConfig(representation="ms272", feature_dim=272, fps=30.0, width=16, code_dim=16))
    model, text = load_backbone(backbone)
    return MotionLM(model, text, extend(model, text, MotionLayout.of(tokenizer), tokenizer), tokenizer)


def measure(call: Callable[[], Any], repeats: int) -> tuple[Any, dict[str, float]]:
    """What the call gives, and its best seconds by the clock and of the processor."""
    times, result = [], None
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = call()
        times.append((time.perf_counter() - start, time.process_time() - start_cpu))
    return result, {"seconds": min(t for t, _ in times), "cpu_seconds": min(t for _, t in times)}


@torch.no_grad()
def uncached(lm: MotionLM, steps: int) -> Tensor:
    """Greedy tokens `(S,)`, all ids read anew for every one, as without a cache."""
    ids = torch.tensor([[*lm.prompt(caption=SENTENCE), lm.vocabulary.begin]])
    made = []
    for _ in range(steps):
        logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        made.append(logits[lm.vocabulary.symbol_ids].argmax())
        ids = torch.cat([ids, lm.vocabulary.symbol_ids[made[-1]].view(1, 1)], dim=1)
    return torch.stack(made)


def whole_head(lm: MotionLM, steps: int) -> Tensor:
    """The same run with the logits of all ids computed."""
    lm.causal = CausalModel(lm.model)
    lm.causal.separable = False  # type: ignore[misc]  # a cached property
    tokens = lm.generate(SENTENCE, steps=steps)[0][0]
    lm.causal = CausalModel(lm.model)
    return tokens


def by_transformers(lm: MotionLM, steps: int) -> Tensor:
    """The same tokens by `model.generate` and the grammar's processor."""
    ids = torch.tensor([lm.prompt(caption=SENTENCE)])
    grammar = MotionGrammar(lm.vocabulary, 1, length=steps)
    made = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps + 2, do_sample=False, pad_token_id=0,
        eos_token_id=lm.vocabulary.end, logits_processor=[MotionLogitsProcessor(grammar)],
    )  # fmt: skip
    return lm.vocabulary.tokens(made[0, ids.shape[1] :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=49)
    parser.add_argument("--batch", type=int, default=16, help="rows of the batched measurement")
    parser.add_argument("--repeats", type=int, default=2, help="the best of so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--check", action="store_true", help="without a cache, and by transformers' generate, too (slow)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm, count = build(options.backbone), options.tokens
    results: dict[str, Any] = {"tokens": count, "batch": options.batch}

    def run(label: str, call: Callable[[], Any], repeats: int = options.repeats, rows: int = 1) -> Any:
        made, times = measure(call, repeats)
        results[label] = times | {"tokens_per_cpu_second": rows * count / times["cpu_seconds"]}
        if not options.json:
            print(f"{label:28}" + "".join(f"  {n} {v:.2f}" for n, v in results[label].items()), flush=True)
        return made

    def ratio(name: str, slow: str, fast: str) -> None:
        results[name] = round(results[slow]["cpu_seconds"] / results[fast]["cpu_seconds"], 2)

    lm.generate(SENTENCE, steps=2)  # warms up
    first = run("float32", lambda: lm.generate(SENTENCE, steps=count)[0][0])
    same = {"whole head": run("float32, whole head", lambda: whole_head(lm, count), 1)}
    ratio("whole_head_over_motion_rows", "float32, whole head", "float32")
    if options.check:
        same["no cache"] = run("float32, no cache", lambda: uncached(lm, count), 1)
        same["transformers"] = run("float32, transformers", lambda: by_transformers(lm, count), 1)
        ratio("uncached_over_cached", "float32, no cache", "float32")
        ratio("transformers_over_ours", "float32, transformers", "float32")
    many = f"float32, batch of {options.batch}"
    rows = [SENTENCE] * options.batch
    same["batch"] = run(many, lambda: lm.generate(rows, steps=count)[0][0], 1, options.batch)
    results["batch_gain"] = round(options.batch * results["float32"]["cpu_seconds"] / results[many]["cpu_seconds"], 2)
    results["equal_tokens"] = {name: bool(torch.equal(first, made)) for name, made in same.items()}
    lm.causal.to_int8()
    lm.generate(SENTENCE, steps=2)
    small = run("int8", lambda: lm.generate(SENTENCE, steps=count)[0][0])
    ratio("float32_over_int8", "float32", "int8")
    results["int8_equal_tokens"] = round(float((small == first).float().mean()), 3)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    for name, value in results.items():
        if name in ("equal_tokens", "int8_equal_tokens", "batch_gain") or "_over_" in name:
            print(f"{name:28}  {value}")


if __name__ == "__main__":
    main()

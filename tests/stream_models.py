"""A small random streaming pipeline for tests of streams, the server and the browser."""

import torch

from vadis.generators.motionstreamer import MotionStreamer, MotionStreamerConfig
from vadis.motion import Motion
from vadis.pipelines.stream import MotionStreamPipeline, StreamConfig
from vadis.representations import representation
from vadis.tokenizers.causal_tae import CausalTAE, CausalTAEConfig


class Words:
    """A sentence encoder without weights: a random vector that the text decides."""

    def sentence(self, text: str) -> torch.Tensor:
        return torch.randn(1, 6, generator=torch.Generator().manual_seed(sum(map(ord, text))))

    def null_sentence(self) -> torch.Tensor:
        return torch.zeros(6)


def small_pipe(walk: Motion) -> MotionStreamPipeline:
    """Causal TAE of width 16 and a generator of two layers; its modulation is random too, so that the text matters."""
    torch.manual_seed(0)
    tokenizer = CausalTAE(CausalTAEConfig(width=16, latent_dim=4)).eval()
    features = representation("ms272").encode(walk)
    tokenizer.set_statistics(features.mean(0), features.std(0).clamp_min(0.01))
    sizes = dict(n_layer=2, n_head=2, n_embd=16, block_size=14, text_dim=6, latent_dim=4, head_layers=1, head_width=16)
    generator = MotionStreamer(MotionStreamerConfig(**sizes)).eval()
    for name, parameter in generator.named_parameters():
        if "adaLN" in name or "final_layer" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    config = StreamConfig(steps=4, min_latents=2, text_encoder="minilm")
    return MotionStreamPipeline(tokenizer, generator, text_encoder=Words(), config=config)

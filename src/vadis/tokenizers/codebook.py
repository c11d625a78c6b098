"""Learned codebooks: the nearest of K codes, moved by running means with reset, as in T2M-GPT, MoMask and MG-VQVAE.

One class by hand serves the three families. `vector-quantize-pytorch` finds the same nearest codes, but that is one line
here; what takes the lines is the published update (no smoothing, unused codes replaced by rows of the batch in order,
their counts kept), groups as one batched operation, and published names, none of which it offers.

Shapes: B clips, S token steps, G groups, K codes, d channels of a group, C = G * d, N = B * S rows.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vadis.tokenizers.base import Quantized, Quantizer

CodebookUpdate = Literal["ema_reset", "ema", "gradient"]
"""Running means with reset of unused codes; running means alone; gradient descent on the codes (van den Oord et al., 2017)."""

_USED = 1.0  # a code whose running count is lower is replaced
_PIECE = 1 << 23  # distances held at a time, about 32 MB


class EMACodebook(Quantizer):
    """G codebooks of K codes, each for its own d of the input's G * d channels (contiguous).

    Args:
        size: K.
        dim: d.
        groups: G; None is one codebook without an axis of groups in its state and tokens.
        decay: of the running counts and sums.
        update: how codes learn, see `CodebookUpdate`.

    Shape:
        x (B, S, G * d) -> vectors (B, S, G * d), tokens (B, S, G), or (B, S) where groups is None.

    In training mode the first call takes its first K rows as codes (repeated with a little noise where there are fewer),
    and every call moves the codes after using them. Counts and sums are summed over processes, and new codes are those
    of process 0, so all processes hold one codebook. Counts, sums and the flag are part of the state, so training resumes
    exactly; the published programs lose them. Losses: "commitment" (with update "gradient" the codebook loss is in it) and
    "perplexity", the mean over groups, of this batch.
    """

    codebook: Tensor
    code_sum: Tensor
    code_count: Tensor
    initialised: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        groups: int | None = None,
        decay: float = 0.99,
        update: CodebookUpdate = "ema_reset",
    ) -> None:
        super().__init__()
        self.vocab_size, self.dim, self.groups, self.decay, self.update = size, dim, groups, decay, update
        self.frozen = False  # codes stay as they are in training too, as when a decoder alone is trained
        shape = (size, dim) if groups is None else (groups, size, dim)
        codes = torch.empty(shape).uniform_(-1 / size, 1 / size)
        if update == "gradient":
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
            self.register_buffer("code_sum", codes.clone())
            self.register_buffer("code_count", torch.ones(shape[:-1]))
        self.register_buffer("initialised", torch.tensor(False))

    @property
    def embeddings(self) -> Tensor:
        """All codes `(G, K, d)`."""
        return self.codebook.view(-1, self.vocab_size, self.dim)

    def code_vectors(self) -> list[Tensor]:
        """The codebook (K, d) of each group."""
        return list(self.embeddings.detach().float().cpu().unbind(0))

    def forward(self, x: Tensor, temperature: float = 0.0) -> Quantized:
        """Quantise; with `temperature` > 0 codes are drawn in proportion to exp(-squared distance / temperature)."""
        rows = x.reshape(-1, self.groups or 1, self.dim).transpose(0, 1)  # (G, N, d)
        learning = self.training and not self.frozen
        if learning and not self.initialised:
            self._initialise(rows.detach())
        ids = self._nearest(rows.detach(), temperature)  # (G, N)
        tokens = ids.T.reshape(*x.shape[:-1], -1) if self.groups else ids.view(x.shape[:-1])
        codes = self.dequantize(tokens)
        commitment = F.mse_loss(x, codes.detach())
        if self.update == "gradient":
            commitment = commitment + F.mse_loss(codes, x.detach())
        flat = (ids + self.vocab_size * torch.arange(len(ids), device=ids.device)[:, None]).flatten()
        counts = torch.zeros(len(ids) * self.vocab_size, device=x.device)
        counts.index_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
        if learning and self.update != "gradient":
            self._learn(rows.detach(), flat, counts.clone())
        p = counts.view(len(ids), -1) / max(rows.shape[1], 1)
        perplexity = torch.exp(-(p * (p + 1e-7).log()).sum(-1)).mean()
        return Quantized(x + (codes - x).detach(), tokens, {"commitment": commitment, "perplexity": perplexity})

    def dequantize(self, tokens: Tensor) -> Tensor:
        """Tokens `(B, S)` or `(B, S, G)` to vectors `(B, S, G * d)`; token -1 gives zeros."""
        ids = tokens.clamp_min(0)
        if self.groups:
            ids = ids + self.vocab_size * torch.arange(self.groups, device=ids.device)
        codes = F.embedding(ids, self.codebook.reshape(-1, self.dim))
        codes = codes * (tokens >= 0).unsqueeze(-1)
        return codes.flatten(-2) if self.groups else codes

    def _nearest(self, rows: Tensor, temperature: float) -> Tensor:
        """Ids `(G, N)` of the nearest codes of rows `(G, N, d)`, the first where several are equally near."""
        table = self.embeddings.detach()
        norms, transposed = table.square().sum(-1)[:, None], table.transpose(1, 2)
        found = []
        for piece in rows.split(max(1, _PIECE // (table.shape[0] * table.shape[1])), dim=1):
            distances = torch.baddbmm(norms, piece, transposed, alpha=-2)  # less |x|², which is the same for all codes
            if temperature > 0:
                gumbel = -torch.empty_like(distances).exponential_().log()
                distances = distances / temperature - gumbel
            found.append(distances.argmin(-1))
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def _initialise(self, rows: Tensor) -> None:
        self.codebook.copy_(self._first_rows(rows))
        self.initialised.fill_(True)
        self.restart_means()

    @torch.no_grad()
    def restart_means(self, count: float = 1.0) -> None:
        """Count each code as used `count` times a batch until now; 1 is what a new codebook starts from."""
        if self.update != "gradient":
            self.code_sum.copy_(count * self.codebook)
            self.code_count.fill_(count)

    @torch.no_grad()
    def _learn(self, rows: Tensor, flat: Tensor, counts: Tensor) -> None:
        """Move the codes by rows `(G, N, d)` assigned to the codes `flat` `(G * N,)`."""
        sums = torch.zeros(len(counts), self.dim, device=rows.device)
        sums.index_add_(0, flat, rows.reshape(-1, self.dim))
        if several_processes():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        keep, new = self.decay, 1.0 - self.decay
        self.code_sum.copy_(keep * self.code_sum + new * sums.view_as(self.code_sum))
        self.code_count.copy_(keep * self.code_count + new * counts.view_as(self.code_count))
        count = self.code_count.unsqueeze(-1)
        if self.update == "ema_reset":
            moved = torch.where(count >= _USED, self.code_sum / count, self._first_rows(rows))
        else:  # a code without assignments keeps its mean while both sides shrink, and then its place
            moved = torch.where(count > 1e-6, self.code_sum / count, self.codebook)
        self.codebook.copy_(moved)

    def _first_rows(self, rows: Tensor) -> Tensor:
        """The first K rows of each group in the shape of the codebook; fewer are repeated, with a little noise on all."""
        if rows.shape[1] < self.vocab_size:
            rows = rows.repeat(1, -(-self.vocab_size // rows.shape[1]), 1)
            rows = rows + torch.randn_like(rows) * (0.01 / self.dim**0.5)
        first = rows[:, : self.vocab_size].clone(memory_format=torch.contiguous_format)
        if several_processes():
            dist.broadcast(first, 0)
        return first.view_as(self.codebook)


def several_processes() -> bool:
    """Whether training runs in more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

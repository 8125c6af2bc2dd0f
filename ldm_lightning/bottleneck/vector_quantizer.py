"""Vector quantizer: every latent vector is replaced by its nearest code.

Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", Eq. 1-3. The remedies
against collapse are options: an unquantized start with k-means codes (Zeghidour et al. 2021,
"SoundStream", III.C), restart of dead codes (Dhariwal et al. 2020, "Jukebox", 3.1), normalized
codes (Yu et al. 2022, ViT-VQGAN, 3.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_lightning.bottleneck.base import Bottleneck, BottleneckOutput
from ldm_lightning.bottleneck.kmeans import kmeans, nearest
from ldm_lightning.utils.collectives import all_gather_rows, all_reduce_sum, broadcast_from_first
from ldm_lightning.utils.random import generator_for

KMEANS_VECTORS_PER_CODE = 8
MAX_START_VECTORS_PER_CODE = 64


class VectorQuantizer(Bottleneck):
    """Nearest-code quantization with a straight-through gradient.

    Args:
        num_codes: Size of the codebook, K.
        latent_channels: Length of a code.
        normalize: Compare, and hand on, vectors of unit length (cosine similarity).
        quantize_start_step: First updates in which latents pass unquantized; then the codes are
            placed by k-means on the latest encoder outputs. 0 starts with random codes near zero,
            as published models did.
        restart_every_steps: Every so many updates, codes that nothing used since the last time move
            to random encoder outputs. 0 never.

    Raises:
        ValueError: If a count is negative or there are fewer than two codes.
    """

    term_names = ("codebook", "commitment")
    compares_vectors = True

    def __init__(
        self,
        *,
        num_codes: int,
        latent_channels: int,
        normalize: bool = False,
        quantize_start_step: int = 0,
        restart_every_steps: int = 0,
    ) -> None:
        super().__init__()
        if num_codes < 2 or quantize_start_step < 0 or restart_every_steps < 0:
            raise ValueError(
                "A vector quantizer needs num_codes >= 2, quantize_start_step >= 0 and "
                f"restart_every_steps >= 0; got {num_codes}, {quantize_start_step} and "
                f"{restart_every_steps}."
            )
        self.num_codes: int = num_codes
        self.normalize = normalize
        self.quantize_start_step = quantize_start_step
        self.restart_every_steps = restart_every_steps
        self.embedding = nn.Embedding(num_codes, latent_channels)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)
        self.is_quantizing: Tensor
        self.counts: Tensor
        self.pool: Tensor
        self.num_pooled: Tensor
        self.register_buffer("is_quantizing", torch.tensor(quantize_start_step == 0))
        # Uses of each code since the last restart, over all processes.
        self.register_buffer("counts", torch.zeros(num_codes, dtype=torch.int64))
        # Encoder outputs of the last unquantized updates, the newest first, for k-means; no places
        # where that is not asked for.
        num_places = KMEANS_VECTORS_PER_CODE * num_codes if quantize_start_step else 0
        self.register_buffer("pool", torch.zeros(num_places, latent_channels))
        self.register_buffer("num_pooled", torch.tensor(0))
        # Of the running update only, so not in the state.
        self._batch_vectors: Tensor | None = None
        self._batch_counts: Tensor | None = None
        self._assigned: Tensor | None = None  # bool [K]: codes that were placed, not learned

    def codes(self) -> Tensor:
        """The codebook as it is used, [K, c]: of unit length where normalized."""
        return (
            F.normalize(self.embedding.weight, dim=1) if self.normalize else self.embedding.weight
        )

    def forward(self, encoded: Tensor, *, noise: Tensor | None = None) -> BottleneckOutput:
        """Quantize ``encoded`` [B, c, h, w]; while unquantized, hand it on with zero terms."""
        with torch.autocast(encoded.device.type, enabled=False):
            # Distances in half precision pick wrong codes.
            encoded = encoded.to(self.embedding.weight.dtype)
            if self.normalize:
                encoded = F.normalize(encoded, dim=1)
            vectors = encoded.movedim(1, -1)  # [B, h, w, c]
            if self.training:
                self._batch_vectors = vectors.detach().flatten(0, 2)
            if not self.is_quantizing:
                zero = encoded.new_zeros(())
                terms = {"codebook": zero, "commitment": zero}
                return BottleneckOutput(latents=encoded, continuous=encoded, terms=terms)
            codes = self.codes()
            indices = nearest(vectors.detach().flatten(0, 2), codes.detach())
            if self.training:
                counts = torch.bincount(indices, minlength=self.num_codes)
                self._batch_counts = (
                    counts if self._batch_counts is None else self._batch_counts + counts
                )
            indices = indices.view(vectors.shape[:-1])
            quantized = F.embedding(indices, codes).movedim(-1, 1)  # [B, c, h, w]
            terms = {
                "codebook": (quantized - encoded.detach()).square().flatten(1).mean(dim=1),
                "commitment": (encoded - quantized.detach()).square().flatten(1).mean(dim=1),
            }
            latents = encoded + (quantized - encoded).detach()
            return BottleneckOutput(
                latents=latents, continuous=encoded, terms=terms, indices=indices
            )

    @torch.no_grad()
    def after_update(self, *, step: int, seed: int) -> None:
        """Count uses, place the first codes, restart dead ones; alike on every process."""
        vectors, self._batch_vectors = self._batch_vectors, None
        counts, self._batch_counts = self._batch_counts, None
        if vectors is None:
            return
        if not self.is_quantizing:
            self._add_to_pool(all_gather_rows(vectors), step=step, seed=seed)
            if step + 1 >= self.quantize_start_step:
                self._place_codes(step=step, seed=seed)
            return
        if self.restart_every_steps and counts is not None:
            self.counts += all_reduce_sum(counts)
            if (step + 1) % self.restart_every_steps == 0:
                self._restart_dead_codes(all_gather_rows(vectors), step=step, seed=seed)
                self.counts.zero_()

    @torch.no_grad()
    def start_from(self, vectors: Tensor, *, seed: int) -> None:
        """Place the codes by k-means and quantize from the first update."""
        limit = MAX_START_VECTORS_PER_CODE * self.num_codes
        if len(vectors) > limit:
            order = torch.randperm(len(vectors), generator=generator_for(seed, "start"))
            vectors = vectors[order[:limit].to(vectors.device)]
        vectors = F.normalize(vectors, dim=1) if self.normalize else vectors
        centers = kmeans(vectors, self.num_codes, generator=generator_for(seed, "kmeans", "start"))
        self.embedding.weight.copy_(broadcast_from_first(centers))
        self.is_quantizing.fill_(True)

    def _add_to_pool(self, vectors: Tensor, *, step: int, seed: int) -> None:
        """Keep the newest encoder outputs, at most half the pool from one update."""
        limit = max(1, len(self.pool) // 2)
        if len(vectors) > limit:
            order = torch.randperm(len(vectors), generator=generator_for(seed, "pool", step))
            vectors = vectors[order[:limit].to(vectors.device)]
        self.pool.copy_(torch.cat([vectors, self.pool[: len(self.pool) - len(vectors)]]))
        self.num_pooled.add_(len(vectors)).clamp_(max=len(self.pool))

    def _place_codes(self, *, step: int, seed: int) -> None:
        filled = self.pool[: int(self.num_pooled)]
        centers = kmeans(filled, self.num_codes, generator=generator_for(seed, "kmeans", step))
        # On a GPU sums depend on the order of its threads: each process would keep its own codes.
        self.embedding.weight.copy_(broadcast_from_first(centers))
        self.is_quantizing.fill_(True)
        self._note_assigned(torch.ones(self.num_codes, dtype=torch.bool))

    def _restart_dead_codes(self, vectors: Tensor, *, step: int, seed: int) -> None:
        """Move dead codes to encoder outputs, each to another one.

        Of two codes at one place rounding would decide which is used, and one would stay dead. Dead
        codes beyond the number of vectors wait for the next restart.

        Adam's moments of a code stay: without gradients for R updates its first moment has shrunk
        to beta_1^R, 1e-5 after 100 updates at 0.9, so that there is nothing left to forget.
        """
        order = torch.randperm(len(vectors), generator=generator_for(seed, "restart", step))
        dead = (self.counts == 0).nonzero().flatten()[: len(vectors)]
        self.embedding.weight[dead] = vectors[order[: len(dead)].to(vectors.device)]
        moved = torch.zeros_like(self.counts, dtype=torch.bool)
        moved[dead] = True
        self._note_assigned(moved)

    def _note_assigned(self, rows: Tensor) -> None:
        """Add rows, bool [K], to those that ``take_assigned`` returns."""
        rows = rows.to(self.embedding.weight.device)
        self._assigned = rows if self._assigned is None else self._assigned | rows

    def take_assigned(self) -> dict[str, Tensor]:
        """Return the codes that k-means or a restart has placed since the last call."""
        rows, self._assigned = self._assigned, None
        return {} if rows is None else {"embedding.weight": rows}

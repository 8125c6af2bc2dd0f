"""Two defects of young first stages as numbers: missing color, visible blocks of the latent grid.

Brightness varies more than color and is learned first, so that gray reconstructions reach a fair
PSNR. A decoder that sees each latent alone leaves edges at every f-th pixel.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

COLOR_NAME = "color_explained"
BLOCKS_NAME = "block_edge_ratio"

# ITU-R BT.601: blue and red less brightness, as JPEG files hold them.
CHROMA = torch.tensor([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


class ColorExplained(Metric):
    """Explained variance of color: 1 - error / variance over Cb and Cr of all pixels of a set.

    1 is the images' color, 0 that of gray reconstructions where images average to gray.
    """

    full_state_update = False
    error: Tensor
    total: Tensor
    square: Tensor
    num_pixels: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("error", ()), ("total", (2,)), ("square", ())):
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        zero = torch.zeros((), dtype=torch.int64)
        self.add_state("num_pixels", zero, dist_reduce_fx="sum")

    def update(self, reconstructions: Tensor, images: Tensor) -> None:
        """Add a batch, [B, 3, H, W] of any range; one without images is valid."""
        chroma = CHROMA.to(images.device)
        seen = torch.einsum("kc,bchw->bkhw", chroma, images.float())
        made = torch.einsum("kc,bchw->bkhw", chroma, reconstructions.float())
        self.error += (made - seen).double().square().sum()
        self.square += seen.double().square().sum()
        self.total += seen.double().sum(dim=(0, 2, 3))
        self.num_pixels += images.shape[0] * images.shape[2] * images.shape[3]

    def compute(self) -> float:
        """Explained fraction, at most 1; NaN without images or where all have one color."""
        variance = self.square - (self.total.square() / self.num_pixels).sum()
        return float(1 - self.error / variance) if variance > 0 else float("nan")


class BlockEdgeRatio(Metric):
    """Mean step of reconstructions across the latent grid's lines over that elsewhere.

    1 means no blocks; from 1.1 on they are seen in smooth regions.

    Args:
        downsampling_factor: Distance of the grid's lines in pixels, f.
    """

    full_state_update = False
    across: Tensor
    num_across: Tensor
    elsewhere: Tensor
    num_elsewhere: Tensor

    def __init__(self, downsampling_factor: int) -> None:
        super().__init__()
        self.downsampling_factor = downsampling_factor
        for name in ("across", "elsewhere"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(name, zero, dist_reduce_fx="sum")
            count = torch.zeros((), dtype=torch.int64)
            self.add_state(f"num_{name}", count, dist_reduce_fx="sum")

    def update(self, reconstructions: Tensor) -> None:
        """Add a batch, [B, C, H, W] of any range; one without images is valid."""
        for axis in (2, 3):
            steps = reconstructions.float().diff(dim=axis).abs().transpose(axis, 3)
            after = torch.arange(1, steps.shape[3] + 1, device=steps.device)
            on_line = after % self.downsampling_factor == 0
            self.across += steps[..., on_line].double().sum()
            self.num_across += steps[..., on_line].numel()
            self.elsewhere += steps[..., ~on_line].double().sum()
            self.num_elsewhere += steps[..., ~on_line].numel()

    def compute(self) -> float:
        """Ratio of the two means; NaN where one has no pixels or nothing varies."""
        if not (self.num_across and self.num_elsewhere and self.elsewhere > 0):
            return float("nan")
        return float((self.across / self.num_across) / (self.elsewhere / self.num_elsewhere))

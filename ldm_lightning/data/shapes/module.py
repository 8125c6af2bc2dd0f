"""A procedural data set: one shape with class, color and caption, over a plain or textured ground.

Image i is a function of i, the resolution and the number of channels: nothing is stored, nothing is
downloaded, and every run and machine sees the same images.
"""

import numpy as np
import torch
from torch.utils.data import Dataset

from ldm_lightning.data.bad_files import BadFileLog
from ldm_lightning.data.image_module import ImageDataModule
from ldm_lightning.data.loading import LoadingSettings
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.samples import Sample, digest_of
from ldm_lightning.data.shapes.backgrounds import GROUNDS, grid
from ldm_lightning.data.shapes.signed_distances import SHAPES
from ldm_lightning.data.transforms import as_size
from ldm_lightning.data.value_range import ValueRange
from ldm_lightning.data.workers import TIMEOUT_SECONDS
from ldm_lightning.utils.random import derive_seed

# Raise this whenever an image changes, so that cached statistics of the old ones are not used.
VERSION = 1
# Held-out images are numbered from here on, far beyond any training set.
FIRST_VAL_INDEX = 2**40

COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 135, 30),
    "yellow": (250, 220, 50),
    "green": (45, 160, 60),
    "cyan": (60, 200, 210),
    "blue": (40, 75, 200),
    "purple": (125, 50, 160),
    "pink": (245, 150, 190),
    "brown": (110, 70, 40),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "white": (242, 242, 242),
}
GRAYS = {
    "black": (20,),
    "dark gray": (75,),
    "gray": (130,),
    "light gray": (185,),
    "white": (240,),
}
# Chosen by looking at 32-pixel images. The shape keeps this distance from every mixture of the two
# colors of its ground, so that it also stands out where a first stage has averaged the texture
# away.
MIN_DISTANCE = {1: 90.0, 3: 130.0}  # by number of channels, Euclidean, in 8-bit levels
COLOR_JITTER = 10.0  # uniform, plus or minus, in 8-bit levels
# How far a texture goes from the first color to the second. At full strength hardly any of it
# survives a first stage, and every figure measures the textures alone.
STRENGTH = (0.3, 0.6)
NOISE_STRENGTH = 0.5  # times the above: noise cannot be compressed at all


CLASS_NAMES = list(SHAPES)


def _contrasting_pairs(colors: np.ndarray, color: int, least: float) -> np.ndarray:
    """Ordered pairs of colors, [pairs, 2], no mixture of which is nearer than ``least``."""
    first, second = colors[:, None], colors[None]  # [n, 1, C], [1, n, C]
    span = second - first
    length = (span**2).sum(-1)
    nearest = ((colors[color] - first) * span).sum(-1) / np.maximum(length, 1)
    mixture = first + np.clip(nearest, 0, 1)[..., None] * span
    distance = np.linalg.norm(mixture - colors[color], axis=-1)  # [n, n]
    return np.argwhere((distance >= least) & (length > 0))


class Shapes(Dataset[Sample]):
    """Shapes over grounds. The label of image i is i modulo the number of classes.

    Args:
        resolution: Height and width.
        image_channels: 1 or 3.
        textures: Textured grounds; False gives plain ones.
        split: ``train`` or ``val``; their images are different ones.
        num_images: Images of the split.

    Raises:
        ValueError: If ``image_channels`` or ``num_images`` is out of range.
    """

    data_name = "shapes"
    root = "embedded"
    identified_by = "parameters"
    crop = "none"
    windows_per_image = 1
    value_range: ValueRange | None = None

    def __init__(
        self,
        *,
        resolution: tuple[int, int],
        image_channels: int,
        textures: bool,
        split: str,
        num_images: int,
    ) -> None:
        if image_channels not in (1, 3):
            raise ValueError(
                f"data=shapes has 1 or 3 channels, got image_channels={image_channels}."
            )
        if num_images < 1:
            raise ValueError(
                f"The {split} split of shapes needs at least 1 image, got {num_images}."
            )
        self.resolution = resolution
        self.image_channels = image_channels
        self.textures = textures
        self.split = split
        self.num_images = num_images
        self.num_classes: int | None = len(CLASS_NAMES)
        self.class_names: list[str] | None = CLASS_NAMES
        self.label_gap = ""
        self.bad_file_log: BadFileLog | None = None
        palette = COLORS if image_channels == 3 else GRAYS
        self._color_names = list(palette)
        self._colors = np.array(list(palette.values()), dtype=np.float32)  # [colors, C]
        # For each color a shape can have, the pairs of ground colors it stands out from.
        self._grounds_of = {
            color: pairs
            for color in range(len(self._colors))
            if len(pairs := _contrasting_pairs(self._colors, color, MIN_DISTANCE[image_channels]))
        }

    def __len__(self) -> int:
        return self.num_images

    def key(self, index: int) -> str:
        """Name of a sample."""
        return f"shapes/{self.split}/{index}"

    def without_augmentation(self) -> "Shapes":
        """Itself: nothing is cut or mirrored."""
        return self

    def class_counts(self) -> list[int] | None:
        """Images of each class."""
        count = len(CLASS_NAMES)
        return [len(range(label, self.num_images, count)) for label in range(count)]

    def digest(self) -> str:
        """Short hash of what the images are a function of."""
        return digest_of([str(VERSION), str(self.textures), self.split, str(self.num_images)])

    def __getitem__(self, key: SampleKey) -> Sample:
        index = key.index
        number = index + (FIRST_VAL_INDEX if self.split == "val" else 0)
        # PCG64 seeded by a hash: the same numbers on every machine.
        rng = np.random.Generator(np.random.PCG64(derive_seed("shapes", VERSION, number)))
        label = index % len(CLASS_NAMES)
        shape_color = list(self._grounds_of)[int(rng.integers(len(self._grounds_of)))]
        ground_colors = rng.choice(self._grounds_of[shape_color])
        ground, ground_name = self._draw_ground(rng, ground_colors)
        coverage = self._draw_shape(rng, CLASS_NAMES[label])[..., None]  # [H, W, 1]
        image = ground + coverage * (self._jittered(rng, shape_color) - ground)
        pixels = np.clip(image + 0.5, 0, 255).astype(np.uint8)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            key=self.key(index),
            label=label,
            caption=f"a {self._color_names[shape_color]} {CLASS_NAMES[label]} on {ground_name}",
        )

    def _jittered(self, rng: np.random.Generator, color: int) -> np.ndarray:
        shift = rng.uniform(-COLOR_JITTER, COLOR_JITTER, self.image_channels)
        return (self._colors[color] + shift).astype(np.float32)

    def _draw_ground(self, rng: np.random.Generator, colors: np.ndarray) -> tuple[np.ndarray, str]:
        """Return the ground, float32 [H, W, C] or [C] where it is plain, and its name."""
        first, second = self._jittered(rng, colors[0]), self._jittered(rng, colors[1])
        names = [self._color_names[color] for color in colors]
        if not self.textures:
            return first, names[0]
        texture = list(GROUNDS)[int(rng.integers(len(GROUNDS)))]
        strength = rng.uniform(*STRENGTH) * (NOISE_STRENGTH if texture == "noise" else 1)
        share = GROUNDS[texture](rng, *self.resolution)[..., None] * np.float32(strength)
        return first + share * (second - first), f"{names[0]} and {names[1]} {texture}"

    def _draw_shape(self, rng: np.random.Generator, name: str) -> np.ndarray:
        """Coverage of each pixel by a turned shape within the image, float32 [H, W] in [0, 1]."""
        height, width = self.resolution
        radius = min(height, width) * rng.uniform(0.26, 0.42)
        room = np.array([height, width]) / 2 - radius - 1  # the edge is soft
        shift_y, shift_x = rng.uniform(-1, 1, 2) * room
        angle = rng.uniform(0, 2 * np.pi)
        x, y = grid(height, width)
        x, y = (x - np.float32(shift_x)) / radius, (y - np.float32(shift_y)) / radius
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        distance = SHAPES[name](cosine * x + sine * y, cosine * y - sine * x)
        # A pixel is covered by as much as the outline is beyond its center: edges one pixel soft.
        return np.clip(0.5 - distance * radius, 0, 1).astype(np.float32)


def shapes_data_module(
    *,
    resolution: int | tuple[int, int],
    image_channels: int,
    textures: bool,
    num_train_images: int,
    num_val_images: int,
    batch_size: int,
    val_batch_size: int,
    num_workers: int,
    max_val_images: int | None,
    seed: int,
    worker_timeout_seconds: float = TIMEOUT_SECONDS,
) -> ImageDataModule:
    """Build the data module; keys as in conf/data/shapes.yaml.

    ``seed`` sets the order, not the images.

    Raises:
        ValueError: If a setting is out of range.
    """
    size = as_size(resolution)
    train_dataset, val_dataset = (
        Shapes(
            resolution=size,
            image_channels=image_channels,
            textures=textures,
            split=split,
            num_images=num_images,
        )
        for split, num_images in (("train", num_train_images), ("val", num_val_images))
    )
    loading = LoadingSettings(
        batch_size=batch_size,
        val_batch_size=val_batch_size,
        num_workers=num_workers,
        seed=seed,
        max_val_images=max_val_images,
        worker_timeout_seconds=worker_timeout_seconds,
    )
    return ImageDataModule(train_dataset, val_dataset, loading)

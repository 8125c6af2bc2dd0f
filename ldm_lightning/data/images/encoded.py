"""Data sets of encoded images, in folders or tars: read, decode, crop; skip what is damaged."""

from torch import Tensor
from torch.utils.data import Dataset

from ldm_lightning.data.bad_files import BadFileLog
from ldm_lightning.data.images.decoding import UnreadableImageError, decode_image
from ldm_lightning.data.images.settings import ImageSettings
from ldm_lightning.data.images.source import ImageSource
from ldm_lightning.data.order.sampling import SampleKey
from ldm_lightning.data.samples import Sample
from ldm_lightning.data.transforms import (
    EvalTransform,
    TrainTransform,
    augmentation_generator,
)
from ldm_lightning.utils.random import derive_seed

# A training sample that cannot be read is replaced by another, which may be damaged too.
MAX_REPLACEMENTS = 100
NUM_NEAR_REPLACEMENTS = 10  # of them from its own shard, which is at hand


class EncodedImages(Dataset[Sample | None]):
    """Base of both kinds of data set below.

    Args:
        source: Where the encoded images come from.
        settings: Decoding and crops.
        transform: That of ``settings`` for this split.
    """

    windows_per_image = 1

    def __init__(
        self,
        source: ImageSource,
        settings: ImageSettings,
        transform: TrainTransform | EvalTransform,
    ) -> None:
        self.source = source
        self.settings = settings
        self.resolution = transform.size
        self.crop = transform.description
        self._least_side = transform.least_side
        self.image_channels = settings.image_channels
        self.value_range = settings.value_range
        self.data_name = source.data_name
        self.root = source.root
        self.split = source.split
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self.label_gap = source.label_gap
        self.identified_by = source.identified_by
        self.bad_file_log = BadFileLog(
            split=source.split,
            num_files=len(source),
            max_bad_fraction=settings.max_bad_fraction,
        )

    def class_counts(self) -> list[int] | None:
        """Images of each class, where there are classes."""
        return self.source.class_counts()

    def digest(self) -> str:
        """Short hash of the files' contents, names and labels, as they were at the first call."""
        return self.source.identity()

    def _decode(self, index: int) -> Tensor | None:
        """Decode an image, uint8 [C, H, W]; None, kept in the log, where that is impossible."""
        name = self.source.name(index)
        try:
            return decode_image(
                self.source.read(index),
                channels=self.image_channels,
                name=name,
                value_range=self.value_range,
                least_side=self._least_side,
            )
        except (OSError, UnreadableImageError, MemoryError) as err:
            self.bad_file_log.add(name, str(err) or type(err).__name__)
            return None

    def _sample(self, image: Tensor, index: int, key: str) -> Sample:
        sample = Sample(image=image, key=key)
        label, caption = self.source.annotations(index)
        if label is not None:
            sample["label"] = label
        if caption is not None:
            sample["caption"] = caption
        return sample


class TrainImages(EncodedImages):
    """Training split: an unreadable image is replaced by another, drawn from (seed, epoch, index).

    Args:
        source: Where the encoded images come from.
        settings: Decoding and crops.
        seed: The run's seed.
    """

    def __init__(self, source: ImageSource, settings: ImageSettings, *, seed: int) -> None:
        self.transform = settings.train_transform
        super().__init__(source, settings, self.transform)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> str:
        """Name of a sample."""
        return self.source.name(index)

    def without_augmentation(self) -> "EvalImages":
        """The same images cut as for evaluation; one that cannot be read is left out."""
        return EvalImages(self.source, self.settings)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key.epoch, key.index
        generator = augmentation_generator(self.seed, key)
        chosen = index
        for attempt in range(MAX_REPLACEMENTS):
            image = self._decode(chosen)
            if image is not None:
                return self._sample(self.transform(image, generator), chosen, self.key(chosen))
            choices = (
                self.source.near(index)
                if attempt < NUM_NEAR_REPLACEMENTS
                else range(len(self.source))
            )
            draw = derive_seed(self.seed, "replacement", epoch, index, attempt)
            chosen = choices[draw % len(choices)]
        raise ValueError(
            f"None of {MAX_REPLACEMENTS} images tried under {self.root} can be read. The latest: "
            f"{self.source.name(chosen)}."
        )


class EvalImages(EncodedImages):
    """Evaluation split: an unreadable image is left out (None).

    Sample i is window ``i % crops_per_image`` of image ``i // crops_per_image``.

    Args:
        source: Where the encoded images come from.
        settings: Decoding and crops, one or several an image.
    """

    def __init__(self, source: ImageSource, settings: ImageSettings) -> None:
        self.transform = settings.eval_transform
        super().__init__(source, settings, self.transform)
        self.windows_per_image = self.transform.crops_per_image
        # Windows of one image follow one another: keep the image instead of decoding it for each.
        self._latest: tuple[int, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self.source) * self.windows_per_image

    def key(self, index: int) -> str:
        """Name of a sample: the file's, and the window's number where there are several."""
        image, number = divmod(index, self.windows_per_image)
        name = self.source.name(image)
        return name if self.windows_per_image == 1 else f"{name}#{number}"

    def without_augmentation(self) -> "EvalImages":
        """Itself: an evaluation split is never augmented."""
        return self

    def __getitem__(self, key: SampleKey) -> Sample | None:
        index, number = divmod(key.index, self.windows_per_image)
        if self._latest is None or self._latest[0] != index:
            self._latest = (index, self._decode(index))
        image = self._latest[1]
        if image is None:
            return None
        window = self.transform(image, name=self.source.name(index), number=number)
        return self._sample(window, index, self.key(key.index))

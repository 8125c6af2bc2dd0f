"""Reads the hostile corpus with little memory and prints what became of each file, as JSON.

A process of its own, because the bound on its memory cannot be raised again.
"""

import io
import json
import resource
import sys
import time

import torch

from ldm_lightning.data.images.decoding import UnreadableImageError, decode_image
from ldm_lightning.data.shards.tar_index import index_shard
from ldm_lightning.data.transforms import EvalTransform, TrainTransform
from tests.data.images.hostile_corpus import READ, REFUSED, UNREADABLE, Hostile, images, shards

SIZE = (64, 64)
TRAIN = [
    TrainTransform(size=SIZE, crop=crop, scale=(0.5, 1.0), flip=True)
    for crop in ("center", "random", "random_resized")
]
EVALUATION = [
    EvalTransform(size=SIZE, crop=crop, crops_per_image=1) for crop in ("center", "crops")
]


def read_image(hostile: Hostile) -> str:
    images = {}
    try:
        for side in {transform.least_side for transform in (*TRAIN, *EVALUATION)}:
            images[side] = decode_image(
                hostile.content, channels=3, name=hostile.name, least_side=side
            )
    except UnreadableImageError as err:
        return UNREADABLE if hostile.name in str(err) else str(err)
    crops = [
        transform(images[transform.least_side], torch.Generator().manual_seed(0))
        for transform in TRAIN
    ]
    crops += [
        transform(images[transform.least_side], name=hostile.name, number=0)
        for transform in EVALUATION
    ]
    return READ if {crop.shape[1:] for crop in crops} == {SIZE} else "of another size"


def read_shard(hostile: Hostile) -> str:
    try:
        samples = index_shard(io.BytesIO(hostile.content), hostile.name).samples
    except ValueError as err:
        return REFUSED if hostile.name in str(err) else str(err)
    # Without any image the data set is refused.
    return READ if [sample.key for sample in samples] == ["good"] else REFUSED


def in_use() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmSize"))
    return int(line.split()[1]) * 1024


def main() -> None:
    room = in_use() + int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    found = {}
    for read, corpus in ((read_image, images()), (read_shard, shards())):
        for hostile in corpus:
            start = time.process_time()
            try:
                fate = read(hostile)
            except BaseException as err:  # whatever it is, the test says of which file
                fate = repr(err)
            found[hostile.name] = (fate, time.process_time() - start)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()

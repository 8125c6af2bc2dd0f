"""Philox4x64-10 against the known answers that Random123 1.14 publishes."""

import pytest
import torch

from ldm_lightning.utils import philox
from ldm_lightning.utils.philox import random_words

CPU = torch.device("cpu")
ONES = 2**64 - 1
PI = (
    (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
    (0x452821E638D01377, 0xBE5466CF34E90C6C),
)
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (ONES, ONES, ONES, ONES),
        (ONES, ONES),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        *PI,
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def by_torch(counter, key):
    words = [torch.tensor([philox._signed(word)]) for word in counter]
    return philox.philox(key, words)[0]


def by_numpy(counter, key):
    stream = sum(word << (64 * place) for place, word in enumerate(counter[1:]))
    return philox._words_of_numpy(key, stream, counter[0], 1)


@pytest.mark.parametrize("draw", [by_torch, by_numpy])
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_gives_the_published_words(draw, counter, key, answer):
    assert [word % 2**64 for word in draw(counter, key).tolist()] == list(answer)


@pytest.mark.parametrize("rows", [range(5, 12), [3, 4, 9, 0], [7], range(2**40, 2**40 + 3)])
@pytest.mark.parametrize("stream", [0, 1, 2**63 + 5])
def test_torch_and_numpy_agree_in_every_bit(monkeypatch, rows, stream):
    key = (0xD1B54A32D192ED03, 0x2545F4914F6CDD1D)
    numpy_words = random_words(key, stream, rows, blocks_a_row=3, device=CPU)
    monkeypatch.setattr(philox, "_on_host", lambda device: False)
    assert torch.equal(random_words(key, stream, rows, blocks_a_row=3, device=CPU), numpy_words)


def test_every_block_of_keys_streams_and_rows_is_its_own():
    words = [
        random_words(key, stream, range(50), blocks_a_row=2, device=CPU).view(-1, 4)
        for key in [(1, 2), (2, 1), (1, 3)]
        for stream in range(4)
    ]
    blocks = torch.cat(words)
    assert len(blocks.flatten().unique()) == blocks.numel()  # 4800 of 2^64: no chance repetition

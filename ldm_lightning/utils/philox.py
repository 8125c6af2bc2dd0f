"""Counter-based random bits: Philox4x64-10, alike on every device.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.3. Block i of
a stream is a function of (key, counter i): four words of 64 bits, drawn in any order and place.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

WORDS_A_BLOCK = 4
NUM_ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_INCREMENTS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
LOW_HALF = 2**32 - 1

Key = tuple[int, int]


def random_words(
    key: Key, stream: int, rows: Sequence[int], *, blocks_a_row: int, device: torch.device
) -> Tensor:
    """Random words of some rows of a stream.

    Block j of row r has the counter (r * blocks_a_row + j, stream, 0, 0).

    Args:
        key: Two numbers of 64 bits.
        stream: In [0, 2**64), such as the update.
        rows: R indices, each at least 0.
        blocks_a_row: Blocks of four words that each row has.
        device: Where they are drawn.

    Returns:
        [R, 4 * blocks_a_row] int64, which holds the bits of unsigned numbers.
    """
    if _on_host(device):
        parts = [
            _words_of_numpy(key, stream, first * blocks_a_row, num_rows * blocks_a_row)
            for first, num_rows in _consecutive(rows)
        ]
        words = torch.cat(parts) if len(parts) != 1 else parts[0]
    else:
        offsets = torch.arange(blocks_a_row, device=device)
        blocks = torch.tensor(rows, device=device)[:, None] * blocks_a_row + offsets
        zero = torch.zeros_like(blocks).flatten()
        words = philox(key, [blocks.flatten(), zero + _signed(stream), zero, zero])
    return words.view(len(rows), blocks_a_row * WORDS_A_BLOCK)


def _on_host(device: torch.device) -> bool:
    """Say where numpy draws: its compiled rounds take 5 ns a word, torch's on a CPU 200."""
    return device.type == "cpu"


def philox(key: Key, counter: Sequence[Tensor]) -> Tensor:
    """Philox4x64-10 of N counters in int64, whose operations wrap as unsigned ones do.

    Args:
        key: Two numbers of 64 bits.
        counter: Four words, each [N] int64.

    Returns:
        [N, 4] int64.
    """
    even, odd = torch.stack([counter[0], counter[2]]), torch.stack([counter[1], counter[3]])
    device = even.device
    low, high = (
        torch.tensor(half, device=device)[:, None]
        for half in ([m & LOW_HALF for m in MULTIPLIERS], [m >> 32 for m in MULTIPLIERS])
    )
    keys = [
        [_signed(word + index * step) for word, step in zip(key, KEY_INCREMENTS, strict=True)]
        for index in range(NUM_ROUNDS)
    ]
    for round_key in torch.tensor(keys, device=device)[:, :, None]:
        upper, lower = _product(even, low, high)
        even, odd = upper.flip(0) ^ odd ^ round_key, lower.flip(0)
    return torch.stack([even[0], odd[0], even[1], odd[1]], dim=1)


def _product(words: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower 64 bits of unsigned words times constants given by their 32-bit halves."""
    words_low, words_high = words & LOW_HALF, _upper_half(words)
    low_low, low_high, high_low = words_low * low, words_low * high, words_high * low
    middle = _upper_half(low_low) + (low_high & LOW_HALF) + (high_low & LOW_HALF)
    upper = words_high * high + _upper_half(low_high) + _upper_half(high_low) + (middle >> 32)
    return upper, (middle << 32) | (low_low & LOW_HALF)


def _upper_half(words: Tensor) -> Tensor:
    return (words >> 32) & LOW_HALF


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    word %= 2**64
    return word - 2**64 if word >= 2**63 else word


def _words_of_numpy(key: Key, stream: int, first_block: int, num_blocks: int) -> Tensor:
    """Words of consecutive blocks, [4 * num_blocks] int64, by numpy's generator on the CPU."""
    counter = (stream << 64) + first_block
    # numpy increments its counter before the first block
    generator = np.random.Philox(counter=(counter - 1) % 2**256, key=key[0] + (key[1] << 64))
    return torch.from_numpy(generator.random_raw(num_blocks * WORDS_A_BLOCK).view(np.int64))


def _consecutive(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and length of each run of consecutive rows."""
    numbered = enumerate(rows)
    for _, run in itertools.groupby(numbered, key=lambda pair: pair[1] - pair[0]):
        members = [row for _, row in run]
        yield members[0], len(members)

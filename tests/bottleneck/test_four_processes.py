"""Four gloo processes keep the codebook that one process keeps, to 1e-10 in float64.

k-means start, uses of the codes, restart of dead ones, and what is measured of them.
"""

import pytest
import torch
import torch.distributed as dist

from ldm_lightning.bottleneck import vector_quantizer
from ldm_lightning.bottleneck.vector_quantizer import VectorQuantizer
from ldm_lightning.metrics.codebook import CodebookUsage
from tests.processes import join_gloo, run_processes

NUM_PROCESSES = 4
NUM_CODES = 64
GLOBAL_BATCH_SIZE = 8
NUM_STEPS = 9


def updated(rank, num_processes, *, normalize):
    """Codebook, counts and measured use after each update, on this process's rows."""
    torch.manual_seed(0)
    bottleneck = VectorQuantizer(
        num_codes=NUM_CODES,
        latent_channels=4,
        normalize=normalize,
        quantize_start_step=3,
        restart_every_steps=3,
    ).double()
    usage = CodebookUsage(NUM_CODES)
    seen = []
    rows = GLOBAL_BATCH_SIZE // num_processes
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(step)
        # Two clusters: most codes die, and are restarted.
        encoded = torch.randn(GLOBAL_BATCH_SIZE, 4, 3, 3, generator=generator, dtype=torch.float64)
        encoded = 0.05 * encoded + torch.arange(GLOBAL_BATCH_SIZE).remainder(2).view(-1, 1, 1, 1)
        own = encoded[rank * rows : (rank + 1) * rows]
        output = bottleneck.train()(own)
        bottleneck.after_update(step=step, seed=7)
        placed = bottleneck.take_assigned().get("embedding.weight", torch.zeros(NUM_CODES) > 0)
        assert not bottleneck.take_assigned()  # once is enough
        counts = bottleneck.counts.clone()
        usage.reset()
        indices = bottleneck.eval()(own).indices
        if indices is None:
            continue
        # Only half of the processes have images to validate.
        shared = torch.cat(all_rows(indices)) if num_processes > 1 else indices
        held = shared if num_processes == 1 else shared.chunk(2)[rank] if rank < 2 else shared[:0]
        usage.update(held)
        result = usage.compute()
        seen.append(
            {
                "codes": bottleneck.codes().detach().clone(),
                "counts": counts,
                "placed": placed,
                "histogram": result.histogram,
                "perplexity": result.perplexity,
                "usage": result.usage,
                "quantized": output.indices is not None,
            }
        )
    return seen


def all_rows(indices):
    parts = [torch.empty_like(indices) for _ in range(NUM_PROCESSES)]
    dist.all_gather(parts, indices)
    return parts


def disagreeing(rank):
    """Codes after a k-means that gives another result on every process, as on GPUs it may."""
    original = vector_quantizer.kmeans
    vector_quantizer.kmeans = lambda *args, **options: original(*args, **options) + rank
    codes = updated(rank, NUM_PROCESSES, normalize=False)[-1]["codes"]
    vector_quantizer.kmeans = original
    return codes


def work(rank, folder):
    join_gloo(rank, folder, NUM_PROCESSES)
    found = {
        "plain": updated(rank, NUM_PROCESSES, normalize=False),
        "normalized": updated(rank, NUM_PROCESSES, normalize=True),
        "disagreeing": disagreeing(rank),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codebook")
    run_processes(work, str(folder), number=NUM_PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "normalized"])
def test_four_processes_keep_the_codebook_of_one(processes, kind):
    expected = updated(0, 1, normalize=kind == "normalized")
    assert [each["quantized"] for each in expected] == [False] + [True] * 6
    dead = [int((each["histogram"] == 0).sum()) for each in expected]
    assert max(dead) > 0
    moved = [
        not torch.equal(one["codes"], two["codes"])
        for one, two in zip(expected, expected[1:], strict=False)
    ]
    assert any(moved)  # codes were restarted
    assert [bool(each["placed"].any()) for each in expected[1:]] == moved
    for process in processes:
        for each, one in zip(process[kind], expected, strict=True):
            torch.testing.assert_close(each["codes"], one["codes"], rtol=1e-10, atol=1e-10)
            assert torch.equal(each["counts"], one["counts"])
            assert torch.equal(each["placed"], one["placed"])
            assert torch.equal(each["histogram"], one["histogram"])
            assert each["perplexity"] == pytest.approx(one["perplexity"], rel=1e-10)
            assert each["usage"] == one["usage"]


@pytest.mark.slow
def test_all_processes_start_from_the_codes_of_the_first(processes):
    codes = [process["disagreeing"] for process in processes]
    for other in codes[1:]:
        assert torch.equal(other, codes[0])

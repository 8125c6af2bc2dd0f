"""The tables of a plan, 80 columns wide; every figure says whether it is counted or measured."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from ldm_lightning.reporting.table import print_rows
from ldm_lightning.utils.terminal import one_line, printable
from ldm_lightning.utils.units import format_bytes, format_flops, format_seconds

Rows = list[tuple[str, str, str]]


def print_plan(facts: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print every table that the facts have something for.

    Args:
        facts: Of ``planning.facts``.
        console: Where to print; the terminal by default.
    """
    console = Console() if console is None else console
    shape = _shape(facts["image_shape"])
    for line in (
        f"{facts['name']}, scale={facts['scale']}: {shape} images",
        f"Device: {facts['device']}",
    ):
        console.print(one_line(line), highlight=False, markup=False)
    for title, rows in (
        ("Parameters (counted)", _parameters(facts)),
        ("Operations on one image (counted; a multiply-add is two)", _operations(facts)),
        ("Latents", _latents(facts)),
        ("Memory of one process (counted; allocators add to it)", _memory(facts)),
        ("Latent cache of the training images, without mirrored copies", _cache(facts)),
        ("Disk", _disk(facts)),
        ("Time", _time(facts)),
    ):
        if rows:
            console.print()
            print_rows(("", "value", "how"), rows, title=title, console=console)
    if "denoiser_in" in facts:
        console.print()
        _print_spaces(facts["denoiser_in"], console)
    if warning := facts["memory"]["warning"]:
        console.print(f"\n{printable(warning)}", highlight=False, markup=False)


def _parameters(facts: Mapping[str, Any]) -> Rows:
    return [(name, f"{count:,}", "") for name, count in facts["parameters"].items()]


def _operations(facts: Mapping[str, Any]) -> Rows:
    flops = facts["flops"]
    rows = [(name, format_flops(value), "forward") for name, value in flops["forward"].items()]
    rows.append(("one update", format_flops(flops["update"]), "counted, forward and backward"))
    rows.append(
        ("", format_flops(flops["update_by_formula"]), f"by the formula {flops['formula']}")
    )
    if gradient_checkpointing := facts["memory"].get("gradient_checkpointing"):
        rows.append(
            (
                "",
                format_flops(gradient_checkpointing["flops"]),
                "counted, with gradient_checkpointing=true",
            )
        )
    total = flops["update"] * facts["images_per_update"] * facts["max_steps"]
    images = f"{facts['images_per_update']:,}"
    rows.append(
        ("all updates", format_flops(total), f"{facts['max_steps']:,} updates of {images} images")
    )
    return rows


def _latents(facts: Mapping[str, Any]) -> Rows:
    latents = facts["latents"]
    before, after = latents["numbers_of_an_image"], latents["numbers_of_its_latents"]
    rows = [
        ("shape", _shape(latents["shape"]), f"of {_shape(facts['image_shape'])} images"),
        ("compression", f"{latents['compression']:.4g}", f"{before:,} -> {after:,} numbers"),
    ]
    if (bits := latents["bits_per_pixel"]) is not None:
        raw = 8 * facts["image_shape"][0]
        how = f"bits a pixel, {raw / bits:.4g} times fewer than of 8-bit images"
        rows.append(("codes", f"{bits:.3g}", how))
    return rows


def _memory(facts: Mapping[str, Any]) -> Rows:
    memory = facts["memory"]
    batch = f"batch of {facts['batch_size']}, precision {facts['precision']}"
    rows = [
        ("weights", format_bytes(memory["weights"]), "with frozen networks"),
        ("optimizer", format_bytes(memory["optimizer"]), "two moments"),
    ]
    for key, name, how in (
        ("average", "moving average", ""),
        ("ddp_buckets", "DDP buckets", "gradients in transit"),
    ):
        if memory[key]:
            rows.append((name, format_bytes(memory[key]), how))
    peak = format_bytes(memory["peak_of_update"])
    rows += [
        ("peak of an update", peak, batch),
        ("  of that kept", format_bytes(memory["kept_for_backward"]), "for the backward pass"),
        ("  gradients", format_bytes(memory["gradients"]), "when all are there"),
        ("sum", format_bytes(memory["sum"]), ""),
    ]
    if gradient_checkpointing := memory.get("gradient_checkpointing"):
        kept = format_bytes(gradient_checkpointing["kept_for_backward"])
        rows.append(
            (
                "  gradient_checkpointing=true",
                format_bytes(gradient_checkpointing["sum"]),
                f"keeps {kept}",
            )
        )
    if memory["available"] is not None:
        rows.append(("free", format_bytes(memory["available"]), "measured now"))
    return rows


def _cache(facts: Mapping[str, Any]) -> Rows:
    if (cache := facts.get("latent_cache")) is None:
        return []
    what = "mean and variance" if cache["mean_and_variance"] else "mean"
    one = format_bytes(cache["bytes_per_image"]["float32"])
    rows = [("one image", one, f"counted, {what}, float32")]
    if cache["num_images"] is None:
        rows.append(("all images", "unknown", "give plan.num_images, or data"))
    for dtype, size in cache.get("bytes", {}).items():
        rows.append((f"{cache['num_images']:,} images", format_bytes(size), f"counted, {dtype}"))
    if "bytes_on_disk" in cache:
        rows.append(("as it lies there", format_bytes(cache["bytes_on_disk"]), "measured"))
    return rows


def _disk(facts: Mapping[str, Any]) -> Rows:
    disk = facts["disk"]
    return [
        ("one checkpoint", format_bytes(disk["checkpoint"]), "counted"),
        ("at the end", format_bytes(disk["at_the_end"]), "last and best; pictures add a little"),
    ]


def _time(facts: Mapping[str, Any]) -> Rows:
    time = facts["time"]
    if "estimated_seconds" not in time:
        return [("", "", f"not measured: {time['not_measured']}")]
    speed = f"{time['measured_images_per_s']:.3g} images/s"
    if time["not_measured"]:
        probe = format_flops(time["measured_probe_flops_per_s"])
        how = f"not measured: {time['not_measured']}"
        rows = [
            ("one convolution", f"{probe}/s", "measured"),
            ("one update", format_seconds(time["measured_seconds_per_update"]), how),
        ]
    else:
        how = f"measured, median of {time['measured_updates']}; {speed}"
        reached = f"{format_flops(time['measured_flops_per_s'])}/s"
        rows = [
            ("one update", format_seconds(time["measured_seconds_per_update"]), how),
            ("", reached, "measured" if facts["num_processes"] == 1 else "measured, one process"),
            (
                "peak memory",
                format_bytes(time["measured_peak_bytes"]),
                "measured, with all libraries",
            ),
        ]
    each = time["estimated_seconds_per_validation"]
    validations, how = "unknown", "as the number of images is"
    if each is not None:
        validations = format_seconds(time["num_validations"] * each)
        how = f"estimated: {format_seconds(each)} each, and the metrics"
    return [
        *rows,
        (
            "all updates",
            format_seconds(time["estimated_seconds_of_updates"]),
            f"estimated: {facts['max_steps']:,}",
        ),
        (f"{time['num_validations']} validations", validations, how),
        ("the run", format_seconds(time["estimated_seconds"]), "estimated"),
    ]


def _print_spaces(spaces: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """The same denoiser in pixels and in latents (requirement D3)."""
    pixels, latents = spaces["pixels"], spaces["latents"]
    rows: list[tuple[str, str, str, str]] = []
    for name, key, form in (
        ("numbers", "numbers", _whole),
        ("forward pass", "forward_flops", format_flops),
        ("kept for backward", "kept_bytes_float32", format_bytes),
    ):
        ratio = f"{pixels[key] / latents[key]:.3g} x"
        rows.append((name, form(pixels[key]), form(latents[key]), ratio))
    header = ("", f"pixels {_shape(pixels['shape'])}", f"latents {_shape(latents['shape'])}", "")
    print_rows(
        header,
        rows,
        title="One image through the same denoiser, with its attention (counted, float32)",
        console=console,
    )


def _whole(number: float) -> str:
    return f"{number:,}"


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))

"""Photograph a report as its readers see it: wide and on a phone, in light and in dark.

    python experiments/screenshots.py REPORT.html FOLDER

Writes ``FOLDER/1400_light.png``, ``1400_dark.png``, ``390_light.png`` and ``390_dark.png``, each of
the whole page. Needs the package ``playwright`` (in the extra ``dev``) and Debian's ``chromium``.
"""

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, sync_playwright

WIDTHS = (1400, 390)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
MAX_HEIGHT = 4000
NUM_COLORS = 128


@contextmanager
def headless_chromium() -> Iterator[Browser]:
    """Start Debian's Chromium without a window; raises ``ValueError`` where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise ValueError("There is no Chromium: install the package chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def photograph(browser: Browser, report: Path, folder: Path) -> list[Path]:
    """Return the pictures of a page: one for each of ``WIDTHS`` and ``SCHEMES``."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(report.absolute().as_uri())
            pictures.append(folder / f"{width}_{scheme}.png")
            # A third of the bytes; to the eye the same.
            few_colors = _whole(page, width).quantize(NUM_COLORS, dither=Image.Dither.NONE)
            few_colors.save(pictures[-1], optimize=True)
            page.close()
    return pictures


def _whole(page: Page, width: int) -> Image.Image:
    """The whole page, in parts, as Chromium photographs no more than 16,384 pixels at once."""
    height = page.evaluate("document.documentElement.scrollHeight")
    whole = Image.new("RGB", (width, height))
    for top in range(0, height, MAX_HEIGHT):
        clip = FloatRect(x=0, y=top, width=width, height=min(MAX_HEIGHT, height - top))
        part = page.screenshot(full_page=True, clip=clip)
        whole.paste(Image.open(io.BytesIO(part)), (0, top))
    return whole


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="the page")
    parser.add_argument("folder", type=Path, help="where the four pictures go")
    wanted = parser.parse_args()
    with headless_chromium() as browser:
        for picture in photograph(browser, wanted.report, wanted.folder):
            print(picture)


if __name__ == "__main__":
    main()

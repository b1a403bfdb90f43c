"""The README's moving picture: a mistake on digits, two groups taken away, and a retraining.

Runs `ddm run` where that is not done, opens its page in Chromium, and writes `docs/explore.gif`.

    python benchmarks/moving_picture.py [--workdir runs/digits]

Needs '.[explore]', playwright, and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from protocol import PROGRESS

from ddm_jax.explore import server, view
from ddm_jax.run import settings, stages
from ddm_jax.run.finished import open_finished

PICTURE = Path(__file__).parent.parent / "docs" / "explore.gif"
SIZE = {"width": 1180, "height": 700}
WIDTH = 1000  # of the picture
SECONDS = 1.6  # a frame


def frame(page: Page) -> Image.Image:
    """What the page looks like now."""
    page.wait_for_timeout(400)
    page.locator(".busy").wait_for(state="detached")
    taken = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return taken.resize(
        (WIDTH, round(WIDTH * taken.height / taken.width)), Image.Resampling.LANCZOS
    )


def main() -> None:
    """Run, look, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits"))
    workdir = parser.parse_args().workdir
    stages.run(settings.preset("digits"), workdir, PROGRESS)
    shown = view.make_view(open_finished(workdir))
    address, there = [], threading.Event()

    def ready(told: str) -> None:
        address.append(told)
        there.set()

    threading.Thread(
        target=server.serve, args=(shown, "127.0.0.1", None, ready), daemon=True
    ).start()
    there.wait()
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_context(viewport=SIZE).new_page()
        page.goto(address[0])
        page.locator(".strip img").first.wait_for()
        page.wait_for_load_state("networkidle")
        frames = [frame(page)]
        for place in range(2):
            page.locator(".group button", has_text="Take away").nth(place).click()
            page.locator("#change svg").wait_for(timeout=60_000)
            frames.append(frame(page))
        page.get_by_role("button", name=re.compile("Retrain to be sure")).click()
        page.locator("svg .exact").first.wait_for(timeout=60_000)
        frames.append(frame(page))
        browser.close()
    # Small marks have colours of their own, which the commonest colours would swallow.
    drawn = [each.quantize(255, Image.Quantize.MAXCOVERAGE) for each in frames]
    times = [int(1000 * SECONDS)] * (len(drawn) - 1) + [int(2000 * SECONDS)]
    drawn[0].save(
        PICTURE, save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=True
    )
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

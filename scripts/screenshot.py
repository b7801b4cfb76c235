"""Takes a picture of the report of a run, or of a comparison: the one that the README shows, if nothing else is said.

    python scripts/screenshot.py runs/demo                                      # docs/report.png, 1280 x 1500 pixels
    python scripts/screenshot.py runs/compare phone.png --width 390 --height 844 --dark

Needs the extra naysay[browser], and Chromium on the PATH (Debian's package is `chromium`); `make browser` installs the
extra, and checks the pages with both.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Playwright, sync_playwright

PAGES = ("report.html", "compare.html")
PICTURE = Path(__file__).parent.parent / "docs" / "report.png"
# Chromium's sandbox does not start in most containers, and the pages are ours. The others keep it off the network.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync")


def find_chromium() -> str | None:
    """The path of an installed Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def launch(playwright: Playwright, chromium: str) -> Browser:
    return playwright.chromium.launch(executable_path=chromium, args=FLAGS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of a run or of a comparison")
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE)
    parser.add_argument("--width", type=int, default=1280, help="pixels")
    parser.add_argument("--height", type=int, default=1500, help="pixels from the top")
    parser.add_argument("--dark", action="store_true", help="as shown to those who prefer dark pages")
    arguments = parser.parse_args()
    page = next((arguments.run / name for name in PAGES if (arguments.run / name).exists()), None)
    if page is None:
        print(
            f"{arguments.run} has neither {' nor '.join(PAGES)}; give the directory of a finished run", file=sys.stderr
        )
        return 2
    chromium = find_chromium()
    if chromium is None:
        print("chromium is not on the PATH; install Debian's package chromium", file=sys.stderr)
        return 2
    with sync_playwright() as playwright, launch(playwright, chromium) as browser:
        view = browser.new_page(
            viewport={"width": arguments.width, "height": arguments.height},
            color_scheme="dark" if arguments.dark else "light",
        )
        view.goto(page.resolve().as_uri())
        view.screenshot(path=arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

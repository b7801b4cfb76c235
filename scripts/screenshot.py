"""Takes the picture of a report that the README shows.

    python scripts/screenshot.py runs/demo/report.html docs/report.png

Needs Chromium on the PATH (Debian's package is `chromium`).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", default="1280,1500", help="width,height in pixels")
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("chromium is not on the PATH; install Debian's package chromium", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={arguments.size}",
            f"--screenshot={arguments.picture.resolve()}",
            arguments.report.resolve().as_uri(),
        ]
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL, timeout=120).returncode


if __name__ == "__main__":
    sys.exit(main())

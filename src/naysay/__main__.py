"""`python -m naysay` is `naysay`."""

import sys

from naysay.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

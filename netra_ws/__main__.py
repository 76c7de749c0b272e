"""``python -m netra_ws``."""

import sys

from netra_ws.cli import main

if __name__ == "__main__":
    sys.exit(main())

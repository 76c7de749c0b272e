"""``python -m netra_ws``."""

import gc
import sys

gc.disable()  # what is imported stays; looking through it for garbage would be a tenth of a start
from netra_ws.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())

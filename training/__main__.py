"""``neucodex-train``: runs :mod:`training.cli`, or names the extra it lacks."""

from __future__ import annotations

import sys

from shared.extras import naming_extra


def main() -> int:
    """Run a command; return its exit code."""
    with naming_extra("neucodex-train", "train"):
        from training.cli import main as run

        return run()


if __name__ == "__main__":
    sys.exit(main())

"""``neucodex-edge``: runs :mod:`edge_agent.cli`, or names the extra it lacks."""

from __future__ import annotations

import sys

from shared.extras import naming_extra


def main() -> int:
    """Run a command; return its exit code."""
    with naming_extra("neucodex-edge", "edge"):
        from edge_agent.cli import main as run

        return run()


if __name__ == "__main__":
    sys.exit(main())

"""``neucodex-cloud``: runs :mod:`cloud_server.cli`, or names the extra it lacks."""

from __future__ import annotations

import sys

from shared.extras import naming_extra


def main() -> int:
    """Run a command; return its exit code."""
    with naming_extra("neucodex-cloud", "cloud"):
        from cloud_server.cli import main as run

        return run()


if __name__ == "__main__":
    sys.exit(main())

"""``python -m pocache_cli``."""

from __future__ import annotations

from pocache_cli.main import main

if __name__ == "__main__":
    main()

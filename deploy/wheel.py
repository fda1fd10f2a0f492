"""How the wheel is built: the one module becomes a package, since type checkers look for `py.typed` in packages."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Wheel(BuildHookInterface[Any]):
    """Installs `async_collector.py` as `async_collector/__init__.py`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say where the files go; an editable installation stays the file that is edited."""
        if version == "standard":
            build_data["force_include"] |= {
                "async_collector.py": "async_collector/__init__.py",
                "deploy/py.typed": "async_collector/py.typed",
                "dashboard.toml": "async_collector/dashboard.toml",  # collector-dashboard reads it there
            }

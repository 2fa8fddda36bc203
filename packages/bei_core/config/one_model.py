"""The settings of what runs one model only, such as a bulk job."""

from __future__ import annotations

from bei_core.config.settings import Settings
from bei_core.errors import ConfigError


def one_model(settings: Settings) -> Settings:
    """Returns the settings of the only model. Raises ConfigError if there are several."""
    first, *others = settings.each()
    if others:
        raise ConfigError(f"{len(others) + 1} models are given; give one")
    return first

"""What pictures cost, as far as that is documented: by upstream only, and without a promise."""

from typing import Final

__all__ = ["DEAREST", "PRICES", "PRICES_FROM", "documented_price"]

PRICES: Final = {("flex", "1K"): 14.0, ("flex", "2K"): 24.0, ("pro", "1K"): 5.0, ("pro", "2K"): 7.0}
"""Credits by tier and resolution, text and pictures alike; seen at upstream (kie.ai). Apikley publishes none."""

PRICES_FROM: Final = "2026-11-22"
"""When these prices were seen."""

DEAREST: Final = max(PRICES.values())


def documented_price(model: str, resolution: str) -> float:
    """Give the credits of one picture.

    Args:
        model: The API's id, such as `flux-2/flex-text-to-image`.
        resolution: `1K` or `2K`.

    Returns:
        The documented price, or for what is not documented the dearest one.
    """
    tier = model.rpartition("/")[2].partition("-")[0]
    return PRICES.get((tier, resolution), DEAREST)

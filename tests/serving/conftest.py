"""Endpoints that are closed when a test ends."""

import pytest


@pytest.fixture
def client():
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(package, reason="the extra 'serve' is not installed")
    from genrec.testing.shop_endpoint import ShopClient

    made = []

    def make(**options):
        made.append(ShopClient(**options))
        return made[-1]

    yield make
    for each in made:
        each.close()

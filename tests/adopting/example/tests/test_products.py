import os

from fastapi.testclient import TestClient

from main import app

client = TestClient(app)


def test_an_unknown_product_is_404():
    assert client.get("/products/none").status_code == 404


def test_a_new_product_needs_the_key():
    product = {"name": "Tea pot", "cents": 1950}
    assert client.post("/products", json=product).status_code == 401
    headers = {"X-API-Key": os.environ["API_KEY"]}
    assert client.post("/products", json=product, headers=headers).status_code == 201

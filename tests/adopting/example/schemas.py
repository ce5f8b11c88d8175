from datetime import datetime

from pydantic import BaseModel, ConfigDict


class NewProduct(BaseModel):
    name: str
    cents: int


class Product(NewProduct):
    model_config = ConfigDict(from_attributes=True)

    id: int
    slug: str


class NewOrder(BaseModel):
    quantity: int = 1


class Order(NewOrder):
    model_config = ConfigDict(from_attributes=True)

    id: int
    product_id: int
    created_at: datetime

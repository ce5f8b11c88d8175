import os

import slugify
from dotenv import load_dotenv
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from sqlalchemy.orm import Session

import models
import schemas
from database import SessionLocal, engine

load_dotenv()
models.Base.metadata.create_all(bind=engine)

app = FastAPI(title="Shop")
app.add_middleware(
    CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
)


def get_db():
    db = SessionLocal()
    try:
        yield db
    finally:
        db.close()


def require_key(x_api_key: str = Header("")):
    if x_api_key != os.environ["API_KEY"]:
        raise HTTPException(401, "Wrong key")


@app.get("/health")
def health():
    return {"status": "ok"}


@app.get("/products", response_model=list[schemas.Product])
def list_products(db: Session = Depends(get_db)):
    return db.query(models.Product).order_by(models.Product.id).all()


@app.post(
    "/products",
    status_code=201,
    response_model=schemas.Product,
    dependencies=[Depends(require_key)],
)
def create_product(product: schemas.NewProduct, db: Session = Depends(get_db)):
    created = models.Product(slug=slugify.slugify(product.name), **product.model_dump())
    db.add(created)
    db.commit()
    db.refresh(created)
    return created


@app.get("/products/{slug}", response_model=schemas.Product)
def read_product(slug: str, db: Session = Depends(get_db)):
    found = db.query(models.Product).filter(models.Product.slug == slug).first()
    if found is None:
        raise HTTPException(404, "No such product")
    return found


@app.post("/products/{slug}/orders", status_code=201, response_model=schemas.Order)
def create_order(slug: str, order: schemas.NewOrder, db: Session = Depends(get_db)):
    product = read_product(slug, db)
    created = models.Order(product_id=product.id, quantity=order.quantity)
    db.add(created)
    db.commit()
    db.refresh(created)
    return created

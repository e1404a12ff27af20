"""inventory-service with the OpenTelemetry contrib packages: the same route, without meshmw."""

from flask import Flask, abort
from opentelemetry.instrumentation.flask import FlaskInstrumentor

from sample_apps.contrib import set_up

set_up("inventory-service")

app = Flask("inventory-service")
FlaskInstrumentor().instrument_app(app)

STOCK = {"teapot": 12, "kettle": 3}


@app.get("/api/stock/<item>")
def stock(item: str) -> dict[str, str | int]:
    if item not in STOCK:
        abort(404)
    return {"item": item, "in_stock": STOCK[item]}

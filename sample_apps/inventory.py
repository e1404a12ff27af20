"""inventory-service: a Flask application that knows what is in stock.

waitress-serve --listen=127.0.0.1:8001 sample_apps.inventory:app
"""

from flask import Flask, abort

import meshmw
import meshmw.flask

meshmw.configure(meshmw.Settings(service_name="inventory-service"))

app = Flask("inventory-service")
meshmw.flask.init_app(app)

STOCK = {"teapot": 12, "kettle": 3}


@app.get("/api/stock/<item>")
def stock(item: str) -> dict[str, str | int]:
    if item not in STOCK:
        abort(404)
    return {"item": item, "in_stock": STOCK[item]}

"""A reader's Flask service."""

import meshmw

meshmw.configure()

from flask import Flask, request  # noqa: E402 - as the guides say

import meshmw.flask  # noqa: E402 - as the guides say

app = Flask(__name__)
meshmw.flask.init_app(app)


@app.get("/<item>")
def stock(item):
    return {"item": item, "headers": [list(line) for line in request.headers]}

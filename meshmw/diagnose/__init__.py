"""What is wrong, and where: pure functions that read headers, access logs, proxies and traces, and judge them.

Knows formats, settings and what proxies say of themselves. Must not know a terminal: everything here returns frozen
values with `to_json()`, and the `meshmw` command prints them.
"""

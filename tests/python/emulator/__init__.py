"""The emulated Snowflake: fakesnow runs the SQL, this package adds what a real account does around it.

`application` routes HTTP requests, `credentials` and `sessions` decide who may come in, `queries` runs statements
through `engine`, `request_log` writes down everything that arrived, `transport` speaks TLS.
"""

"""Ways from a pod to Snowflake that lead around the agent. Each is one small function.

    python -m bypass                          # what there is
    python -m bypass run --number 20 NAME…    # tries some, and says of each how it ended, a JSON object a line

How a way ends as its traveller sees it is only half of it: whether anything arrived is told by the emulated Snowflake's
log and by the witness. `ways` says what a way is and knows where things are, `tls` and `packets` put bytes together, and
every other module holds the ways of one kind.
"""

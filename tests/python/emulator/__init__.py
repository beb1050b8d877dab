"""The emulated Snowflake: fakesnow runs the SQL, this package adds what a real account does around it.

`application` routes HTTP requests, `credentials` and `sessions` decide who may come in, `queries` runs statements
through `engine`, `sql_api` and `rest` are the doors without a login, `request_log` writes down everything that arrived,
`transport` speaks TLS, `history` remembers statements and logins.

`storage` is what lies behind the account: the parts of results (`results`), and the files of stages (`objects`), which
come and go by `s3`, `azure` and `gcs` with the credentials of one statement. `transfers` answers PUT and GET, `stages`
knows what `@…` means, `files` has the statements about files, `binds` the bindings that came as files, `encryption` the
keys. Comments in a PUT or a GET ask for what a test needs:

    /* on azure */  /* on gcs */           another cloud than S3; a GET finds by itself where the files are
    /* on gcs by addresses */              signed addresses in the place of a token
    /* unencrypted */  /* 256 bits */      no encryption by the client; longer keys
    /* threshold 8 MiB */                  the size from which on a driver may send parts
    /* expired credentials */              such as the storage refuses (with `once`: the first time that it is sent)
    /* breaks off */                       the first download of each of its files ends in the middle
    /* other file */                       the answer to a PUT names another local file than the statement

In any statement of a driver's, once it has run (`trouble`; with `once`, only the first answer to its request):

    /* answers 503 */                      an error page with this status
    /* the answer breaks off */            half of the answer, and the end of the connection
    /* in progress after 1 s */            the client has to ask for the result when it takes longer than that
"""

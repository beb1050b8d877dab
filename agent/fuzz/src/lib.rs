//! What is fuzzed: whatever comes in, nothing panics, and what must hold of the outcome does.
//!
//! `cargo xtask fuzz` looks for more; `corpus/` has what is worth trying each time.

#![allow(clippy::expect_used, reason = "a panic is what tells")]

use hyper::Method;
use serde_json::Value;
use snowfence::snowflake::{
    Access, InParts, KnownQuery, McpRequest, Operation, QueryRequest, Reply, Transfer, aborted_request,
    classify, renewal_body, telemetry_body,
};
use snowfence::sql::{local_files, with_values};

/// Where the client is told that everything is.
const ACCOUNT: &str = "acme.example";

/// Method, path and query string of a request, a line each.
pub fn request(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let (method, path, query) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""), lines.next());
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let Ok(operation) = classify(&method, path, query) else { return };
    let upstream = operation.path();
    assert!(upstream.starts_with('/') && !upstream.contains("//"), "{upstream}");
    let is_sealed = matches!(operation, Operation::Upload(_) | Operation::FileHead(_));
    // Names of objects are encoded, byte by byte where they are not plain.
    let is_rest = matches!(operation, Operation::Rest(_));
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'/' | b'-' | b'_')
            || is_rest && matches!(byte, b'%' | b'.' | b':')
    };
    assert!(is_sealed || upstream.bytes().all(is_plain), "{upstream}");
    if is_sealed {
        let name = upstream.trim_start_matches("/snowfence/files/");
        assert!(!name.contains('/') && !matches!(name, "" | "." | ".."), "{name}");
    }
    // What it says upstream is read there as it was read here.
    if let Ok(known) = KnownQuery::parse(&operation, query) {
        let query = known.text;
        assert!(!query.contains(['\r', '\n', '#', ' ']), "{query}");
        if !is_sealed && operation != Operation::CloseSession {
            assert_eq!(classify(&method, &upstream, Some(&query)), Ok(operation));
        }
    }
}

/// An answer of Snowflake's: what the client would be given of it leads nowhere but to the account.
pub fn answer(data: &[u8]) {
    let reply = Reply::parse(data);
    if let Ok(parts) = InParts::parse(data)
        && let Ok(told) = parts.for_client(ACCOUNT, "lease", |_| Some("name".to_owned()))
    {
        // Numbers pass as they are, larger ones than this reader takes too.
        let Ok(told) = serde_json::from_slice::<Value>(&told) else { return };
        let data = &told["data"];
        assert!(data.get("qrmk").is_none(), "{told}");
        for part in data["chunks"].as_array().into_iter().flatten() {
            assert_eq!(part["url"], "https://acme.example/snowfence/parts/name", "{told}");
        }
        assert!(
            data.get("chunkHeaders").is_none_or(|headers| headers["x-snowfence-lease"] == "lease"),
            "{told}"
        );
        assert!(reply.is_ok(), "what can be replaced can be read");
    }
    if let Ok(transfer) = Transfer::parse(data, "file:///tmp/x") {
        let access = Access::Addresses(transfer.names.iter().map(|_| "name".to_owned()).collect());
        let Ok(told) = serde_json::from_slice::<Value>(&transfer.for_client(ACCOUNT, &access)) else {
            return;
        };
        let stage = &told["data"]["stageInfo"];
        assert_eq!(
            (&stage["endPoint"], &stage["creds"]),
            (&ACCOUNT.into(), &serde_json::json!({})),
            "{told}"
        );
        for address in told["data"]["presignedUrls"].as_array().into_iter().flatten() {
            assert_eq!(address, "https://acme.example/snowfence/files/name", "{told}");
        }
    }
}

/// The body of a query: what goes upstream is what was decided on.
pub fn query(data: &[u8]) {
    let _ = aborted_request(data);
    let _ = telemetry_body(data);
    if let Ok(request) = McpRequest::parse(data) {
        let again = McpRequest::parse(&request.to_vec()).expect("what is sent can be read");
        assert_eq!(again.ask, request.ask);
    }
    let _ = renewal_body(data, &snowfence::config::Secret::new("secret".to_owned()));
    let Ok(request) = QueryRequest::parse(data) else { return };
    if let Ok(sent) = serde_json::from_slice::<Value>(&request.to_vec()) {
        assert_eq!(sent["sqlText"], request.sql);
        assert!(sent.get("dataframeAst").is_none(), "{sent}");
    }
    let again = QueryRequest::parse(&request.to_vec()).expect("what is sent can be read");
    assert_eq!((again.to_vec(), again.sql), (request.to_vec(), request.sql.clone()));
    let bound = with_values(&request.sql, |number| request.text(number));
    let _ = local_files(&bound);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    fn feed(target: &str, function: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
        let mut fed = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            function(&fs::read(entry.unwrap().path()).unwrap());
            fed += 1;
        }
        assert!(fed >= 5, "{}: {fed}", folder.display());
    }

    #[test]
    fn the_corpus_of_requests_is_taken_well() {
        feed("request", super::request);
    }

    #[test]
    fn the_corpus_of_answers_is_taken_well() {
        feed("answer", super::answer);
    }

    #[test]
    fn the_corpus_of_queries_is_taken_well() {
        feed("query", super::query);
    }
}

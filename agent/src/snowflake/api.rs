//! The SQL API (`/api/v2/statements`): what of a query string goes upstream, and where an answer may lead.

use std::fmt;

use super::json::Malformed;

pub const PATH: &str = "/api/v2/statements";

/// Longer identifiers of requests are not identifiers.
const LONGEST_ID: usize = 64;

/// A query parameter, and whether it can have a value.
type Parameter = (&'static str, fn(&str) -> bool);

/// The query parameters that go upstream.
const PARAMETERS: [Parameter; 5] = [
    ("async", is_boolean),
    ("nullable", is_boolean),
    ("partition", is_number),
    (REQUEST_ID, is_identifier),
    ("retry", is_boolean),
];
const REQUEST_ID: &str = "requestId";

/// The query string of a request, without what is not known. None of its values can be read in two ways: what is
/// recorded is what goes upstream.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ApiQuery(Vec<(&'static str, String)>);

impl ApiQuery {
    pub fn parse(query: Option<&str>) -> Result<Self, Malformed> {
        let mut known = Self::default();
        for pair in query.unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(&(name, is_valid)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
                continue;
            };
            if !is_valid(value) || known.value(name).is_some() {
                return Err(Malformed::Parameter(name));
            }
            known.0.push((name, value.to_owned()));
        }
        Ok(known)
    }

    /// The client's identifier of the request; empty where it sends none.
    pub fn request_id(&self) -> &str {
        self.value(REQUEST_ID).unwrap_or_default()
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for ApiQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "&" };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

/// Whether an address in an answer leads to a statement at the account's own host. A client follows it with its token.
pub fn is_ours(url: &str) -> bool {
    url.strip_prefix(PATH).is_some_and(|rest| rest.starts_with('/'))
}

/// The same of all the addresses in a header `Link`.
pub fn are_ours(links: &str) -> bool {
    let mut pieces = links.split('<');
    pieces.next().is_some_and(|before| before.trim().is_empty())
        && pieces.all(|piece| piece.split_once('>').is_some_and(|(url, _)| is_ours(url)))
}

fn is_boolean(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

fn is_number(value: &str) -> bool {
    (1..=9).contains(&value.len()) && value.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_identifier(value: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=LONGEST_ID).contains(&value.len()) && value.bytes().all(valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_query_string_what_is_known_goes_upstream() {
        let query = "requestId=12-ab&token=secret&async=true&roleName=X&retry=false&partition=12";
        let query = ApiQuery::parse(Some(query)).unwrap();
        assert_eq!(query.to_string(), "requestId=12-ab&async=true&retry=false&partition=12");
        assert_eq!(query.request_id(), "12-ab");
        for nothing in [None, Some(""), Some("requestid=1&%72equestId=2&request_id=3")] {
            assert_eq!(ApiQuery::parse(nothing), Ok(ApiQuery::default()), "{nothing:?}");
        }
    }

    #[test]
    fn a_value_that_could_be_read_in_two_ways_is_refused() {
        for query in [
            "async=1",
            "async",
            "partition=-1",
            "partition=1234567890",
            "partition=",
            "requestId=%61bc",
            "requestId=a+b",
            "requestId=",
            "requestId=1&requestId=2",
            "nullable=true&nullable=true",
        ] {
            assert!(ApiQuery::parse(Some(query)).is_err(), "{query}");
        }
    }

    #[test]
    fn an_answer_leads_to_statements_at_this_host_alone() {
        let id = "01b1c2d3-0000-1111-2222-333344445555";
        assert!(is_ours(&format!("/api/v2/statements/{id}?partition=1")));
        assert!(are_ours(&format!(
            r#"</api/v2/statements/{id}?partition=0>; rel="first", </api/v2/statements/{id}?partition=1>;rel="last""#
        )));
        for url in
            ["https://evil.example/api/v2/statements/1", "//evil.example", "/\\evil.example", "/session"]
        {
            assert!(!is_ours(url), "{url}");
            assert!(
                !are_ours(&format!(r#"</api/v2/statements/1>; rel="first", <{url}>; rel="last""#)),
                "{url}"
            );
        }
        assert!(!are_ours("https://evil.example; rel=next"));
    }
}

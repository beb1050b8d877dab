//! Results of the REST interfaces that come later, or page by page (`/api/v2/results/{handle}`): where an answer says that
//! they are. A client goes there with its token, so that must be the account's own host.
//!
//! Source: the specifications of the interfaces that Snowflake publishes, and of its documentation "Getting started with the
//! Snowflake REST APIs". A handle is a query id.

use super::json::{Malformed, Object};
use super::operation::QueryId;

pub const PATH: &str = "/api/v2/results";

const PAGE: &str = "page";
/// A number of a page has no more digits.
const DIGITS: usize = 9;

/// An answer leads elsewhere, by this header or field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeadsElsewhere(pub &'static str);

/// Whose answer is to be had by which handle, if the answer says so: the header `Location`, or a field of the body.
pub fn accepted<'a>(
    mut locations: impl Iterator<Item = Option<&'a str>>,
    body: &[u8],
    account: &str,
) -> Result<Option<QueryId>, LeadsElsewhere> {
    const LOCATION: LeadsElsewhere = LeadsElsewhere("Location");
    let told: Option<String> = Object::parse(body).ok().and_then(|body| body.field("resultHandler"));
    let told = told.map(|told| QueryId::parse(&told).ok_or(LeadsElsewhere("resultHandler"))).transpose()?;
    let Some(location) = locations.next() else { return Ok(told) };
    let location = location.and_then(|location| handle(location, account)).ok_or(LOCATION)?;
    if locations.next().is_some() || told.is_some_and(|told| told != location) {
        return Err(LOCATION);
    }
    Ok(Some(location))
}

/// The path of a result.
pub fn path(handle: &QueryId) -> String {
    format!("{PATH}/{}", handle.as_str())
}

/// The handles of the results whose pages a header `Link` leads to; `None` if it leads anywhere else.
pub fn linked(links: &str) -> Option<Vec<QueryId>> {
    let mut pieces = links.split('<');
    if !pieces.next()?.trim().is_empty() {
        return None;
    }
    let page = |piece: &str| {
        let (path, query) = piece.split_once('>')?.0.split_once('?')?;
        query_string(Some(query)).ok()?;
        QueryId::parse(path.strip_prefix(PATH)?.strip_prefix('/')?)
    };
    pieces.map(page).collect()
}

/// The query string to ask upstream: the number of a page, or nothing.
pub fn query_string(query: Option<&str>) -> Result<String, Malformed> {
    let query = query.unwrap_or_default();
    let number = query.strip_prefix(PAGE).and_then(|rest| rest.strip_prefix('='));
    let is_number = |number: &str| {
        (1..=DIGITS).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    match number {
        None if query.is_empty() => Ok(String::new()),
        Some(number) if is_number(number) => Ok(query.to_owned()),
        Some(_) => Err(Malformed::Parameter(PAGE)),
        None => Err(Malformed::UnknownParameter),
    }
}

/// The handle in a path, or in the same path as an address of the account's host.
fn handle(location: &str, account: &str) -> Option<QueryId> {
    let path = match location.strip_prefix("https://") {
        Some(address) => {
            let (host, path) = address.split_at_checked(account.len())?;
            if !host.eq_ignore_ascii_case(account) {
                return None;
            }
            path.strip_prefix(":443").unwrap_or(path)
        }
        None => location,
    };
    QueryId::parse(path.strip_prefix(PATH)?.strip_prefix('/')?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01b66701-0000-001c-0000-0030000b91521";
    const ACCOUNT: &str = "acme.snowflakecomputing.com";

    fn found(location: Option<&str>, body: &str) -> Result<Option<QueryId>, LeadsElsewhere> {
        accepted(location.into_iter().map(Some), body.as_bytes(), ACCOUNT)
    }

    #[test]
    fn a_result_is_at_a_path_of_the_account() {
        let id = QueryId::parse(ID);
        let body = format!(r#"{{"code":"392604","resultHandler":"{ID}"}}"#);
        for location in [
            format!("/api/v2/results/{ID}"),
            format!("https://{ACCOUNT}/api/v2/results/{ID}"),
            format!("https://ACME.snowflakecomputing.com:443/api/v2/results/{ID}"),
        ] {
            assert_eq!(found(Some(&location), &body), Ok(id.clone()), "{location}");
            assert_eq!(found(Some(&location), "{}"), Ok(id.clone()), "{location}");
        }
        assert_eq!(found(None, &body), Ok(id));
        assert_eq!((found(None, "{}"), found(None, "")), (Ok(None), Ok(None)));
    }

    #[test]
    fn what_leads_elsewhere_is_no_result() {
        let body = format!(r#"{{"resultHandler":"{ID}"}}"#);
        for location in [
            "",
            "/api/v2/results/",
            "/api/v2/results",
            &format!("/api/v2/results/{ID}?page=1"),
            &format!("/api/v2/results/{ID}/x"),
            &format!("/api/v2/results/../{ID}"),
            &format!("/api/v2/statements/{ID}"),
            &format!("//evil.example/api/v2/results/{ID}"),
            &format!("https://evil.example/api/v2/results/{ID}"),
            &format!("https://{ACCOUNT}.evil.example/api/v2/results/{ID}"),
            &format!("https://{ACCOUNT}@evil.example/api/v2/results/{ID}"),
            &format!("https://{ACCOUNT}:8443/api/v2/results/{ID}"),
            &format!("http://{ACCOUNT}/api/v2/results/{ID}"),
            "/api/v2/results/01b66701-0000-001c-0000-0030000b91522",
        ] {
            assert_eq!(found(Some(location), &body), Err(LeadsElsewhere("Location")), "{location}");
        }
        let path = format!("/api/v2/results/{ID}");
        for locations in [vec![None], vec![Some(path.as_str()), Some(path.as_str())]] {
            let found = accepted(locations.into_iter(), b"{}", ACCOUNT);
            assert_eq!(found, Err(LeadsElsewhere("Location")));
        }
        assert_eq!(found(None, r#"{"resultHandler":"../x"}"#), Err(LeadsElsewhere("resultHandler")));
    }

    #[test]
    fn links_lead_to_pages_alone() {
        let first = format!(r#"</api/v2/results/{ID}?page=0>; rel="first""#);
        let id = QueryId::parse(ID).unwrap();
        assert_eq!(linked(&first), Some(vec![id.clone()]));
        assert_eq!(
            linked(&format!(r#"{first},</api/v2/results/{ID}?page=9>;rel="last""#)),
            Some(vec![id.clone(), id])
        );
        for link in [
            "https://evil.example/",
            "//evil.example/",
            "/api/v2/databases?page=1",
            "/api/v2/results/x?page=1",
        ] {
            assert_eq!(linked(&format!(r#"{first}, <{link}>; rel="next""#)), None, "{link}");
        }
        assert_eq!((linked("x"), linked("<")), (None, None));
    }

    #[test]
    fn of_a_result_pages_can_be_asked_for() {
        for query in [None, Some(""), Some("page=0"), Some("page=123456789")] {
            assert_eq!(query_string(query).unwrap(), query.unwrap_or_default());
        }
        for query in ["page", "page=", "page=x", "page=1&page=2", "page=1234567890", "p%61ge=1", "wait=1"] {
            assert!(query_string(Some(query)).is_err(), "{query}");
        }
    }
}

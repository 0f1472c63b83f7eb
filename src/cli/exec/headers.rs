//! Which headers pass the proxy: those that say what is asked, none that say who asks.
//!
//! In: the headers of the command's request, and those of the audience's answer. Out: those that go on.
//! Refuses: to pass on, even when told to, what belongs to one connection, what says who is asking, and what means another
//! method, host or path than the request itself.
//! Never: passes on what is not known: a header that some server takes for an identity is one that nobody here knows.

use hyper::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};

/// The headers that go on to the audience; `more` are the caller's own.
pub(super) fn passed_on(headers: &HeaderMap, more: &[HeaderName]) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| REQUEST_HEADERS.contains(&name.as_str()) || more.contains(name))
        .filter(|(name, _)| !is_hop(headers, name) && !stays(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The headers of an answer that go on to the command: no cookies, which would be an identity after the task, and no
/// nonces, which are for whoever makes proofs.
pub(super) fn received(headers: &HeaderMap) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| !is_hop(headers, name))
        .filter(|(name, _)| !["set-cookie", "set-cookie2", DPOP_NONCE].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Reads a header that the caller wants to pass too.
pub(super) fn forwarded(name: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| "is not the name of a header".to_owned())?;
    if stays(name.as_str()) {
        return Err(
            "says who asks, or belongs to one connection: the proxy says that itself".to_owned(),
        );
    }
    Ok(name)
}

/// Whether `Connection` names this.
pub(super) fn lists(headers: &HeaderMap, name: &str) -> bool {
    let mut listed = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    listed.any(|one| one.trim().eq_ignore_ascii_case(name))
        || (name == "upgrade" && headers.contains_key(UPGRADE))
}

/// What belongs to one connection (RFC 9110 §7.6.1).
fn is_hop(headers: &HeaderMap, name: &HeaderName) -> bool {
    HOP.contains(&name.as_str()) || lists(headers, name.as_str())
}

/// Whether it never passes, whoever wants it.
fn stays(name: &str) -> bool {
    // Some servers read both alike.
    let name = name.replace('_', "-");
    let name = name.as_str();
    HOP.contains(&name)
        || PROXY_HEADERS.contains(&name)
        || IDENTITY.contains(&name)
        || IDENTITY_PREFIXES.iter().any(|p| name.starts_with(p))
}

pub(super) const DPOP_NONCE: &str = "dpop-nonce";

/// What is asked, in what form, on which condition, and what ties it to its traces.
const REQUEST_HEADERS: [&str; 32] = [
    "accept",
    "accept-charset",
    "accept-datetime",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-md5",
    "content-range",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-event-id",
    "pragma",
    "prefer",
    "priority",
    "range",
    "repr-digest",
    "request-id",
    "traceparent",
    "tracestate",
    "user-agent",
    "want-repr-digest",
    "x-correlation-id",
    "x-request-id",
];

/// For one connection only (RFC 9110 §7.6.1, and the older ones of RFC 2616 §13.5.1).
const HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What the proxy says or does itself; and `Referer`, which holds the secret path.
const PROXY_HEADERS: [&str; 5] = [
    "host",
    "content-length",
    "expect",
    "referer",
    "max-forwards",
];

/// What says who is asking, or that another method or path is meant.
const IDENTITY: [&str; 31] = [
    "authorization",
    "dpop",
    "cookie",
    "cookie2",
    "forwarded",
    "via",
    "from",
    "x-real-ip",
    "api-key",
    "apikey",
    "x-api-key",
    "x-apikey",
    "x-access-token",
    "x-id-token",
    "x-amz-security-token",
    "x-goog-iap-jwt-assertion",
    "x-ms-client-principal",
    "cf-access-jwt-assertion",
    "client-cert",
    "client-cert-chain",
    "remote-user",
    "signature",
    "signature-input",
    "txn-token",
    "workload-identity-token",
    "workload-proof-token",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
];
const IDENTITY_PREFIXES: [&str; 9] = [
    "proxy-",
    "x-forwarded-",
    "x-remote-",
    "x-auth-",
    "x-ssl-",
    "ssl-client-",
    "x-client-cert",
    "oauth-client-attestation",
    "x-ms-client-principal-",
];

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_asked_goes_on_and_nothing_else() {
        let kept = [
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("idempotency-key", "k"),
            ("if-none-match", "\"e\""),
            ("range", "bytes=0-9"),
            ("user-agent", "curl"),
            ("x-request-id", "r"),
            ("traceparent", "t"),
        ];
        let wanted = [("x-own", "kept")];
        let dropped = [
            ("host", "evil.example"),
            ("authorization", "Bearer x"),
            ("dpop", "x"),
            ("cookie", "a=b"),
            ("proxy-authorization", "Basic x"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x_forwarded_user", "root"),
            ("x-remote-user", "root"),
            ("x-auth-request-email", "root"),
            ("x-http-method-override", "DELETE"),
            ("workload-identity-token", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("connection", "close, X-Smuggled, If-Match"),
            ("x-smuggled", "1"),
            ("if-match", "\"listed\""),
            ("referer", "http://127.0.0.1:1/secret/"),
            ("x-user", "root"),
            ("x-webauth-user", "root"),
            ("x_request_id", "r"),
            ("baggage", "user=root"),
            ("x-nobody-knows-this", "root"),
        ];
        let all: Vec<_> = kept.into_iter().chain(wanted).chain(dropped).collect();
        let more = [
            HeaderName::from_static("x-own"),
            // Even if it were let in.
            HeaderName::from_static("referer"),
            HeaderName::from_static("authorization"),
        ];
        let passed = passed_on(&headers(&all), &more);
        let expected: Vec<_> = kept.into_iter().chain(wanted).collect();
        assert_eq!(passed, headers(&expected));
        assert_eq!(passed_on(&headers(&all), &[]), headers(&kept));
    }

    #[test]
    fn an_identity_is_not_the_callers_to_pass() {
        for good in ["X-Own", "mcp-protocol-version", "depth"] {
            assert_eq!(
                forwarded(good).map(|name| name.as_str().to_owned()),
                Ok(good.to_ascii_lowercase())
            );
        }
        for bad in [
            "Authorization",
            "DPoP",
            "cookie",
            "Proxy-Authorization",
            "proxy-anything",
            "X-Forwarded-For",
            "x_forwarded_host",
            "Forwarded",
            "Via",
            "Host",
            "Connection",
            "Upgrade",
            "Content-Length",
            "Transfer-Encoding",
            "Expect",
            "Referer",
            "X-HTTP-Method-Override",
            "X-Original-URL",
            "x-api-key",
            "Remote_User",
            "",
            "a b",
            "x:y",
        ] {
            assert!(forwarded(bad).is_err(), "{bad}");
        }
        assert!(
            !REQUEST_HEADERS.iter().any(|name| stays(name)),
            "no rule against itself"
        );
    }

    #[test]
    fn no_answer_leaves_an_identity() {
        let all = headers(&[
            ("content-type", "text/plain"),
            ("set-cookie", "a=b"),
            ("dpop-nonce", "n"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-any", "kept"),
        ]);
        let expected = headers(&[("content-type", "text/plain"), ("x-any", "kept")]);
        assert_eq!(received(&all), expected);
    }
}

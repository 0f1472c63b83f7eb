//! Header filtering of the proxy: request headers that describe the request pass, identity headers never do.
//!
//! In: headers of the command's request and of the audience's response. Out: those that are passed on.
//! Refuses: even with --forward-header, headers of one connection, headers that state an identity, and headers that replace
//! the request's method, host or path.
//! Never: passes an unlisted header, since some server may read an identity from it.

use hyper::header::{CONNECTION, HeaderMap, HeaderName, UPGRADE};

/// The request headers passed to the audience; `more` are the caller's additional ones.
pub(super) fn passed_on(headers: &HeaderMap, more: &[HeaderName]) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| REQUEST_HEADERS.contains(&name.as_str()) || more.contains(name))
        .filter(|(name, _)| !is_hop(headers, name) && !is_forbidden(name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The response headers passed to the command: no cookies, which would outlive the task, and no nonces, which the proxy uses.
pub(super) fn received(headers: &HeaderMap) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| !is_hop(headers, name))
        .filter(|(name, _)| !["set-cookie", "set-cookie2", DPOP_NONCE].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Parses the name of an additional header to pass.
pub(super) fn forwarded(name: &str) -> Result<HeaderName, String> {
    let name =
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is not a header name".to_owned())?;
    if is_forbidden(name.as_str()) {
        return Err(
            "states an identity or belongs to one connection: the proxy never forwards it"
                .to_owned(),
        );
    }
    Ok(name)
}

/// Whether the `Connection` header lists this name.
pub(super) fn connection_lists(headers: &HeaderMap, name: &str) -> bool {
    let mut listed = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    listed.any(|listed_name| listed_name.trim().eq_ignore_ascii_case(name))
        || (name == "upgrade" && headers.contains_key(UPGRADE))
}

/// Whether a header belongs to one connection (RFC 9110 §7.6.1).
fn is_hop(headers: &HeaderMap, name: &HeaderName) -> bool {
    HOP.contains(&name.as_str()) || connection_lists(headers, name.as_str())
}

/// Whether a header never passes, not even with --forward-header.
fn is_forbidden(name: &str) -> bool {
    // Some servers treat _ as -.
    let name = name.replace('_', "-");
    let name = name.as_str();
    HOP.contains(&name)
        || PROXY_HEADERS.contains(&name)
        || IDENTITY.contains(&name)
        || IDENTITY_PREFIXES.iter().any(|p| name.starts_with(p))
}

pub(super) const DPOP_NONCE: &str = "dpop-nonce";

/// Headers that describe the request: format, conditions, ranges, tracing.
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

/// Hop-by-hop headers (RFC 9110 §7.6.1, and the older ones of RFC 2616 §13.5.1).
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

/// Headers the proxy sets or handles itself; and `Referer`, which would hold the secret path.
const PROXY_HEADERS: [&str; 5] = [
    "host",
    "content-length",
    "expect",
    "referer",
    "max-forwards",
];

/// Headers that state an identity, or replace the method or path.
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
    fn only_allowlisted_request_headers_are_forwarded() {
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
            ("x-unknown", "root"),
        ];
        let all: Vec<_> = kept.into_iter().chain(wanted).chain(dropped).collect();
        let more = [
            HeaderName::from_static("x-own"),
            // Not even if they were given.
            HeaderName::from_static("referer"),
            HeaderName::from_static("authorization"),
        ];
        let passed = passed_on(&headers(&all), &more);
        let expected: Vec<_> = kept.into_iter().chain(wanted).collect();
        assert_eq!(passed, headers(&expected));
        assert_eq!(passed_on(&headers(&all), &[]), headers(&kept));
    }

    #[test]
    fn identity_headers_are_never_forwarded() {
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
            !REQUEST_HEADERS.iter().any(|name| is_forbidden(name)),
            "no header is both allowed and forbidden"
        );
    }

    #[test]
    fn identity_and_hop_response_headers_are_stripped() {
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

//! URLs with one spelling: the origin of an HTTP service, and the URI of a request as a proof names it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;

use super::ParseError;

/// The origin of an HTTP service: scheme, host and, where it is not the scheme's own, port (RFC 6454 §4). Spellings that RFC
/// 3986 (§6.2.2.1, §6.2.3) and RFC 5952 call equal become one, the one that browsers write: scheme and host in lower case, no
/// default or empty port, no path. Every other spelling is refused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpOrigin {
    text: String,
    host_at: usize,
    host_end: usize,
    port: u16,
}

impl HttpOrigin {
    /// Parses `http://host` or `https://host`, each with or without a port and a final `/`. The host is a name in ASCII of at
    /// most 253 characters, an IPv4 address, or an IPv6 address in brackets. The error names the right spelling where there
    /// is one.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, ParseError> {
        Self::read(text).map_err(|rule| ParseError::new(field, rule))
    }

    fn read(text: &str) -> Result<Self, String> {
        let form = || "must be https://host or https://host:port (or http://…)".to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return Err(form()),
        };
        let authority_end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        if authority.contains('@') {
            // Not repeated: it may be a password.
            return Err("must have no user name or password before the host".to_owned());
        }
        let (host, port) = split_port(authority).ok_or_else(form)?;
        let host = normal_host(host)?;
        let port = match port {
            "" => default_port,
            digits => port_number(digits).map_err(|rule| match rule {
                PortError::LeadingZero(n) if n != default_port => {
                    format!("must have a port without leading zeros: write {scheme}://{host}:{n}")
                }
                PortError::LeadingZero(_) => {
                    format!("must have a port without leading zeros: write {scheme}://{host}")
                }
                PortError::Invalid => "must have a port from 1 to 65535, or none".to_owned(),
            })?,
        };
        let mut origin = format!("{scheme}://");
        let host_at = origin.len();
        origin.push_str(&host);
        let host_end = origin.len();
        if port != default_port {
            origin.push_str(&format!(":{port}"));
        }
        if !matches!(path, "" | "/") {
            return Err(format!(
                "must have no path, query or fragment: write {origin}"
            ));
        }
        Ok(Self {
            text: origin,
            host_at,
            host_end,
            port,
        })
    }

    /// The one spelling, as browsers write it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the scheme is `https`.
    pub fn is_https(&self) -> bool {
        self.text.starts_with("https:")
    }

    /// The host: a name, an IPv4 address, or an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let host = self.text.get(self.host_at..self.host_end).unwrap_or("");
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// The port, where none is written the scheme's own.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and, where it is not the scheme's own, port: the value of `Host` (RFC 9110 §7.2).
    pub fn authority(&self) -> &str {
        self.text.get(self.host_at..).unwrap_or("")
    }

    /// The host as an IP address; `None` for a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host().parse().ok()
    }

    /// Whether a `Host` or `:authority` names this origin, in any spelling (RFC 9110 §7.2).
    pub fn is_named_by(&self, authority: &[u8]) -> bool {
        let scheme = if self.is_https() { "https" } else { "http" };
        std::str::from_utf8(authority).is_ok_and(|authority| {
            !authority.contains('/')
                && Self::read(&format!("{scheme}://{authority}")).is_ok_and(|other| other == *self)
        })
    }

    /// The same origin with another host, which must be a name in lower case.
    #[must_use]
    pub fn with_host_name(&self, name: &str) -> Self {
        let (before, after) = (
            self.text.get(..self.host_at).unwrap_or(""),
            self.text.get(self.host_end..).unwrap_or(""),
        );
        Self {
            text: format!("{before}{name}{after}"),
            host_at: self.host_at,
            host_end: self.host_at + name.len(),
            port: self.port,
        }
    }
}

impl fmt::Display for HttpOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for HttpOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether two URIs name the same request target: equal after the normalization of RFC 3986 §6.2.2 and §6.2.3, without
/// query and fragment (RFC 9449 §4.3, check 9).
pub fn is_same_request_uri(left: &str, right: &str) -> bool {
    let bare = |uri: &'_ str| uri.find(['?', '#']).unwrap_or(uri.len());
    let (left, right) = (
        left.get(..bare(left)).unwrap_or(""),
        right.get(..bare(right)).unwrap_or(""),
    );
    left == right
        || normal_request_uri(left).is_some_and(|left| normal_request_uri(right) == Some(left))
}

/// The origin, and the path in its normal form; `None` for what is no HTTP URI. Takes no query and no fragment.
fn normal_request_uri(uri: &str) -> Option<(HttpOrigin, String)> {
    let authority_at = uri.find("://")? + 3;
    let path_at = uri
        .get(authority_at..)?
        .find('/')
        .map_or(uri.len(), |at| authority_at + at);
    let (origin, path) = uri.split_at_checked(path_at)?;
    Some((HttpOrigin::read(origin).ok()?, normal_path(path)?))
}

/// RFC 3986 §6.2.2: escapes in upper case, none of unreserved characters, no dot segments; §6.2.3: an empty path is `/`.
fn normal_path(path: &str) -> Option<String> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(b) = rest.next() {
        match b {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                let byte = u8::from_str_radix(digits, 16).ok()?;
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    decoded.push(char::from(byte));
                } else {
                    decoded.push_str(&format!("%{byte:02X}"));
                }
            }
            b if b.is_ascii_graphic() && b != b'\\' => decoded.push(char::from(b)),
            _ => return None,
        }
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = decoded.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if last {
                    segments.push("");
                }
            }
            other => segments.push(other),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

fn split_port(authority: &str) -> Option<(&str, &str)> {
    if authority.starts_with('[') {
        let (host, rest) = authority.split_at_checked(authority.find(']')? + 1)?;
        return match rest {
            "" => Some((host, "")),
            rest => Some((host, rest.strip_prefix(':')?)),
        };
    }
    Some(authority.split_once(':').unwrap_or((authority, "")))
}

enum PortError {
    LeadingZero(u16),
    Invalid,
}

fn port_number(digits: &str) -> Result<u16, PortError> {
    if digits.len() > 16 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PortError::Invalid);
    }
    match digits.trim_start_matches('0').parse::<u16>() {
        Ok(n) if digits.starts_with('0') => Err(PortError::LeadingZero(n)),
        Ok(n) => Ok(n),
        Err(_) => Err(PortError::Invalid),
    }
}

/// An IPv6 address as browsers write it (WHATWG URL, "IPv6 serializer"): RFC 5952 without its form for addresses that hold an
/// IPv4 address, whose last 32 bits are hexadecimal here too.
fn v6_text(address: Ipv6Addr) -> String {
    match address.to_ipv4_mapped() {
        Some(v4) => {
            let [a, b, c, d] = v4.octets();
            let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            format!("::ffff:{high:x}:{low:x}")
        }
        None => address.to_string(),
    }
}

fn normal_host(host: &str) -> Result<String, String> {
    if let Some(v6) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return match v6.parse::<Ipv6Addr>() {
            Ok(address) => Ok(format!("[{}]", v6_text(address))),
            Err(_) => Err("must have an IPv6 address between its brackets".to_owned()),
        };
    }
    if !host.is_ascii() {
        return Err(
            "must have a host in ASCII: write an international name in its xn-- form".to_owned(),
        );
    }
    let host = host.to_ascii_lowercase();
    if let Some(name) = host.strip_suffix('.') {
        return Err(format!(
            "must have a host without a final dot: write {name}"
        ));
    }
    let labels_ok = host.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    });
    if !labels_ok || host.len() > 253 {
        return Err("must have a host of letters, digits, '.', '_' and '-'".to_owned());
    }
    // A host whose last label is a number is an IPv4 address to a browser, in more forms than this one (WHATWG URL, host parsing).
    let last = host.rsplit('.').next().unwrap_or("");
    let numeric = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    if numeric && host.parse::<Ipv4Addr>().is_err() {
        return Err(
            "must have an IPv4 address of four decimal numbers, such as 127.0.0.1".to_owned(),
        );
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_origins_have_one_spelling() {
        for (text, expected) in [
            ("https://broker.example", "https://broker.example"),
            ("HTTPS://Broker.EXAMPLE", "https://broker.example"),
            ("https://broker.example/", "https://broker.example"),
            ("https://broker.example:443", "https://broker.example"),
            ("https://broker.example:443/", "https://broker.example"),
            ("https://broker.example:", "https://broker.example"),
            ("http://broker.example:80", "http://broker.example"),
            ("http://broker.example:443", "http://broker.example:443"),
            ("https://broker.example:8443", "https://broker.example:8443"),
            ("http://[::1]:7700", "http://[::1]:7700"),
            ("https://[0:0:0:0:0:0:0:1]:443", "https://[::1]"),
            ("https://[FE80::A]", "https://[fe80::a]"),
            ("http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]"),
            ("http://[::FFFF:7F00:1]:80", "http://[::ffff:7f00:1]"),
            ("http://[::ffff:0.0.0.0]", "http://[::ffff:0:0]"),
            ("http://[::ffff:0.1.0.0]", "http://[::ffff:1:0]"),
            ("http://[::192.0.2.1]", "http://[::c000:201]"),
            ("http://[64:ff9b::192.0.2.1]", "http://[64:ff9b::c000:201]"),
            ("http://[2001:0:0:1:0:0:0:1]", "http://[2001:0:0:1::1]"),
            ("http://[1:0:2:3:4:5:6:7]", "http://[1:0:2:3:4:5:6:7]"),
            ("http://127.0.0.1:7700", "http://127.0.0.1:7700"),
            ("https://a_b.example", "https://a_b.example"),
        ] {
            let origin = HttpOrigin::parse("url", text).expect(text);
            assert_eq!(origin.as_str(), expected, "{text}");
            let again = HttpOrigin::parse("url", origin.as_str()).expect(text);
            assert_eq!(again, origin, "{text}");
        }
        let origin = HttpOrigin::parse("url", "https://[::1]:8443").expect("origin");
        assert_eq!((origin.host(), origin.port()), ("::1", 8443));
        assert_eq!(origin.authority(), "[::1]:8443");
        assert!(origin.is_https() && origin.ip().is_some_and(|ip| ip.is_loopback()));
        let named = origin.with_host_name("localhost");
        assert_eq!(named.as_str(), "https://localhost:8443");
        assert_eq!((named.host(), named.port()), ("localhost", 8443));
    }

    #[test]
    fn other_spellings_are_refused_with_the_right_one() {
        for (text, part) in [
            ("https://b.example:0443", "write https://b.example"),
            ("https://b.example:08443", "write https://b.example:8443"),
            ("https://b.example:99999", "a port from 1 to 65535"),
            ("https://b.example:0", "a port from 1 to 65535"),
            ("https://b.example:x", "a port from 1 to 65535"),
            ("https://b.example:-1", "a port from 1 to 65535"),
            ("https://b.example.", "write b.example"),
            ("https://b.example/x", "write https://b.example"),
            ("https://b.example:443/x", "write https://b.example"),
            ("https://b.example?x=1", "write https://b.example"),
            ("https://b.example#x", "write https://b.example"),
            ("https://b.example//", "write https://b.example"),
            ("https://u:hunter2@b.example", "no user name or password"),
            ("https://u@b.example", "no user name or password"),
            ("https://", "a host of letters"),
            ("https:///x", "a host of letters"),
            ("https://:443", "a host of letters"),
            ("https://a..b", "a host of letters"),
            ("https://-a.b", "a host of letters"),
            ("https://a b", "a host of letters"),
            ("https://a%41", "a host of letters"),
            ("https://a\0b", "a host of letters"),
            ("https://bücher.example", "xn--"),
            ("https://127.1", "four decimal numbers"),
            ("https://1.2.3.256", "four decimal numbers"),
            ("https://0x7f.0x1", "four decimal numbers"),
            ("https://[::1", "https://host"),
            ("https://[::g]", "an IPv6 address"),
            ("https://[::1]x", "https://host"),
            ("ftp://b.example", "https://host"),
            ("b.example", "https://host"),
            ("//b.example", "https://host"),
            ("", "https://host"),
        ] {
            let error = HttpOrigin::parse("url", text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn authorities_name_an_origin_in_any_spelling() {
        let origin = HttpOrigin::parse("url", "https://b.example").expect("origin");
        for (authority, named) in [
            ("b.example", true),
            ("B.Example:443", true),
            ("b.example:", true),
            ("b.example:80", false),
            ("b.example.", false),
            ("a.example", false),
            ("u@b.example", false),
            ("b.example/", false),
            ("", false),
        ] {
            assert_eq!(
                origin.is_named_by(authority.as_bytes()),
                named,
                "{authority}"
            );
        }
        assert!(!origin.is_named_by(b"b.example\xff"));
    }

    #[test]
    fn request_uris_are_compared_after_normalization() {
        let base = "https://b.example/p.S/M";
        for (other, same) in [
            (base, true),
            ("https://b.example/p.S/M?x=1", true),
            ("https://b.example/p.S/M#x", true),
            ("https://b.example:443/p.S/M", true),
            ("https://b.example:/p.S/M", true),
            ("HTTPS://B.EXAMPLE/p.S/M", true),
            ("https://b.example/p%2ES/%4d", true),
            ("https://b.example/x/../p.S/./M", true),
            ("https://b.example/p.s/M", false),
            ("https://b.example/p.S/M/", false),
            ("https://b.example/p.S%2FM", false),
            ("https://b.example//p.S/M", false),
            ("http://b.example/p.S/M", false),
            ("https://b.example:8443/p.S/M", false),
            ("https://u@b.example/p.S/M", false),
            ("https://b.example/p.S/M%", false),
            ("https://b.example\\p.S/M", false),
            ("/p.S/M", false),
            ("", false),
        ] {
            assert_eq!(is_same_request_uri(base, other), same, "{other}");
            assert_eq!(is_same_request_uri(other, base), same, "{other}");
        }
        for (left, right, same) in [
            ("https://b.example", "https://b.example/", true),
            ("https://b.example/%2f", "https://b.example/%2F", true),
            ("https://b.example/a/..", "https://b.example/", true),
            ("https://b.example/a/.", "https://b.example/a/", true),
            ("https://b.example/..", "https://b.example/", true),
            ("https://b.example/%7Ea", "https://b.example/~a", true),
            ("https://b.example/%7", "https://b.example/~", false),
        ] {
            assert_eq!(is_same_request_uri(left, right), same, "{left} {right}");
        }
    }
}

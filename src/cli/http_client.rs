//! One GET to a broker, as a probe would.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{DATE, HOST};
use hyper_util::rt::TokioIo;

use crate::client::{Protocol, Route};

/// What came back.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) body: String,
    /// The `Date` header (RFC 9110 §6.6.1), as it stands.
    pub(super) date: Option<String>,
}

/// Asks a broker for a path. The error is one line for people.
pub(super) async fn get(route: &Route, path: &str) -> Result<Answered, String> {
    let authority = route.uri().authority().map_or("", |one| one.as_str());
    let exchange = async {
        let stream = route
            .connect(Protocol::Http1)
            .await
            .map_err(|e| e.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path)
            .header(HOST, authority)
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let date = answer.headers().get(DATE).and_then(|v| v.to_str().ok());
        let date = date.map(str::to_owned);
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| e.to_string())?
            .to_bytes();
        connection.abort();
        Ok(Answered {
            status,
            body: String::from_utf8_lossy(&body).trim().to_owned(),
            date,
        })
    };
    tokio::time::timeout(Duration::from_secs(ANSWER_S), exchange)
        .await
        .map_err(|_| format!("no answer in {ANSWER_S} s"))?
}

/// Seconds since 1970 of an IMF-fixdate (RFC 9110 §5.6.7), such as `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn seconds_of(date: &str) -> Option<i64> {
    let rest = date.split_once(", ")?.1.strip_suffix(" GMT")?;
    let mut parts = rest.split([' ', ':']);
    let number = |text: Option<&str>| text?.parse::<i64>().ok();
    let day = number(parts.next())?;
    let month = parts.next()?;
    let month = 1 + i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()?;
    let year = number(parts.next())?;
    let (hour, minute, second) = (
        number(parts.next())?,
        number(parts.next())?,
        number(parts.next())?,
    );
    let sound = (1970..=9999).contains(&year)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    // Days since 1970 of a civil date, years counted from March: leap days come last.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    (sound && parts.next().is_none()).then_some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const ANSWER_S: u64 = 5;
const BODY_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        for (date, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Foo 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("", None),
        ] {
            assert_eq!(seconds_of(date), seconds, "{date}");
        }
    }
}

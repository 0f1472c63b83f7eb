//! Broker keys: the JWK set, fetched from the one configured URL.

use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::Empty;
use hyper::body::Bytes;
use tokio::sync::Mutex;

use crate::client::{self, Protocol, Transport};
use crate::jose::{KeySet, KeySetError, Usage};
use crate::model::Timestamp;

/// Why the broker's keys could not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No connection, or it broke.
    #[error("broker keys: the broker cannot be reached")]
    Unreachable,
    /// No answer within three seconds.
    #[error("broker keys: no answer in time")]
    TimedOut,
    /// Another status than 200.
    #[error("broker keys: expected status 200, got {0}")]
    Status(u16),
    /// The body is longer than 256 KiB, or was cut off.
    #[error("broker keys: larger than 256 KiB, or truncated")]
    Body,
    /// The body is not a JWK set of public keys (RFC 7517 §5).
    #[error("broker keys: not a JWK set of public keys")]
    Form,
    /// A key of the set is not what it says, or anyone can sign with it. The set is refused whole.
    #[error("broker keys: a key is not acceptable: {0}")]
    Key(&'static str),
}

pub(super) struct Keys {
    transport: Transport,
    set: ArcSwap<KeySet>,
    /// When the last fetch began. Locked through a fetch, so that many unknown key ids make one.
    fetched_at: Mutex<Timestamp>,
}

impl Keys {
    /// Fetches for the first time.
    pub(super) async fn fetch(transport: &Transport, now: Timestamp) -> Result<Self, FetchError> {
        let set = get(transport).await?;
        Ok(Self {
            transport: transport.clone(),
            set: ArcSwap::from_pointee(set),
            fetched_at: Mutex::new(now),
        })
    }

    /// The keys as last fetched.
    pub(super) fn now(&self) -> arc_swap::Guard<std::sync::Arc<KeySet>> {
        self.set.load()
    }

    /// Fetches again, at most once in ten seconds; keeps the present keys when that fails.
    pub(super) async fn refresh(&self, now: Timestamp) -> Result<(), FetchError> {
        let mut fetched_at = self.fetched_at.lock().await;
        if (0..REFETCH_MS).contains(&now.since(*fetched_at)) {
            return Ok(());
        }
        *fetched_at = now;
        self.set
            .store(std::sync::Arc::new(get(&self.transport).await?));
        Ok(())
    }
}

async fn get(transport: &Transport) -> Result<KeySet, FetchError> {
    let body = tokio::time::timeout(Duration::from_secs(TIMEOUT_S), get_body(transport))
        .await
        .map_err(|_| FetchError::TimedOut)??;
    KeySet::parse(&body, Usage::Signature).map_err(|error| match error {
        KeySetError::Key(why) => FetchError::Key(why),
        KeySetError::TooLarge
        | KeySetError::Json
        | KeySetError::Form(_)
        | KeySetError::Private
        | KeySetError::DuplicateKid
        | KeySetError::MissingKid => FetchError::Form,
    })
}

async fn get_body(transport: &Transport) -> Result<Bytes, FetchError> {
    let authority = transport.uri().authority().ok_or(FetchError::Unreachable)?;
    let stream = transport
        .connect(Protocol::Http1)
        .await
        .map_err(|_| FetchError::Unreachable)?;
    let request = http::Request::get(PATH)
        .header(http::header::HOST, authority.as_str())
        .header(
            http::header::ACCEPT,
            "application/jwk-set+json, application/json",
        )
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Unreachable)?;
    let response = client::http::send(stream, request)
        .await
        .map_err(|_| FetchError::Unreachable)?;
    if response.status() != http::StatusCode::OK {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    client::http::read_body(response.into_body(), BODY_BYTES_MAX)
        .await
        .map_err(|_| FetchError::Body)
}

const PATH: &str = "/.well-known/jwks.json";
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Longest time of a fetch, in seconds.
const TIMEOUT_S: u64 = 3;
const REFETCH_MS: i64 = 10_000;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::ConnectOptions;

    fn transport(url: &str) -> Transport {
        Transport::new(url, &ConnectOptions::default()).expect("transport")
    }

    /// Answers each connection with the next of these bytes.
    async fn serve(answers: Vec<Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accept");
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.expect("read");
                assert!(request[..read].starts_with(b"GET /.well-known/jwks.json HTTP/1.1\r\n"));
                let _gone = stream.write_all(&answer).await;
            }
        });
        url
    }

    fn ok(body: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    #[tokio::test]
    async fn invalid_key_responses_are_rejected() {
        let long = "x".repeat(BODY_BYTES_MAX + 1);
        let cases = [
            (
                b"HTTP/1.1 302 Found\r\nlocation: http://other/\r\ncontent-length: 0\r\n\r\n"
                    .to_vec(),
                FetchError::Status(302),
            ),
            (ok(&long), FetchError::Body),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{".to_vec(),
                FetchError::Body,
            ),
            (ok("{}"), FetchError::Form),
            (Vec::new(), FetchError::Unreachable),
        ];
        for (answer, error) in cases {
            let url = serve(vec![answer]).await;
            assert_eq!(
                Keys::fetch(&transport(&url), Timestamp::from_secs(0))
                    .await
                    .err(),
                Some(error)
            );
        }
    }

    #[tokio::test]
    async fn refetch_is_limited_to_once_in_ten_seconds() {
        let url = serve(vec![
            ok(r#"{"keys":[]}"#),
            ok("broken"),
            ok(r#"{"keys":[]}"#),
        ])
        .await;
        let start = Timestamp::from_secs(1_800_000_000);
        let keys = Keys::fetch(&transport(&url), start).await.expect("keys");
        assert_eq!(
            keys.refresh(start.plus_millis(REFETCH_MS - 1)).await,
            Ok(()),
            "no fetch"
        );
        assert_eq!(
            keys.refresh(start.plus_millis(REFETCH_MS)).await,
            Err(FetchError::Form)
        );
        assert_eq!(
            keys.refresh(start.plus_millis(REFETCH_MS + 1)).await,
            Ok(()),
            "no fetch"
        );
        assert_eq!(
            keys.refresh(start.plus_millis(2 * REFETCH_MS)).await,
            Ok(())
        );
        assert!(keys.now().is_empty());
    }
}

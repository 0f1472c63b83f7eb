//! Raw HTTP requests: any method, path, header and body, over HTTP/1.1 and HTTP/2, with all that came back.

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::wait::in_time;

/// A response: its trailers too.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    }

    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers
            .get(name)
            .map(|value| value.to_str().expect("text"))
    }

    /// The gRPC status, from the trailers or a response of headers alone.
    pub fn grpc_status(&self) -> tonic::Status {
        tonic::Status::from_header_map(&self.trailers)
            .or_else(|| tonic::Status::from_header_map(&self.headers))
            .unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

/// An HTTP/2 connection without TLS.
pub struct Http2 {
    url: String,
    sender: h2::client::SendRequest<Bytes>,
}

impl Http2 {
    pub async fn connect(url: &str) -> Self {
        let address = url.trim_start_matches("http://");
        let stream = TcpStream::connect(address).await.expect("connects");
        let (sender, connection) = h2::client::Builder::new()
            .max_header_list_size(64 * 1024)
            .handshake(stream)
            .await
            .expect("h2");
        tokio::spawn(connection);
        Self {
            url: url.to_owned(),
            sender,
        }
    }

    /// Sends a whole request.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Answer {
        let mut sender = self.sender.clone().ready().await.expect("ready");
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let ends = body.is_empty();
        let (answer, mut sending) = sender.send_request(request, ends).expect("sent");
        if !ends {
            // Refused before it is read, perhaps.
            let _sent = sending.send_data(body, true);
        }
        let answer = in_time("an answer", answer).await.expect("answered");
        let (parts, mut incoming) = answer.into_parts();
        let mut body = Vec::new();
        while let Some(data) = in_time("a body", incoming.data()).await {
            body.extend(data.expect("data"));
        }
        let trailers = incoming.trailers().await.expect("read");
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            trailers: trailers.unwrap_or_default(),
        }
    }
}

/// Sends a request over HTTP/1.1 on a connection of its own.
pub async fn http1(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let address = url.trim_start_matches("http://");
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str(&format!("host: {address}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    raw_http1(address, &[head.as_bytes(), body].concat()).await
}

/// Sends bytes, and reads one response to the end of the connection.
pub async fn raw_http1(address: &str, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(bytes).await.expect("written");
    let mut answer = Vec::new();
    in_time("an answer", stream.read_to_end(&mut answer))
        .await
        .expect("read");
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.unwrap_or_else(|| panic!("no head: {answer:?}")) + 4);
    let head = String::from_utf8_lossy(head);
    let mut lines = head.trim_end().lines();
    let status = lines.next().expect("a status line");
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header");
        let name: http::HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    Answer {
        status: status[9..12].parse().expect("a status"),
        headers,
        body: body.to_vec(),
        trailers: HeaderMap::new(),
    }
}

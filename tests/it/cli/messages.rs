//! Messages name the cause: connections that cannot be made, names mistyped, files that are not there.

use std::net::SocketAddr;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::setup::{CliSetup, DISABLE, Finished, finish, program_in, text};
use crate::support::certificate_authority::{Authority, replace_file};
use crate::support::transport_server::{TestServer, TransportSetup};

/// The answer of `token introspect`, which authenticates with a key, to a broker at this URL.
async fn call(home: &Path, url: &str, more: &[&str]) -> Finished {
    let args = ["inbox", "--url", url, "--key", "key.pem"];
    finish(program_in(home, &[&args[..], more].concat())).await
}

/// A server that reads something and then sends these bytes to every connection.
async fn server_that_says(bytes: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1_024];
                let _read = stream.read(&mut request).await;
                let _written = stream.write_all(bytes).await;
            });
        }
    });
    address
}

/// A TLS server for one protocol (ALPN), with this certificate and key.
async fn tls_server(certificate: &str, key: &str, protocol: &str) -> SocketAddr {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("pem")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("pem");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { acceptor.accept(stream).await.map(drop) });
        }
    });
    address
}

/// A certificate signed by its own key, for localhost.
fn self_signed(is_ca: IsCa) -> (String, String) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("params");
    params.is_ca = is_ca;
    let certificate = params.self_signed(&key).expect("signed");
    (certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_errors_name_their_cause() {
    let home = tempfile::tempdir().expect("dir");
    finish(program_in(home.path(), &["key", "new", "--out", "key.pem"]))
        .await
        .code(0);
    let file = |name: &str, text: &str| {
        replace_file(&home.path().join(name), text, 0o644);
        name.to_owned()
    };
    let plain = server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    // A fatal TLS alert, as a TLS server answers plain text.
    let alert = server_that_says(&[0x15, 0x03, 0x03, 0, 2, 2, 10]).await;
    let authority = Authority::new();
    let ca = file("ca.pem", &authority.pem);
    let (certificate, key) = authority.certify_with(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(
            "localhost".try_into().expect("name"),
        )];
    });
    let http1 = tls_server(&certificate, &key, "http/1.1").await;
    let http2 = tls_server(&certificate, &key, "h2").await;
    let (ca_certificate, key) = self_signed(IsCa::Ca(BasicConstraints::Unconstrained));
    let ca_leaf = tls_server(&ca_certificate, &key, "h2").await;
    let ca_leaf_file = file("self.pem", &ca_certificate);
    let served = TestServer::start(TransportSetup {
        tls: true,
        ..TransportSetup::default()
    })
    .await;
    let other = file("other.pem", &Authority::new().pem);
    let broker = served.root.join("ca.pem").display().to_string();
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        listener.local_addr().expect("address")
    };
    let trust = |ca: &str| vec!["--ca".to_owned(), ca.to_owned()];
    let rows = [
        (
            format!("http://{gone}"),
            vec![],
            14,
            "nothing listens on port",
        ),
        (
            format!("http://{plain}"),
            vec![],
            14,
            "speaks HTTP/1.1 only",
        ),
        (
            format!("http://{alert}"),
            vec![],
            14,
            "the URL begins with https://",
        ),
        (
            format!("https://{plain}"),
            trust(&ca),
            14,
            "the URL begins with http://",
        ),
        (
            format!("https://{http2}"),
            trust(&ca),
            14,
            "the certificate is for localhost, not for 127.0.0.1",
        ),
        (
            format!("https://localhost:{}", http1.port()),
            trust(&ca),
            14,
            "speaks HTTP/1.1 only",
        ),
        (
            format!("https://localhost:{}", ca_leaf.port()),
            trust(&ca_leaf_file),
            14,
            "cannot be a server's",
        ),
        (
            format!("https://localhost:{}", http2.port()),
            trust(&ca_leaf_file),
            14,
            "authority is not trusted here",
        ),
        (
            served.url.clone(),
            trust(&other),
            14,
            "was not signed by the trusted authority",
        ),
        (
            served.url.replace("https", "http"),
            trust(&broker),
            14,
            "the URL begins with https://",
        ),
        (
            "http://no-such-host.invalid".to_owned(),
            vec![],
            2,
            "must begin with https://",
        ),
        (
            "https://no-such-host.invalid".to_owned(),
            trust(&ca),
            14,
            "no-such-host.invalid cannot be resolved",
        ),
        (
            "http://broker.example".to_owned(),
            vec!["--socket".to_owned(), "none.sock".to_owned()],
            14,
            "there is no socket none.sock",
        ),
    ];
    let calls = rows.map(|(url, more, code, message)| {
        let home = home.path().to_owned();
        tokio::spawn(async move {
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            let refused = call(&home, &url, &more).await;
            refused.code(code).err_contains(message);
            assert!(!refused.err().contains("is running"), "{}", refused.err());
        })
    });
    for call in calls {
        call.await.expect("as expected");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistyped_names_get_the_nearest_known_one() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    let pending = setup.json(&request, 11).await;
    let id = text(&pending["access_request"]);
    let vote = ["approve", &id, "--yes", "--key", "maria.pem"];
    setup
        .run(&[&vote[..], &["--realm", "tset"]].concat())
        .await
        .code(2)
        .err_contains("the broker's realm is `test`, expected `tset`");
    setup
        .run(&[&vote[..], &["--realm", "test", "--profile", "one-securty"]].concat())
        .await
        .code(2)
        .err_contains("did you mean `one-security`?");
    // No vote was cast.
    let list = setup.json(&["inbox", "--key", "maria.pem"], 0).await;
    assert_eq!(list[0]["status"], "waiting");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_to_another_host_must_be_allowed() {
    let home = tempfile::tempdir().expect("dir");
    finish(program_in(home.path(), &["key", "new", "--out", "key.pem"]))
        .await
        .code(0);
    // TEST-NET-1 (RFC 5737): no broker is there.
    let url = "http://no-such-host.invalid:7700";
    let refused = call(home.path(), url, &[]).await;
    refused.code(2).err_contains("--allow-plain-http");
    let allowed = call(home.path(), url, &["--allow-plain-http"]).await;
    allowed.code(14).err_contains("cannot be resolved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_errors_name_the_file() {
    let home = tempfile::tempdir().expect("dir");
    for (args, message) in [
        (&["key", "show", "--key", "none.pem"][..], "none.pem"),
        (&["policy", "check", "none"], "none"),
        (
            &[
                "token",
                "proof",
                "--token",
                "none",
                "--url",
                "http://127.0.0.1/",
            ],
            "none: no such file or directory",
        ),
        (
            &[
                "token",
                "proof",
                "--token",
                ".",
                "--url",
                "http://127.0.0.1/",
            ],
            ".: is a directory",
        ),
    ] {
        let refused = finish(program_in(home.path(), args)).await;
        refused.err_contains(message);
        assert!(!refused.err().contains("os error"), "{}", refused.err());
        assert_ne!(refused.0.status.code(), Some(0));
    }
}

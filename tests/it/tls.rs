//! TLS: the broker, the client and the validator end to end, and certificate rotation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dipylon_sdk::client::{ConnectOptions, Endpoint, Error, Identity, TokenOutcome};
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{Validator, ValidatorConfig};
use tokio::net::TcpStream;

use crate::support::certificate_authority::{
    Authority, certificate_digest, presented_certificate, replace_file, tls_client, tls_handshake,
};
use crate::support::served_broker::token_request;
use crate::support::transport_server::{PEER, TestServer, TransportSetup, http1, issue_one_token};
use crate::support::wait::until;
use crate::support::{CASES, read_case};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_end_to_end() {
    let site = TestServer::start(TransportSetup {
        tls: true,
        ..TransportSetup::default()
    })
    .await;
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");
    let Ok(TokenOutcome::Token(token)) =
        task.request_token(&token_request(read_case(), "r-1")).await
    else {
        panic!("not a token");
    };
    // The validator fetches its keys and follows its feed over TLS too.
    let mut config = ValidatorConfig::new(
        &site.url,
        &site.url,
        Audience::parse(CASES).expect("audience"),
        Identity::Key(Arc::new(site.env.key_of("cases"))),
    );
    config.connect = site.connect_options();
    let cases = Validator::connect(config.clone()).await.expect("connects");
    assert!(
        cases
            .introspect(token.jwt().expose_secret())
            .await
            .expect("asked")
            .active
    );

    // Another authority is not trusted, whether it comes from a file or the system.
    replace_file(&site.root.join("other.pem"), &Authority::new().pem, 0o644);
    for ca in [Some(site.root.join("other.pem")), None] {
        let reach = ConnectOptions {
            ca,
            ..ConnectOptions::default()
        };
        let stranger = match Endpoint::connect_with(&site.url, &reach) {
            Ok(endpoint) => endpoint.with_retry_ms(0),
            // A system without authorities trusts no certificate.
            Err(error) => {
                assert!(
                    matches!(error, Error::Trust(_)) && reach.ca.is_none(),
                    "{error}"
                );
                continue;
            }
        };
        match site.task(stranger).await {
            Err(Error::Unreachable { cause, .. }) => {
                assert!(cause.contains("certificate"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
        config.connect = reach;
        assert!(Validator::connect(config.clone()).await.is_err());
    }
    // Plain HTTP to the TLS port gets no HTTP response, and does no harm.
    let plain = site.url.replace("https://", "http://");
    let endpoint = Endpoint::connect(&plain)
        .expect("endpoint")
        .with_retry_ms(0);
    assert!(matches!(
        site.task(endpoint).await,
        Err(Error::Unreachable { .. })
    ));
    let mut stream = TcpStream::connect(site.address).await.expect("connects");
    let answer = http1(&mut stream, PEER).await;
    assert!(!answer.contains("HTTP/"), "{answer}");
    // TLS 1.2 is refused.
    let old = tls_client(&site.authority.pem, &[&rustls::version::TLS12]);
    assert!(tls_handshake(site.address, &old).await.is_err());
    until("all of it was counted", || {
        site.counts.handshakes_failed.load(Ordering::Relaxed) >= 4
    })
    .await;
    issue_one_token(&task, 1).await;

    // No session resumption: each connection is a full handshake.
    let config = tls_client(&site.authority.pem, &[&rustls::version::TLS13]);
    for _ in 0..3 {
        let mut stream = tls_handshake(site.address, &config).await.expect("shaken");
        let answer = http1(&mut stream, PEER).await;
        assert!(answer.contains("tls: true"), "{answer}");
        let seen = stream.get_ref().1;
        assert_eq!(seen.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(seen.tls13_tickets_received(), 0);
        assert_eq!(seen.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificate_rotation() {
    let site = TestServer::start(TransportSetup {
        tls: true,
        ..TransportSetup::default()
    })
    .await;
    let ca = site.authority.pem.clone();
    let tls = site.tls.clone().expect("tls");
    let first = presented_certificate(site.address, &ca)
        .await
        .expect("shown");
    assert_eq!(tls.status().fingerprint, first);
    let task = site
        .task(site.endpoint_without_retries())
        .await
        .expect("opens");

    let (certificate, key) = site.authority.certify();
    replace_file(&site.root.join("tls.key"), &key, 0o600);
    replace_file(&site.root.join("tls.crt"), &certificate, 0o644);
    until("the new one is in force", || {
        tls.status().fingerprint == certificate_digest(&certificate)
    })
    .await;
    assert_eq!(
        presented_certificate(site.address, &ca).await,
        Some(certificate_digest(&certificate))
    );
    // Open connections continue.
    issue_one_token(&task, 1).await;

    replace_file(&site.root.join("tls.crt"), "garbage", 0o644);
    until("the broken certificate is reported", || {
        tls.status().last_error.is_some()
    })
    .await;
    assert_eq!(
        presented_certificate(site.address, &ca).await,
        Some(certificate_digest(&certificate))
    );
    replace_file(&site.root.join("tls.crt"), &certificate, 0o644);
    until("the error is cleared", || tls.status().last_error.is_none()).await;
    site.stop().await;
}

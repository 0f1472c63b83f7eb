//! Token delivery of `dipylon exec`: proxy, signer socket, file and descriptor, and the limits of an untrusted command.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use super::setup::{ExecSetup, READ, RunningCommand, claim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_rejects_hostile_requests() {
    let setup = ExecSetup::start().await;
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let evil = elsewhere.local_addr().expect("address").to_string();
    let script = format!(
        r#"
        say() {{ echo "== $1"; }}
        say no-path; raw "GET /cases/INC-8841 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        say wrong-path; raw "GET ${{base}}x/cases/INC-8841 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        say half-path; raw "GET ${{base:0:20}}/cases/INC-8841 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        say absolute; raw "GET http://{evil}$base/cases/INC-8841 HTTP/1.1\r\nHost: {evil}\r\nConnection: close\r\n\r\n"
        say connect; raw "CONNECT {evil} HTTP/1.1\r\nHost: {evil}\r\nConnection: close\r\n\r\n"
        say trace; ask TRACE /cases/INC-8841
        say climb; ask GET /cases/../cases/INC-8841
        say climb-encoded; ask GET /cases/%2e%2E/cases/INC-8841
        say climb-parameter; ask GET '/cases/..;x=1/cases/INC-8841'
        say climb-twice; ask GET /cases/%252e%252e/cases/INC-8841
        say cut; ask GET /cases/INC-8841%00
        say upgrade; raw "GET $base/cases/INC-8841 HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        say userinfo; ask GET "@{evil}/cases/INC-8841"
        say slashes; ask GET "//{evil}/cases/INC-8841"
        say other-action; ask POST /accounts/ann/disable '' '{{}}'
        say redirect; ask GET /redirect
        say smuggle; raw "GET $base/cases/INC-8841 HTTP/1.1\r\nHost: {evil}\r\nConnection: close, x-hop\r\nx-hop: 1\r\nAuthorization: Bearer own\r\nDPoP: own\r\nCookie: own=1\r\nX-Forwarded-For: 10.0.0.1\r\nX_Forwarded_Host: {evil}\r\nX-HTTP-Method-Override: DELETE\r\n\r\n"
        "#
    );
    let output = setup.script(&READ, &script).await;
    output.exit_code(0);
    let answer = |name: &str| {
        let at = output.out.find(&format!("== {name}\n")).expect(name);
        let rest = &output.out[at + name.len() + 4..];
        rest.split("== ").next().expect("an answer").to_owned()
    };
    for (name, status) in [
        ("no-path", "404"),
        ("wrong-path", "404"),
        ("half-path", "404"),
        ("absolute", "400"),
        ("connect", "404"),
        ("trace", "405"),
        ("climb", "400"),
        ("climb-encoded", "400"),
        ("climb-parameter", "400"),
        ("climb-twice", "400"),
        ("cut", "400"),
        ("upgrade", "501"),
        ("userinfo", "404"),
        ("slashes", "404"),
        ("other-action", "401"),
        ("redirect", "302"),
        ("smuggle", "200"),
    ] {
        let found = answer(name);
        assert!(
            found.starts_with(&format!("HTTP/1.1 {status} ")),
            "{name}: {found}"
        );
    }
    assert!(
        answer("redirect").contains("location: http://127.0.0.1:9/away"),
        "passed through"
    );
    // No connection arrived there: the command has ended, so one would be in the backlog.
    elsewhere.set_nonblocking(true).expect("a mode");
    let connection = elsewhere.accept().map_err(|error| error.kind());
    assert_eq!(
        connection.err(),
        Some(std::io::ErrorKind::WouldBlock),
        "the proxy connected to another host"
    );
    let seen = setup.resource.seen();
    // Rejected paths are not forwarded.
    let arrived: Vec<&str> = seen.iter().map(|r| r.path.as_str()).collect();
    let slashes = format!("//{evil}/cases/INC-8841");
    let expected = [
        slashes.as_str(),
        "/accounts/ann/disable",
        "/redirect",
        "/cases/INC-8841",
    ];
    assert_eq!(arrived, expected);
    let smuggled = &seen.last().expect("a request").headers;
    assert_eq!(
        smuggled["host"],
        setup.resource.url.trim_start_matches("http://")
    );
    assert_eq!(smuggled.get_all("authorization").iter().count(), 1);
    assert!(
        smuggled["authorization"]
            .to_str()
            .expect("text")
            .starts_with("DPoP eyJ")
    );
    assert_eq!(smuggled.get_all("dpop").iter().count(), 1);
    for header in [
        "cookie",
        "x-forwarded-for",
        "x_forwarded_host",
        "x-http-method-override",
        "x-hop",
        "connection",
    ] {
        assert!(smuggled.get(header).is_none(), "{header}");
    }
    assert!(!output.out.contains("eyJ"), "no response contains a token");
}

/// The proxy's URL is in the arguments of every `curl`, readable by all users.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_rejects_other_users() {
    let setup = ExecSetup::start().await;
    let other = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let can_switch_user = std::process::Command::new("setpriv")
        .args(other.split(' ').skip(1))
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let script = format!(
        r#"
        ask GET /cases/INC-8841
        echo "== other"
        if {can_switch_user}; then {other} bash -c "$(declare -f raw ask); host=$host; base=$base; id -u; ask GET /cases/INC-8841" 2>&1; fi
        echo "== own"
        ask GET /cases/INC-8841"#
    );
    let output = setup.script(&READ, &script).await;
    output.exit_code(0);
    let (own, rest) = output.out.split_once("== other").expect("other");
    let (others, again) = rest.split_once("== own").expect("own");
    for answer in [own, again] {
        assert!(answer.contains("HTTP/1.1 200 OK"), "{answer}");
    }
    assert_eq!(setup.resource.seen().len(), 2, "{others}");
    if can_switch_user {
        assert!(others.contains("65534"), "{others}");
        assert!(!others.contains("HTTP/"), "{others}");
    } else {
        eprintln!(
            "SKIPPED: only root can switch users; the refusal of another user was not tested"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_remembers_dpop_nonce() {
    let setup = ExecSetup::start_with_nonce(Some("resource-nonce-1")).await;
    let script =
        "ask GET /cases/INC-8841; ask GET /upload '' \"$(head -c 5000 /dev/zero | tr '\\0' x)\"";
    let output = setup.script(&READ, script).await;
    output
        .exit_code(0)
        .stdout_contains("done by the resource server");
    let seen = setup.resource.seen();
    let nonces: Vec<Value> = seen
        .iter()
        .map(|r| claim(r.headers["dpop"].to_str().expect("text"), "nonce"))
        .collect();
    // The first response also gave a newer nonce, which this server rejects: it challenges once more.
    let (first, second) = (Value::from("resource-nonce-1"), Value::from("next-nonce"));
    assert_eq!(nonces, [Value::Null, first.clone(), second, first]);
    output.stdout_contains("took 5000 bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_streams_and_reports_revoked_token() {
    let setup = ExecSetup::start().await;
    // Larger than the retry buffer, and once without a known size.
    let script = r#"
        body=$(head -c 300000 /dev/zero | tr '\0' x); ask POST /upload '' "$body"
        raw "POST $base/upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n3\r\nefg\r\n0\r\n\r\n""#;
    let output = setup.script(&READ, script).await;
    output
        .exit_code(0)
        .stdout_contains("took 300000 bytes")
        .stdout_contains("took 7 bytes");
    assert_eq!(setup.resource.seen()[0].body_bytes, 300_000);
    assert_eq!(setup.resource.seen()[0].method, "POST");
    let options = [&READ[..], &["--ttl", "1s"]].concat();
    let output = setup
        .script(&options, "sleep 1.5; ask GET /cases/INC-8841")
        .await;
    output
        .exit_code(0)
        .stdout_contains("HTTP/1.1 403 Forbidden")
        .stdout_contains("application/problem+json")
        .stdout_contains("\"reason\":\"TOKEN_EXPIRED\"");
    assert_eq!(
        setup.resource.seen().len(),
        2,
        "a revoked token is not sent"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signer_socket_is_bound_to_one_audience() {
    let setup = ExecSetup::start().await;
    let options = [&READ[..], &["--deliver", "socket"]].concat();
    let mut program = setup.exec(
        &options,
        &[
            "bash",
            "-c",
            "echo $DIPYLON_SIGNER_SOCKET; env; echo; read -r stop",
        ],
    );
    program.stdin(Stdio::piped());
    let mut running = RunningCommand::start(program);
    let socket = PathBuf::from(running.stdout_line().await);
    while !running.stdout_line().await.is_empty() {}
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    };
    assert_eq!(
        (mode(&socket), mode(socket.parent().expect("a directory"))),
        (0o600, 0o700)
    );
    let mut stream = tokio::net::UnixStream::connect(&socket)
        .await
        .expect("connects");
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    let mut ask = async |line: &str| -> Value {
        write
            .write_all(format!("{line}\n").as_bytes())
            .await
            .expect("asked");
        let answer = lines.next_line().await.expect("text").expect("an answer");
        serde_json::from_str(&answer).expect("JSON")
    };
    let url = format!("{}/cases/INC-8841", setup.resource.url);
    for (bad, reason) in [
        (
            format!(
                "{{\"htm\":\"GET\",\"htu\":\"{}x/cases\"}}",
                setup.resource.url
            ),
            "OTHER_AUDIENCE",
        ),
        (
            "{\"htm\":\"GET\",\"htu\":\"https://evil.example/\"}".to_owned(),
            "OTHER_AUDIENCE",
        ),
        (
            format!("{{\"htm\":\"GET\",\"htu\":\"{url}?q=1\"}}"),
            "OTHER_AUDIENCE",
        ),
        (
            format!("{{\"htm\":\"G T\",\"htu\":\"{url}\"}}"),
            "MALFORMED",
        ),
        (
            format!("{{\"htm\":\"GET\",\"htu\":\"{url}\",\"ath\":\"x\"}}"),
            "MALFORMED",
        ),
        ("nonsense".to_owned(), "MALFORMED"),
    ] {
        let answer = ask(&bad).await;
        assert_eq!(answer["error"]["reason"], reason, "{bad}");
        assert!(answer.get("dpop").is_none());
    }
    let signed = ask(&format!(
        "{{\"htm\":\"GET\",\"htu\":\"{url}\",\"nonce\":\"n-1\"}}"
    ))
    .await;
    let (authorization, dpop) = (signed["authorization"].as_str(), signed["dpop"].as_str());
    let (authorization, dpop) = (authorization.expect("a header"), dpop.expect("a proof"));
    assert_eq!(
        (claim(dpop, "htu"), claim(dpop, "nonce")),
        (Value::from(url), Value::from("n-1"))
    );
    let signed = ask(&format!(
        "{{\"htm\":\"GET\",\"htu\":\"{}/cases/INC-8841\"}}",
        setup.resource.url
    ))
    .await;
    let request = format!(
        "GET /cases/INC-8841 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {authorization}\r\nDPoP: {}\r\n\r\n",
        signed["dpop"].as_str().expect("a proof")
    );
    let host = setup.resource.url.trim_start_matches("http://");
    let mut plain = tokio::net::TcpStream::connect(host)
        .await
        .expect("connects");
    plain.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    running.child.stdin.take();
    running.end().await.stderr_contains("1 token revoked");
    assert!(
        !socket.exists() && !socket.parent().expect("a directory").exists(),
        "removed with its task"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_delivery_by_file_and_fd() {
    let setup = ExecSetup::start().await;
    for (way, script) in [
        (
            "file",
            "stat -c %a \"$DIPYLON_TOKEN_FILE\" >&2; echo \"$DIPYLON_TOKEN_FILE\" >&2; cat \"$DIPYLON_TOKEN_FILE\"",
        ),
        ("fd", "cat <&$DIPYLON_TOKEN_FD"),
    ] {
        let options = [&READ[..], &["--deliver", way]].concat();
        let output = setup.script(&options, script).await;
        output.exit_code(0);
        let document: Value = serde_json::from_str(&output.out).expect("JSON");
        let token = document["token"].as_str().expect("a token");
        assert_eq!(document["jkt"], claim(token, "cnf")["jkt"]);
        assert_eq!(document["token_type"], "DPoP");
        assert_eq!(document["audience_url"], setup.resource.url);
        let mut members: Vec<&str> = document
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        members.sort_unstable();
        assert_eq!(
            members,
            [
                "action",
                "audience_url",
                "expires_at",
                "jkt",
                "jti",
                "openings",
                "signer_socket",
                "token",
                "token_type",
                "uses"
            ],
            "no key"
        );
        assert!(!setup.is_active(&setup.resource.cases, token).await);
        if way == "file" {
            output.stderr_contains("600\n");
            let file = output
                .err
                .lines()
                .find(|l| l.ends_with("token.json"))
                .expect("its path");
            assert!(!Path::new(file).exists(), "removed with its task");
        }
    }
    let options = [&READ[..], &["--deliver", "env"]].concat();
    let output = setup.script(&options, "true").await;
    output
        .exit_code(2)
        .stderr_contains("--deliver env is not supported")
        .stderr_contains("use --deliver proxy");
    assert_eq!(
        setup.entries("\"TaskOpened\""),
        2,
        "refused before any request"
    );
}

/// A TLS audience that reports the host and proof of each request.
async fn tls_audience(name: &str) -> (String, String) {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(made.cert.der().to_vec())], key)
        .expect("a configuration");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n")
                    && stream.read_buf(&mut head).await.is_ok_and(|n| n > 0)
                {}
                let text = String::from_utf8_lossy(&head);
                let line = |name: &str| {
                    text.lines()
                        .find_map(|l| l.strip_prefix(name))
                        .unwrap_or_default()
                };
                let (host, proof) = (line("host: "), line("dpop: "));
                let shown = line("authorization: ").starts_with("DPoP eyJ");
                let body = format!("host={host} htu={} shown={shown}", claim(proof, "htu"));
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _gone = stream.write_all(answer.as_bytes()).await;
                let _gone = stream.shutdown().await;
            });
        }
    });
    (format!("https://localhost:{port}/v1/"), made.cert.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audience_tls_is_verified() {
    let setup = ExecSetup::start().await;
    let (url, pem) = tls_audience("localhost").await;
    let (other, _) = tls_audience("other.example").await;
    let ca = setup.home.path().join("ca.pem");
    std::fs::write(&ca, pem).expect("file");
    let ca = ca.to_str().expect("text");
    let run = async |options: &[&str]| {
        let options = [&READ[..], options].concat();
        setup.script(&options, "ask GET /users/ann?x=1").await
    };
    let base = url.trim_end_matches('/');
    run(&["--audience-url", &url, "--audience-ca", ca])
        .await
        .exit_code(0)
        .stdout_contains(&format!(
            "host={} htu=\"{base}/users/ann\" shown=true",
            &base[8..base.len() - 3]
        ));
    // Signed by another authority, or under another name: no token is sent.
    run(&["--audience-url", &url])
        .await
        .exit_code(114)
        .stderr_contains("certificate is not valid");
    run(&["--audience-url", &other, "--audience-ca", ca])
        .await
        .exit_code(114)
        .stderr_contains("certificate is not valid");
    run(&["--audience-url", "http://audience.example"])
        .await
        .exit_code(2)
        .stderr_contains("over plain http anyone on the network path can read");
    run(&[
        "--audience-url",
        "http://audience.invalid",
        "--insecure-audience",
    ])
    .await
    .exit_code(114)
    .stderr_contains("dipylon: warning   requests to http://audience.invalid use plain http")
    .stderr_contains("cannot be reached");
}

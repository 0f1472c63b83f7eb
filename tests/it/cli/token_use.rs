//! A token in a file: headers for curl, introspection, and spending a use.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::process::Command;

use super::setup::{CliSetup, DISABLE, READ, finish, program_in, text};
use super::unwritable_output::{run_closed, run_full};
use crate::sdk_examples::resource_server;
use crate::support::served_broker::ServedBroker;

async fn serve_cases(served: &ServedBroker) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let key = served.env.key_of("cases");
    let router = resource_server::router(&served.url, key, url.clone()).await;
    let router = router.expect("the validator connects");
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_presents_a_token_with_the_printed_headers() {
    let setup = CliSetup::start().await;
    let url = format!("{}/cases/INC-8841", serve_cases(&setup.served).await);
    setup.open_task("triage").await;
    let request = [&["token", "request", "--json"], &READ[..]].concat();
    let issued = setup.run(&request).await;
    std::fs::write(setup.path("token.json"), issued.code(0).out()).expect("file");
    let jwt = text(&issued.json()["token"]);
    std::fs::write(setup.path("token"), format!("{jwt}\n")).expect("file");

    // The query is not part of the proof (RFC 9449 §4.2).
    let with_query = format!("{url}?x=1");
    for (file, request_url) in [
        ("token.json", &url),
        ("token", &url),
        ("token", &with_query),
    ] {
        let proof = ["token", "proof", "--token", file, "--url", request_url];
        let mut proof = setup.program(&proof);
        // The broker's URL is not the request's.
        proof.env("DIPYLON_URL", "http://127.0.0.1:1");
        let headers = finish(proof).await;
        std::fs::write(setup.path("headers"), headers.code(0).out()).expect("file");
        let curl = Command::new("curl")
            .args(["-sS", "-H", "@headers", request_url])
            .current_dir(setup.home.path())
            .output()
            .await;
        let answer = curl.expect("curl is installed");
        let body = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert_eq!(body, "INC-8841: credential phishing, read by triage\n");
    }
    // The JSON form has the same two headers; a nonce and the method go into the proof.
    let post = [
        "token", "proof", "--token", "token", "--url", &url, "--method", "POST", "--nonce", "n-1",
    ];
    let headers = setup.json(&post, 0).await;
    assert_eq!(headers["authorization"], json!(format!("DPoP {jwt}")));
    let claim = |name| crate::exec::setup::claim(&text(&headers["dpop"]), name);
    assert_eq!(
        (claim("htm"), claim("nonce")),
        (json!("POST"), json!("n-1"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_is_refused_where_it_would_not_help() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let issued = setup
        .json(&[&["token", "request"], &READ[..]].concat(), 0)
        .await;
    std::fs::write(setup.path("token"), text(&issued["token"])).expect("file");
    std::fs::write(setup.path("pending"), "{\"outcome\":\"pending\"}").expect("file");
    let here = "http://127.0.0.1:8080/";
    for (args, message) in [
        (
            &["--token", "pending", "--url", here][..],
            "no token was issued",
        ),
        (
            &["--token", "triage", "--url", here],
            "expected an access token",
        ),
        (&["--token", "token", "--url", "/cases"], "absolute URL"),
        (
            &["--token", "token", "--url", here, "--method", "post"],
            "upper case",
        ),
        (
            &["--token", "token", "--url", "http://cases.example/1"],
            "must begin with https://",
        ),
        // How the broker is reached says nothing about the request.
        (
            &["--token", "token", "--url", "http://10.0.0.1/"],
            "must begin with https://",
        ),
        (
            &["--token", "token", "--url", here, "--socket", "x"],
            "--socket has no effect on",
        ),
        (
            &["--token", "token", "--url", here, "--task-key", "maria.pem"],
            "bound to another key",
        ),
        (&["--token", "token"], "--url <URL>"),
    ] {
        let mut proof = setup.program(&[&["token", "proof"], args].concat());
        proof.env("DIPYLON_SOCKET", "/nowhere");
        let refused = finish(proof).await;
        refused.code(2).err_contains(message);
        assert_eq!(refused.out(), "", "{args:?}");
    }
    // Nothing connects, so nothing is trusted.
    let https = [
        "token",
        "proof",
        "--token",
        "token",
        "--url",
        "https://cases.example/",
    ];
    let mut proof = setup.program(&https);
    proof.env("DIPYLON_CA", "/nowhere");
    finish(proof).await.code(0);
    // Where another user opened the task, its key is not here.
    let elsewhere = tempfile::tempdir().expect("dir");
    let token = setup.path("token").display().to_string();
    let proof = ["token", "proof", "--token", &token, "--url", here];
    let refused = finish(program_in(elsewhere.path(), &proof)).await;
    refused.code(2).err_contains("--task-key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_is_spent_once() {
    let setup = CliSetup::start().await;
    let task = setup.open_task("triage").await;
    let request = [&["token", "request"], &DISABLE[..]].concat();
    let pending = setup.json(&request, 11).await;
    let id = text(&pending["access_request"]);
    let approve = [
        "approve",
        &id,
        "--yes",
        "--realm",
        "test",
        "--key",
        "maria.pem",
    ];
    setup.run(&approve).await.code(0);
    let issued = setup
        .json(&[&request[..], &["--task", &task]].concat(), 0)
        .await;
    std::fs::write(setup.path("token"), text(&issued["token"])).expect("file");

    let token = ["--token", "token", "--key", "idp.pem"];
    let shown = setup
        .json(&[&["token", "introspect"], &token[..]].concat(), 0)
        .await;
    assert_eq!(
        (&shown["active"], &shown["uses_left"]),
        (&json!(true), &json!(1))
    );
    // The answer is the only copy: nothing is spent when it cannot be written.
    let unnamed = [&["token", "consume"], &token[..]].concat();
    for finished in [
        run_full(&setup, &unnamed).await,
        run_closed(&setup, &unnamed).await,
    ] {
        finished.code(1).err_contains("stdout cannot be written");
    }
    let consume = |id| [&["token", "consume", "--use-id", id], &token[..]].concat();
    let first = setup.json(&consume("use-1"), 0).await;
    assert_eq!(
        (&first["jti"], &first["uses_left"], &first["outcome"]),
        (&issued["jti"], &json!(0), &json!("spent"))
    );
    let again = setup.json(&consume("use-1"), 15).await;
    assert_eq!(
        (&again["outcome"], &again["position"]),
        (&json!("repeated"), &first["position"]),
        "the same use, and a failure to a script that would act again"
    );
    let second = setup.json(&consume("use-2"), 1).await;
    assert_eq!(second["error"]["reason"], "USES_EXHAUSTED");
    assert!(text(&second["error"]["message"]).contains("(use id use-2)"));
    // The id of a use that may be spent is how to find out.
    let mut away = setup.program(&unnamed);
    away.env("DIPYLON_URL", "http://127.0.0.1:1");
    finish(away)
        .await
        .code(14)
        .err_contains("the use may be spent: repeat with --use-id r");
    // Another validator's token, and a validator without a key.
    let cases = ["token", "consume", "--token", "token", "--key", "cases.pem"];
    setup
        .run(&cases)
        .await
        .code(1)
        .err_contains("TOKEN_INACTIVE");
    setup
        .run(&["token", "consume", "--token", "token"])
        .await
        .code(2)
        .err_contains("no key given");
}

/// A relay that breaks its first connection off instead of passing on the answer to a call that was journalled.
async fn relay_without_first_answer(setup: &CliSetup) -> std::path::PathBuf {
    let socket = setup.path("relay.sock");
    let listener = UnixListener::bind(&socket).expect("listens");
    let address = setup.served.url.trim_start_matches("http://").to_owned();
    let broker = setup.served.broker.clone();
    let before = broker.show().position();
    tokio::spawn(async move {
        let mut is_first = true;
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&address).await.expect("the broker");
            if !std::mem::take(&mut is_first) {
                tokio::spawn(
                    async move { tokio::io::copy_bidirectional(&mut near, &mut far).await },
                );
                continue;
            }
            let (mut near_read, mut near_write) = near.into_split();
            let (mut far_read, mut far_write) = far.into_split();
            let asking =
                tokio::spawn(async move { tokio::io::copy(&mut near_read, &mut far_write).await });
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(read @ 1..) = far_read.read(&mut buffer).await {
                if broker.show().position() != before {
                    break;
                }
                near_write.write_all(&buffer[..read]).await.expect("passed");
            }
            asking.abort();
        }
    });
    socket
}

/// The client repeats a call whose answer was lost: the use is its own all the same, if it made the id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_use_whose_first_answer_was_lost_is_spent() {
    for (use_id, code, outcome) in [(None, 0, "spent"), (Some("use-1"), 15, "repeated")] {
        let setup = CliSetup::start().await;
        setup.open_task("triage").await;
        let request = [&["token", "request"], &DISABLE[..]].concat();
        let pending = setup.json(&request, 11).await;
        let id = text(&pending["access_request"]);
        let approve = [
            "approve",
            &id,
            "--yes",
            "--realm",
            "test",
            "--key",
            "maria.pem",
        ];
        setup.run(&approve).await.code(0);
        let issued = setup.json(&request, 0).await;
        std::fs::write(setup.path("token"), text(&issued["token"])).expect("file");
        let socket = relay_without_first_answer(&setup).await;
        let socket = socket.to_str().expect("text");
        let mut consume = vec!["token", "consume", "--token", "token", "--key", "idp.pem"];
        consume.extend(["--socket", socket]);
        consume.extend(use_id.iter().flat_map(|id| ["--use-id", *id]));
        let used = setup.json(&consume, code).await;
        assert_eq!(used["outcome"], outcome);
    }
}

//! Console access control: anonymous requests, CSRF, pages by role, fetch metadata.

use dipylon::broker::CallerRole;
use dipylon::serve::routes::{Access, ROUTES, Route, RouteKind};
use dipylon_sdk::model::*;
use serde_json::json;

use super::{
    ConsoleUser, HttpBrowser, HttpResponse, assert_security_headers, decode_base64url,
    journal_size, method, paths, pending,
};
use crate::support::served_broker::ServedBroker;
use crate::support::{IDP, action, disable};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_console_access() {
    let s = ServedBroker::start().await;
    let mut browser = HttpBrowser::new(&s);
    for cookie in [None, Some("dipylon-session=forged".to_owned())] {
        browser.cookie = cookie;
        let before = journal_size(&s);
        for (row, path) in paths() {
            let headers = [("origin", browser.origin.as_str())];
            let answer = browser.send(method(row), &path, &headers, "").await;
            assert_security_headers(&answer, row.name);
            if row.access == Access::Anonymous {
                assert!(
                    ![401, 403].contains(&answer.status),
                    "{}: {}",
                    row.name,
                    answer.status
                );
                continue;
            }
            match row.kind {
                RouteKind::Page => {
                    assert_eq!(answer.status, 303, "{}", row.name);
                    let to = answer.header("location").expect("a location");
                    assert!(to.starts_with("/console/sign-in"), "{}: {to}", row.name);
                    assert_eq!(answer.body, "");
                }
                RouteKind::Fragment | RouteKind::Stream => {
                    assert_eq!(answer.status, 401, "{}", row.name);
                    assert_eq!(answer.reason(), "NOT_AUTHENTICATED");
                }
                RouteKind::Form | RouteKind::Json | RouteKind::SignedJson => {
                    assert_eq!(answer.status, 401, "{}", row.name);
                }
                RouteKind::Asset => unreachable!("assets are public"),
            }
        }
        assert_eq!(
            journal_size(&s),
            before,
            "an anonymous request wrote nothing"
        );
        for (path, ask) in [
            (
                "vote/begin",
                json!({ "profile": "one-security", "verdict": "approve" }),
            ),
            (
                "vote/cast",
                json!({
                    "statement": "{}", "credential": "", "authenticator_data": "", "client_data_json": "", "signature": "",
                    "user": null,
                }),
            ),
        ] {
            let path = format!("/console/requests/areq_AAAAAAAAAAAAAAAAAAAAAA/{path}");
            let answer = browser.post(&path, &ask).await;
            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (401, "NOT_AUTHENTICATED")
            );
        }
    }
    browser.cookie = None;
    for path in [
        "/console/",
        "/console/nothing",
        "/console/requests/",
        "/console/../console/x",
    ] {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_security_headers(&answer, path);
        // The page for people has the correlation id too, and an operator finds it.
        let page = browser.send("GET", path, &[("accept", "text/html")], "");
        let page = page.await;
        assert_eq!(page.status, 404, "{path}");
        assert!(
            page.header("content-type")
                .is_some_and(|kind| kind.starts_with("text/html"))
        );
        let (_, id) = page.body.split_once("cor_").expect("a correlation id");
        let id = format!("cor_{}", id.split('<').next().expect("an id"));
        let explained = s.operator("olga").explain(&id).await.expect("remembered");
        assert!(explained.headline.contains("NOT_FOUND"), "{explained:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csrf_posts_are_rejected_and_gets_are_safe() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let olga = ConsoleUser::sign_in(&s, "olga").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begun = maria.begin_vote(id, ask.clone()).await.ok().json();
    let before = journal_size(&s);
    for user in [&maria, &olga] {
        let browser = &user.browser;
        let cross = [
            vec![],
            vec![("origin", "null")],
            vec![("origin", "http://localhost:1")],
            vec![("origin", "http://evil.example")],
            vec![
                ("origin", browser.origin.as_str()),
                ("sec-fetch-site", "cross-site"),
            ],
            vec![
                ("origin", browser.origin.as_str()),
                ("origin", "http://evil.example"),
            ],
        ];
        for (row, path) in paths() {
            let path = path.replace("areq_AAAAAAAAAAAAAAAAAAAAAA", &id.to_string());
            if row.is_mutation() {
                for headers in &cross {
                    let mut headers = headers.clone();
                    headers.push(("content-type", "application/json"));
                    let answer = browser
                        .send("POST", &path, &headers, &ask.to_string())
                        .await;
                    assert_eq!(answer.status, 403, "{} {headers:?}", row.name);
                    assert_security_headers(&answer, row.name);
                }
                let answer = browser.get(&path).await;
                assert_eq!(answer.status, 405, "{}", row.name);
                assert_security_headers(&answer, row.name);
            } else if row.kind != RouteKind::Stream {
                let answer = browser.get(&path).await;
                assert!(answer.status < 500, "{}: {}", row.name, answer.body);
                assert_security_headers_or_asset(&answer, row);
                let headers = [("origin", browser.origin.as_str())];
                let answer = browser.send("POST", &path, &headers, "").await;
                assert_eq!(answer.status, 405, "{}", row.name);
            }
            let elsewhere = [
                ("host", "evil.example"),
                ("origin", browser.origin.as_str()),
            ];
            let answer = browser.send(method(row), &path, &elsewhere, "").await;
            assert_eq!(answer.status, 421, "{}", row.name);
            assert_security_headers(&answer, row.name);
        }
    }
    // A cross-site form can send this body without a preflight, but not as JSON.
    let browser = &maria.browser;
    let headers = [
        ("origin", browser.origin.as_str()),
        ("content-type", "text/plain"),
    ];
    let path = format!("/console/requests/{id}/vote/begin");
    let answer = browser
        .send("POST", &path, &headers, &ask.to_string())
        .await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (415, "MALFORMED")
    );
    assert_eq!(journal_size(&s), before, "no entry was written");
    // Neither the session nor the statement was ended by any of the above.
    let assertion = maria.passkey.get(
        &decode_base64url(&begun["challenge"]),
        &maria.browser.origin,
    );
    let cast = maria.cast_vote(id, &begun, &assertion).await.ok();
    assert_eq!(cast.json()["status"], "approved");
    assert_eq!(journal_size(&s), before + 1);
}

fn assert_security_headers_or_asset(answer: &HttpResponse, row: &Route) {
    if row.kind != RouteKind::Asset {
        assert_security_headers(answer, row.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn console_pages_by_role() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    for (name, kind) in [
        ("maria", CallerRole::Approver),
        ("olga", CallerRole::Operator),
    ] {
        let user = ConsoleUser::sign_in(&s, name).await;
        let inbox = user.browser.get("/console").await.ok();
        for (row, path) in paths() {
            let Access::Roles(kinds) = row.access else {
                continue;
            };
            if row.kind == RouteKind::Stream {
                continue;
            }
            let path = match row.name {
                "console/task" => row.path.replace("{id}", &task.id().to_string()),
                "console/agent" => row.path.replace("{id}", "triage"),
                _ => path.replace("areq_AAAAAAAAAAAAAAAAAAAAAA", &id.to_string()),
            };
            let body = match row.name {
                "console/vote-begin" => json!({
                    "profile": "one-security", "verdict": "deny", "policy": Digest::sha256(b"another").to_string(),
                    "facts": Digest::sha256(b"other").to_string(),
                }),
                _ => json!({
                    "statement": "{}", "credential": "", "authenticator_data": "", "client_data_json": "", "signature": "",
                    "user": null,
                }),
            };
            let answer = match row.kind {
                RouteKind::Form => user.browser.submit(&path).await,
                RouteKind::Json | RouteKind::SignedJson => user.browser.post(&path, &body).await,
                RouteKind::Page | RouteKind::Fragment | RouteKind::Stream | RouteKind::Asset => {
                    user.browser.get(&path).await
                }
            };
            // An operator who is no approver votes on proposals of policy bundles alone.
            if (name, row.name) == ("olga", "console/vote-begin") {
                assert_eq!(
                    (answer.status, answer.reason().as_str()),
                    (403, "NOT_ELIGIBLE")
                );
            } else if kinds.contains(&kind) {
                assert_ne!(answer.status, 403, "{name} {}: {}", row.name, answer.body);
                assert_ne!(answer.status, 401, "{name} {}", row.name);
                if row.kind == RouteKind::Page {
                    assert_eq!(answer.status, 200, "{name} {}: {}", row.name, answer.body);
                }
            } else {
                assert_eq!(answer.status, 403, "{name} {}", row.name);
            }
            // The navigation links only to pages that the role may open.
            if row.kind == RouteKind::Page && !row.path.contains('{') && row.path != "/console" {
                let is_linked = inbox.body.contains(&format!("href=\"{}\"", row.path));
                assert_eq!(is_linked, kinds.contains(&kind), "{name} {}", row.name);
            }
        }
    }
}

/// Dwell time starts when a card is fetched, so prefetches and embedded fetches are rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn non_navigation_get_is_rejected() {
    let s = ServedBroker::start_with_policy(|files| {
        let people = files.get_mut("people.toml").expect("people");
        *people = people.replace("dwell = \"off\"", "dwell = \"60s\"");
    })
    .await;
    let task = s.task("triage").await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let id = pending(&task, isolate, "r-1").await;
    let card = format!("/console/requests/{id}");
    for (row, path) in paths().chain([(&ROUTES[0], "/console/nothing".to_owned())]) {
        let answer = maria.browser.send("HEAD", &path, &[], "").await;
        assert_eq!(answer.status, 405, "{}", row.name);
    }
    for headers in [
        &[("sec-fetch-dest", "image"), ("sec-fetch-site", "same-site")][..],
        &[
            ("sec-fetch-dest", "iframe"),
            ("sec-fetch-site", "cross-site"),
        ],
        &[("sec-fetch-dest", "empty"), ("sec-fetch-site", "same-site")],
        &[("sec-fetch-dest", "document"), ("sec-purpose", "prefetch")],
    ] {
        for path in [
            &card,
            "/console",
            "/console/fragment/inbox",
            "/console/events",
        ] {
            let answer = maria.browser.send("GET", path, headers, "").await;
            assert_eq!(answer.status, 403, "{path} {headers:?}");
            assert!(!answer.body.contains("web-1"), "{path} {headers:?}");
            assert_security_headers(&answer, path);
        }
    }
    let window = [
        ("sec-fetch-dest", "document"),
        ("sec-fetch-site", "cross-site"),
    ];
    let page = maria.browser.send("GET", &card, &window, "").await.ok();
    assert!(page.has("approve"));
    let picture = page
        .body
        .split('"')
        .find(|part| part.starts_with("/console/assets/"));
    let wanted = [
        ("sec-fetch-dest", "style"),
        ("sec-fetch-site", "same-origin"),
    ];
    let picture = picture.expect("an asset");
    maria.browser.send("GET", picture, &wanted, "").await.ok();
}

//! The end of an idle session: an hour after the person's last own act, whatever the open pages do.

use dipylon::rate_limit::RateLimitConfig;
use dipylon_sdk::client::TokenOutcome;
use dipylon_sdk::clock::{Clock, ManualClock};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::{ConsoleUser, HttpBrowser, decode_base64url, open_event_stream, pending};
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::in_time;
use crate::support::{TestEnvironment, disable, read_case};

const MINUTE: u32 = 60_000;

/// What a browser says of a navigation by a click, a key or its address bar.
const NAVIGATION: &[(&str, &str)] = &[
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("sec-fetch-user", "?1"),
];
/// What it says of a navigation by a script, a refresh or a redirect.
const SCRIPTED: &[(&str, &str)] = &[
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
];
/// What it says of a script's fetch.
const FETCH: &[(&str, &str)] = &[
    ("sec-fetch-dest", "empty"),
    ("sec-fetch-mode", "cors"),
    ("sec-fetch-site", "same-origin"),
];

async fn served() -> (ServedBroker, ManualClock) {
    let (clock, manual) = Clock::manual(Clock::system().now());
    let rates = RateLimitConfig::default();
    let served = ServedBroker::start_with_clock(TestEnvironment::new(), rates, clock).await;
    (served, manual)
}

async fn is_signed_in(browser: &HttpBrowser) -> bool {
    let status = browser.get("/console").await.status;
    assert!([200, 303].contains(&status), "{status}");
    status == 200
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_an_hour_after_the_last_own_act() {
    let (s, clock) = served().await;
    let task = s.task("triage").await;
    let mut maria = ConsoleUser::sign_in(&s, "maria").await;
    let mut lee = ConsoleUser::sign_in(&s, "lee").await;
    let mut olga = ConsoleUser::sign_in(&s, "olga").await;
    let [begun, cast] = [("ann", "r-1"), ("cara", "r-2")];
    let begun = pending(&task, disable(begun.0), begun.1).await;
    let cast = pending(&task, disable(cast.0), cast.1).await;
    let token = |key: &'static str| {
        let (task, request) = (&task, token_request(read_case(), key));
        async move {
            match task.request_token(&request).await {
                Ok(TokenOutcome::Token(token)) => format!("/console/tokens/{}/revoke", token.jti()),
                other => panic!("not a token: {other:?}"),
            }
        }
    };
    let [by_click, by_script] = [token("r-3").await, token("r-4").await];
    let card = format!("/console/requests/{begun}");
    let with = |more: &[(&'static str, &'static str)]| [NAVIGATION, more].concat();
    let (twice, prefetch) = (
        with(&[("sec-fetch-user", "?1")]),
        with(&[("sec-purpose", "prefetch")]),
    );
    let forged = [FETCH, &[("sec-fetch-user", "?1")]].concat();
    let unsaid = [SCRIPTED, &[("sec-fetch-user", "?0")]].concat();
    // (request, headers, status, whether it is an act of the person's own)
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, bool);
    let gets: [Row<'_>; 12] = [
        ("/console", NAVIGATION, 200, true),
        (&card, NAVIGATION, 200, true),
        ("/console", &[], 200, false),
        ("/console", SCRIPTED, 200, false),
        ("/console", &unsaid, 200, false),
        ("/console", &twice, 200, false),
        ("/console", &prefetch, 403, false),
        (
            "/console/requests/areq_AAAAAAAAAAAAAAAAAAAAAA",
            NAVIGATION,
            404,
            false,
        ),
        (&card, FETCH, 200, false),
        (&card, &forged, 200, false),
        ("/console/fragment/inbox", FETCH, 200, false),
        ("/console/fragment/inbox", &forged, 200, false),
    ];
    let mut sessions = Vec::new();
    for (n, (path, headers, status, is_act)) in gets.into_iter().enumerate() {
        let user = if n % 2 == 0 { &mut maria } else { &mut lee };
        let mut browser = user.browser.clone();
        browser.cookie = Some(user.new_session().await);
        sessions.push((
            browser,
            format!("{path} {headers:?}"),
            is_act,
            (path, headers, status),
        ));
    }
    let (mut clicking, mut scripted) = (olga.browser.clone(), olga.browser.clone());
    clicking.cookie = Some(olga.new_session().await);
    scripted.cookie = Some(olga.new_session().await);

    clock.advance_millis(5 * MINUTE);
    for (browser, what, _, (path, headers, status)) in &sessions {
        let answer = browser.send("GET", path, headers, "").await;
        assert_eq!(answer.status, *status, "{what}: {}", answer.body);
    }
    // Lee begins a vote; Maria casts one; Olga revokes tokens by a click and by a script.
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let statement = lee.begin_vote(begun, ask.clone()).await.ok().json();
    let assertion = lee.passkey.get(
        &decode_base64url(&statement["challenge"]),
        &lee.browser.origin,
    );
    let mut foreign = statement.clone();
    foreign["statement"] = json!("{}");
    let refused = lee.cast_vote(begun, &foreign, &assertion).await;
    assert!(refused.status >= 400, "{}", refused.body);
    maria.vote(cast, ask).await.ok();
    for (browser, path, headers) in [
        (&clicking, by_click, NAVIGATION),
        (&scripted, by_script, SCRIPTED),
    ] {
        let headers = [headers, &[("origin", browser.origin.as_str())]].concat();
        let done = browser.send("POST", &path, &headers, "").await;
        assert_eq!(done.status, 303, "{}", done.body);
    }
    sessions.extend([
        (
            lee.browser.clone(),
            "a vote begun, and one refused".to_owned(),
            false,
            ("", FETCH, 0),
        ),
        (
            maria.browser.clone(),
            "a vote cast".to_owned(),
            true,
            ("", FETCH, 0),
        ),
        (
            clicking,
            "a token revoked by a click".to_owned(),
            true,
            ("", FETCH, 0),
        ),
        (
            scripted,
            "a token revoked by a script".to_owned(),
            false,
            ("", FETCH, 0),
        ),
        (
            olga.browser.clone(),
            "nothing".to_owned(),
            false,
            ("", FETCH, 0),
        ),
    ]);
    clock.advance_millis(55 * MINUTE - 1);
    for (browser, what, _, _) in &sessions {
        assert!(is_signed_in(browser).await, "{what}: within the hour");
    }
    clock.advance_millis(1);
    for (browser, what, is_act, _) in &sessions {
        assert_eq!(is_signed_in(browser).await, *is_act, "{what}");
    }
    clock.advance_millis(5 * MINUTE);
    for (browser, what, _, _) in &sessions {
        assert!(
            !is_signed_in(browser).await,
            "{what}: an hour after the act"
        );
        // A session that has ended stays ended.
        let late = browser.send("GET", "/console", NAVIGATION, "").await;
        assert_eq!(late.status, 303, "{what}");
        assert!(!is_signed_in(browser).await, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_left_open_idles_out_and_acts_end_after_eight_hours() {
    let (s, clock) = served().await;
    let mut maria = ConsoleUser::sign_in(&s, "maria").await;
    let mut away = maria.browser.clone();
    away.cookie = Some(maria.new_session().await);
    let open_stream = async || open_event_stream(&away).await;
    // The page reconnects its stream and fetches its rows; the person acts in another session.
    let mut stream = open_stream().await;
    for _ in 0..3 {
        clock.advance_millis(19 * MINUTE);
        stream = open_stream().await;
        away.send("GET", "/console/fragment/inbox", FETCH, "")
            .await
            .ok();
        maria
            .browser
            .send("GET", "/console", NAVIGATION, "")
            .await
            .ok();
    }
    clock.advance_millis(3 * MINUTE);
    let mut rest = Vec::new();
    in_time("the end of the stream", stream.read_to_end(&mut rest))
        .await
        .expect("ended");
    for path in ["/console/events", "/console/fragment/inbox"] {
        let answer = away.send("GET", path, FETCH, "").await;
        assert_eq!(
            (answer.status, answer.reason().as_str()),
            (401, "NOT_AUTHENTICATED"),
            "{path}"
        );
    }
    // The script then reloads the page.
    let page = away.send("GET", "/console/rules", SCRIPTED, "").await;
    assert_eq!(
        page.header("location"),
        Some("/console/sign-in?to=/console/rules")
    );

    for _ in 0..13 {
        clock.advance_millis(30 * MINUTE);
        maria
            .browser
            .send("GET", "/console", NAVIGATION, "")
            .await
            .ok();
    }
    clock.advance_millis(30 * MINUTE);
    assert!(!is_signed_in(&maria.browser).await, "eight hours");
}

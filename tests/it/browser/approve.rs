//! Approving at the console: enrolment, sign-in, inbox, approval, denial, narrowing, two-person quorum.

use std::sync::Arc;

use dipylon_sdk::client::{AccessToken, Denial, TaskHandle, TokenOutcome};
use dipylon_sdk::model::*;
use serde_json::json;

use super::ceremony;
use super::driver::{Browser, Viewport, is_skipped, keys};
use super::site::{ConsoleServer, card_of, enrol_by_invitation};
use crate::end_to_end::present;
use crate::support::served_broker::token_request;
use crate::support::{IDP, TestEnvironment, action, disable};

pub fn isolate(host: &str) -> Action {
    action("host.isolate", "Host", host, IDP, &[])
}

pub async fn token(task: &TaskHandle, action: Action, idempotency_key: &str) -> AccessToken {
    match task
        .request_token(&token_request(action, idempotency_key))
        .await
    {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    }
}

pub async fn denied(task: &TaskHandle, action: Action, idempotency_key: &str) -> Denial {
    match task
        .request_token(&token_request(action, idempotency_key))
        .await
    {
        Ok(TokenOutcome::Denied(denied)) => denied,
        other => panic!("not denied: {other:?}"),
    }
}

/// Waits until the card says that the person's own vote was counted.
pub async fn voted(browser: &Browser) -> String {
    browser.seen("#outcome").await.text().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enrolment_and_sign_in() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let [maria, thief] = Browser::open_together([Viewport::DESK; 2]).await;
    let invitation = site.invite("maria").await;
    let code = enrol_by_invitation(&maria, &invitation, "desk key").await;
    assert!(
        !maria.url().await.contains('#'),
        "the code is removed from the address"
    );
    let enrolled = maria.seen("#enrolled").await.text().await;
    assert!(enrolled.contains("Maria Moreau"), "{enrolled}");
    assert_eq!(
        (site.passkeys("maria"), maria.passkeys().await.len()),
        (1, 1)
    );

    enrol_by_invitation(&thief, &invitation, "mine").await;
    thief.seen("#problem").await;
    assert!(thief.is_hidden("#enrolled").await);
    let again = ceremony::post(&thief, "/console/enrol/begin", json!({ "code": code })).await;
    assert_eq!(again["body"]["reason"], "INVALID_INVITATION", "{again}");
    assert_eq!(site.passkeys("maria"), 1);

    site.sign_in(&maria).await;
    let cookies = maria.cookies().await;
    assert_eq!(cookies.len(), 1, "{cookies:?}");
    let cookie = &cookies[0];
    assert_eq!(
        (
            &cookie["name"],
            &cookie["httpOnly"],
            &cookie["sameSite"],
            &cookie["path"]
        ),
        (
            &json!("dipylon-session"),
            &json!(true),
            &json!("Strict"),
            &json!("/")
        )
    );
    assert!(cookie["expiry"].is_null(), "a session cookie");
    let seen = maria.script("return document.cookie", json!([])).await;
    assert_eq!(seen, "", "HttpOnly");

    // The cookie is invalid after sign-out.
    maria.wait("#sign-out button").await.click().await;
    maria.wait("#sign-in").await;
    let value = cookie["value"].as_str().expect("text");
    maria.put_cookie("dipylon-session", value).await;
    site.open(&maria, "/console").await;
    maria.wait("#sign-in").await;
    assert!(maria.url().await.contains("/console/sign-in"));

    // A revoked key cannot sign in, and its session is over.
    site.sign_in(&maria).await;
    let call = site.call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
    let person = PersonId::parse("maria").expect("person");
    let revoked = site
        .broker
        .revoke_approver_keys(&call, person, Default::default())
        .await;
    revoked.expect("revokes");
    site.open(&maria, "/console").await;
    maria.seen("#sign-in").await.click().await;
    maria.seen("#problem").await;
    assert!(maria.url().await.contains("/console/sign-in"));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbox_updates_live() {
    if is_skipped() {
        return;
    }
    let mut env = TestEnvironment::with_high_risk();
    env.policy.get_mut("agents.toml").expect("agents").push_str(
        "\n[[agent]]\nid = \"contain\"\nspiffe_id = \"spiffe://soc.example/agent/contain\"\nowner = \"dana\"\n\
         environment = \"prod\"\nmodel = \"example-large-2\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\n\
         actions = [\"account.disable\", \"host.isolate\"]\n",
    );
    let site = ConsoleServer::with_policy(env, dipylon_sdk::clock::Clock::system().now()).await;
    site.enrol_without_browser("lee").await;
    let maria = site.signed_in_browser("maria").await;
    maria.seen("#empty").await;
    maria.script("window.same = true", json!([])).await;

    let (triage, contain) = (site.task("triage").await, site.task("contain").await);
    let first = site.request_approval(&triage, disable("ann"), "r-1").await;
    maria.seen(&format!("li[data-request='{first}']")).await;
    maria.wait_until_gone("#empty").await;
    let second = site.request_approval(&contain, disable("ann"), "r-1").await;
    maria.seen(&format!("li[data-request='{second}']")).await;
    let grave = site
        .request_approval(&contain, isolate("web-1"), "r-2")
        .await;
    maria.seen(&format!("li[data-request='{grave}']")).await;
    assert_eq!(
        maria.script("return window.same", json!([])).await,
        true,
        "the page was not reloaded"
    );

    // Ordered by risk, then deadline; equal requests of two agents are grouped, each with its own vote.
    let rows = "return [...document.querySelectorAll('li[data-request]')].map((r) => [r.dataset.request, r.dataset.risk])";
    let shown = maria.script(rows, json!([])).await;
    assert_eq!(
        shown,
        json!([[grave, "high"], [first, "medium"], [second, "medium"]])
    );
    let groups = "return [...document.querySelectorAll('section[data-group]')].map((g) => g.querySelectorAll('li[data-request]').length)";
    assert_eq!(maria.script(groups, json!([])).await, json!([1, 2]));
    let waiting = maria.wait("#waiting").await.text().await;
    assert!(waiting.contains('3'), "{waiting}");
    // The same action requested again in the same task is the same access request.
    assert_eq!(
        site.request_approval(&triage, disable("ann"), "r-9").await,
        first
    );

    triage.cancel(first).await.expect("cancels");
    maria
        .wait_until_gone(&format!("li[data-request='{first}']"))
        .await;
    let link = format!("li[data-request='{grave}'] a");
    maria.click_on(&link).await;
    maria.wait("#card").await;
    assert!(maria.url().await.ends_with(&card_of(grave)));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approval_yields_single_use_token() {
    if is_skipped() {
        return;
    }
    let site = Arc::new(ConsoleServer::start().await);
    let validator = site.validator("idp", IDP).await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    let waiting = {
        let (task, mut order) = (task.clone(), token_request(disable("ann"), "r-1"));
        order.wait_s = 60;
        tokio::spawn(async move { task.request_token(&order).await })
    };
    site.open_card(&maria, id).await;
    let phrase = maria.wait("#phrase").await.text().await;
    assert_eq!(phrase, MatchPhrase::from_request(&id).to_string());
    let card = maria.wait("#card").await.text().await;
    for words in [
        "Disable an account",
        "ann",
        "Ann Archer",
        "destructive-needs-approval",
        "Enable the account at the identity provider.",
        "end_sessions",
        "https://idp.soc.example",
        "phish confirmed",
    ] {
        assert!(card.contains(words), "no {words:?} in {card}");
    }
    assert_eq!(
        maria
            .wait("#card")
            .await
            .attribute("data-status")
            .await
            .as_deref(),
        Some("waiting")
    );
    assert!(maria.find("#not-eligible").await.is_none());
    maria.seen("#approve").await.click().await;
    let outcome = voted(&maria).await;
    assert!(outcome.contains("approved"), "{outcome}");

    let token = match waiting.await.expect("joined") {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    let admitted = present(&validator, &token, &disable("ann")).await;
    let admitted = admitted.expect("admitted");
    assert!(admitted.approval().is_some());
    let spent = validator.consume(admitted, "u-1").await.expect("spent");
    assert_eq!(spent.uses_left(), Some(0));
    let another = present(&validator, &token, &disable("cara")).await;
    another.expect_err("valid for ann only");

    maria.reload().await;
    let card = maria.wait("#card").await;
    assert_eq!(
        card.attribute("data-status").await.as_deref(),
        Some("consumed")
    );
    assert!(maria.find("#approve").await.is_none(), "no longer pending");

    // The timeline, from verification to revocation.
    let report = task.complete(TaskOutcome::Succeeded).await;
    report.expect("completes");
    site.open(&maria, &format!("/console/tasks/{}", task.id()))
        .await;
    let kinds =
        "return [...document.querySelectorAll('#timeline li')].map((li) => li.dataset.kind)";
    let kinds = maria.script(kinds, json!([])).await;
    let at = |kind: &str| {
        kinds
            .as_array()
            .expect("a list")
            .iter()
            .position(|k| k == kind)
    };
    let order = [
        "TaskOpened",
        "AccessRequestOpened",
        "VoteCast",
        "TokenIssued",
        "TokenConsumed",
        "TaskEnded",
    ];
    let places: Vec<_> = order.iter().map(|kind| at(kind)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{kinds}"
    );
    drop(validator);
    Arc::into_inner(site)
        .expect("the only handle")
        .close()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denial_comment_reaches_the_agent() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    maria
        .wait("#comment")
        .await
        .type_in("ann is on call; ask lee")
        .await;
    maria.seen("#deny").await.click().await;
    voted(&maria).await;
    assert_eq!(site.status(id), "denied");
    let denied = denied(&task, disable("ann"), "r-1").await;
    assert_eq!(denied.comment(), Some("ann is on call; ask lee"));
    assert_eq!(denied.reason(), Some(DeniedReason::DeniedByApprover));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_card_updates_live() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let (maria, lee) = (
        site.signed_in_browser("maria").await,
        site.signed_in_browser("lee").await,
    );
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    site.open_card(&lee, id).await;
    lee.seen("#deny").await.click().await;
    voted(&lee).await;
    let outcome = maria.seen("#outcome-text").await.text().await;
    assert!(outcome.contains("denied"), "{outcome}");
    maria
        .wait_for_script("document.querySelector('#ballot').hidden")
        .await;
    site.close().await;
}

/// A click prolongs the session; what the script of an open page fetches does not, and the page gives way to the sign-in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_card_idles_out() {
    if is_skipped() {
        return;
    }
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("wait = \"15m\"", "wait = \"5h\"");
    let site = ConsoleServer::with_policy(env, dipylon_sdk::clock::Clock::system().now()).await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    maria.seen(&format!("li[data-request='{id}']")).await;
    site.advance_clock(2_400);
    maria.click_on(&format!("li[data-request='{id}'] a")).await;
    maria.wait("#card").await;
    // Forty minutes after the click and eighty after the sign-in.
    site.advance_clock(2_400);
    let fetched = "return (await fetch('/console/fragment/inbox')).status";
    assert_eq!(maria.run(fetched, json!([])).await, 200);
    maria.seen("#card").await;
    site.advance_clock(1_201);
    maria.seen("#sign-in").await;
    let back = format!("/console/sign-in?to={}", card_of(id));
    assert!(maria.url().await.ends_with(&back), "{}", maria.url().await);
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn narrowed_ttl_shortens_the_token() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    maria.press("n").await;
    assert_eq!(maria.focus().await, "narrow-ttl");
    let ttl = maria.seen("#narrow-ttl").await;
    // A longer `ttl` than requested is refused, not clamped.
    ttl.type_in("99999").await;
    maria.seen("#approve").await.click().await;
    maria.seen("#problem").await;
    assert_eq!(site.status(id), "waiting");
    ttl.clear().await;
    // The values of the fields are signed, and shown beside the buttons.
    let signs = async || maria.seen("#signs b").await.text().await;
    let before = signs().await;
    ttl.type_in("7").await;
    assert!(signs().await.starts_with("7s, "), "{}", signs().await);
    maria.press(keys::ESCAPE).await;
    assert_eq!(signs().await, before, "reset");
    assert_eq!(ttl.property("value").await, "");
    maria.press("n").await;
    ttl.type_in("45").await;
    // Collapsing the form keeps the values.
    maria.seen("#narrow summary").await.click().await;
    maria
        .wait_for_script("!document.querySelector('#narrow').open")
        .await;
    assert!(signs().await.starts_with("45s, "), "{}", signs().await);
    maria.seen("#approve").await.click().await;
    voted(&maria).await;
    let token = token(&task, disable("ann"), "r-1").await;
    let life = token.expires_at().since(site.now());
    assert!((1..=45_000).contains(&life), "{life} ms");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_person_quorum() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let [maria, lee] = Browser::open_together([Viewport::DESK; 2]).await;
    site.enrol_and_sign_in(&maria, "maria").await;
    site.enrol_and_sign_in(&lee, "lee").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, isolate("web-1"), "r-1").await;
    site.open_card(&maria, id).await;
    maria.seen("#approve").await.click().await;
    let outcome = voted(&maria).await;
    assert!(outcome.contains("other approvers"), "{outcome}");
    assert_eq!(site.status(id), "waiting");

    // A second vote by the same person does not count, with any key.
    maria.wait("#sign-out button").await.click().await;
    maria.wait("#sign-in").await;
    maria.forget_passkeys().await;
    site.enrol_and_sign_in(&maria, "maria").await;
    assert_eq!(site.passkeys("maria"), 2);
    site.open_card(&maria, id).await;
    let ask = json!({ "profile": "two-security", "verdict": "approve" });
    let path = format!("{}/vote/begin", card_of(id));
    let begun = ceremony::post(&maria, &path, ask).await;
    assert_eq!(
        begun["status"].as_u64().map(|s| s / 100),
        Some(4),
        "{begun}"
    );
    assert_eq!(site.status(id), "waiting");
    // She may still deny it, and nothing else.
    maria.seen("#deny").await;
    assert!(maria.is_hidden("#approve").await);
    maria.seen("#not-eligible").await;

    site.open_card(&lee, id).await;
    let needs = lee.wait("#card").await.text().await;
    assert!(needs.contains("Maria Moreau"), "earlier approvers: {needs}");
    lee.seen("#approve").await.click().await;
    voted(&lee).await;
    assert_eq!(site.status(id), "approved");
    token(&task, isolate("web-1"), "r-1").await;
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_cannot_vote() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let dana = site.signed_in_browser("dana").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    site.open_card(&dana, id).await;
    let why = dana.seen("#not-eligible").await.text().await;
    assert!(why.contains("You own an agent of this request"), "{why}");
    assert!(dana.find("#approve, #deny").await.is_none());
    for verdict in ["approve", "deny"] {
        let ask = json!({ "profile": "one-security", "verdict": verdict });
        let begun = ceremony::post(&dana, &format!("{}/vote/begin", card_of(id)), ask).await;
        assert_eq!(
            (&begun["status"], &begun["body"]["reason"]),
            (&json!(403), &json!("NOT_ELIGIBLE")),
            "{begun}"
        );
    }
    assert_eq!(site.status(id), "waiting");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_approval_is_rejected() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    let later = site.request_approval(&task, disable("cara"), "r-2").await;
    site.open_card(&maria, id).await;
    // The second card is opened and signed in time, but the vote arrives late.
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    site.advance_clock(14 * 60);
    let begun = ceremony::post(
        &maria,
        &format!("{}/vote/begin", card_of(later)),
        ask.clone(),
    )
    .await;
    let signed = ceremony::sign(&maria, &begun["body"]["challenge"], "required").await;
    site.advance_clock(65);
    // The open card updates to expired; a vote sent anyway is rejected.
    let outcome = maria.seen("#outcome-text").await.text().await;
    assert!(outcome.contains("expired"), "{outcome}");
    let begun_late = ceremony::post(&maria, &format!("{}/vote/begin", card_of(id)), ask).await;
    assert_eq!(
        begun_late["status"].as_u64().map(|s| s / 100),
        Some(4),
        "{begun_late}"
    );
    let cast = format!("{}/vote/cast", card_of(later));
    let late = ceremony::post(&maria, &cast, ceremony::cast(&begun, &signed)).await;
    assert_eq!(late["status"].as_u64().map(|s| s / 100), Some(4), "{late}");
    for id in [id, later] {
        assert_eq!(site.status(id), "expired");
        site.open_card(&maria, id).await;
        let card = maria.wait("#card").await;
        assert_eq!(
            card.attribute("data-status").await.as_deref(),
            Some("expired")
        );
        assert!(maria.find("#approve").await.is_none());
    }
    let denied = denied(&task, disable("ann"), "r-1").await;
    assert_eq!(denied.reason(), Some(DeniedReason::Expired));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyboard_only_flow() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let first = site.request_approval(&task, disable("ann"), "r-1").await;
    let second = site.request_approval(&task, disable("cara"), "r-2").await;
    site.open(&maria, "/console").await;
    maria.seen(&format!("li[data-request='{second}']")).await;
    // Two requests of the same millisecond may appear in either order.
    let rows =
        "return [...document.querySelectorAll('li[data-request]')].map((r) => r.dataset.request)";
    let shown = maria.script(rows, json!([])).await;
    let (first, second) = match shown == json!([first, second]) {
        true => (first, second),
        false => (second, first),
    };
    let row = async || {
        let held = "return document.activeElement.closest('[data-request]')?.dataset.request ?? ''";
        maria.script(held, json!([])).await
    };
    maria.press("j").await;
    assert_eq!(row().await, json!(first));
    maria.press("j").await;
    assert_eq!(row().await, json!(second));
    maria.press("k").await;
    assert_eq!(row().await, json!(first));
    maria.press(keys::ENTER).await;
    maria.wait("#card").await;
    assert!(maria.url().await.ends_with(&card_of(first)));

    // No vote button has the focus, so a hurried Enter does not vote.
    assert!(!["approve", "deny"].contains(&maria.focus().await.as_str()));
    maria.press(keys::ENTER).await;
    maria.press("d").await;
    assert_eq!(maria.focus().await, "deny");
    maria.press("n").await;
    assert_eq!(maria.focus().await, "narrow-ttl");
    // Enter in a field does not vote, and letters typed there are no shortcuts.
    maria.press("5a").await;
    assert_eq!(maria.focus().await, "narrow-ttl");
    maria.press(keys::ENTER).await;
    maria.press(keys::ESCAPE).await;
    maria
        .script(
            "document.activeElement.blur(); document.querySelector('#narrow').open = false",
            json!([]),
        )
        .await;
    maria.press("a").await;
    assert_eq!(maria.focus().await, "approve");
    assert_eq!(site.status(first), "waiting", "focus does not press it");
    maria.press(keys::ENTER).await;
    voted(&maria).await;
    assert_eq!(site.status(first), "approved");
    assert_eq!(site.status(second), "waiting");
    maria.press("?").await;
    maria.seen("dialog#keys").await;
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_without_javascript_and_on_mobile() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let [phone, still] = Browser::open_together([
        Viewport::PHONE,
        Viewport {
            scripts: false,
            ..Viewport::DESK
        },
    ])
    .await;
    site.enrol_and_sign_in(&phone, "maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    // A browser without JavaScript cannot use a passkey; it gets another browser's session.
    let cookie = phone.cookies().await[0]["value"].clone();
    site.open(&still, "/console/sign-in").await;
    still
        .put_cookie("dipylon-session", cookie.as_str().expect("text"))
        .await;
    let pages = [
        "/console".to_owned(),
        card_of(id),
        format!("/console/tasks/{}", task.id()),
        "/console/rules".to_owned(),
        "/console/approvers".to_owned(),
    ];
    for path in &pages {
        site.open(&still, path).await;
        let text = still.wait("main").await.text().await;
        assert!(text.len() > 40, "{path}: {text}");
        site.open(&phone, path).await;
        phone.wait("main").await;
        let wide = "return [document.documentElement.scrollWidth, innerWidth]";
        assert_eq!(
            phone.script(wide, json!([])).await,
            json!([390, 390]),
            "{path} scrolls sideways"
        );
    }
    site.open(&still, &card_of(id)).await;
    let card = still.wait("#card").await.text().await;
    for words in ["Disable an account", "ann", "phish confirmed"] {
        assert!(card.contains(words), "no {words:?} in {card}");
    }
    // The decision buttons are on the first screen and large enough to touch.
    site.open(&phone, &card_of(id)).await;
    let boxes = "return ['h1', '#phrase', '#deny', '#approve'].map((s) => { const b = document.querySelector(s).getBoundingClientRect();
                 return b.top >= 0 && b.bottom <= innerHeight && b.left >= 0 && b.right <= innerWidth; })";
    assert_eq!(
        phone.script(boxes, json!([])).await,
        json!([true, true, true, true])
    );
    let height = "return document.querySelector('#approve').getBoundingClientRect().height";
    let height = phone
        .script(height, json!([]))
        .await
        .as_f64()
        .expect("a number");
    assert!(height >= 40.0, "{height}");
    site.close().await;
}

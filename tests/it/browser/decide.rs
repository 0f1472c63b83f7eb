//! People decide at the console: enrolment, signing in, the inbox, yes, no, less, two of two.

use std::sync::Arc;

use dipylon::client::{Denial, TokenOutcome, TaskHandle, AccessToken};
use dipylon::model::*;
use serde_json::json;

use super::ceremony;
use super::driver::{Browser, Look, absent, keys};
use super::site::{Site, card_of, follow};
use crate::front_door::present;
use crate::harness::{IDP, World, action, disable};
use crate::served::order;

pub fn isolate(host: &str) -> Action {
    action("host.isolate", "Host", host, IDP, &[])
}

pub async fn token(task: &TaskHandle, action: Action, request_id: &str) -> AccessToken {
    match task.request_token(&order(action, request_id)).await {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    }
}

pub async fn denied(task: &TaskHandle, action: Action, request_id: &str) -> Denial {
    match task.request_token(&order(action, request_id)).await {
        Ok(TokenOutcome::Denied(denied)) => denied,
        other => panic!("not denied: {other:?}"),
    }
}

/// Waits until the card says that the person's own vote was taken.
pub async fn voted(browser: &Browser) -> String {
    browser.seen("#outcome").await.text().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invitation_makes_one_passkey_and_the_passkey_a_visit() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let [maria, thief] = Browser::several([Look::DESK; 2]).await;
    let invitation = site.invite("maria").await;
    let code = follow(&maria, &invitation, "desk key").await;
    assert!(
        !maria.url().await.contains('#'),
        "the code left the address"
    );
    let enrolled = maria.seen("#enrolled").await.text().await;
    assert!(enrolled.contains("Maria Moreau"), "{enrolled}");
    assert_eq!(
        (site.passkeys("maria"), maria.passkeys().await.len()),
        (1, 1)
    );

    follow(&thief, &invitation, "mine").await;
    thief.seen("#problem").await;
    assert!(thief.hides("#enrolled").await);
    let again = ceremony::post(&thief, "/console/enrol/begin", json!({ "code": code })).await;
    assert_eq!(again["body"]["reason"], "INVITATION_UNKNOWN", "{again}");
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
    assert!(cookie["expiry"].is_null(), "it goes with the browser");
    let seen = maria.script("return document.cookie", json!([])).await;
    assert_eq!(seen, "", "no script sees it");

    // What the browser had is worth nothing once the person has left.
    maria.wait("#sign-out button").await.click().await;
    maria.wait("#sign-in").await;
    let value = cookie["value"].as_str().expect("text");
    maria.put_cookie("dipylon-session", value).await;
    site.open(&maria, "/console").await;
    maria.wait("#sign-in").await;
    assert!(maria.url().await.contains("/console/sign-in"));

    // A key that counts no more signs nobody in, and ends the session that it opened.
    site.sign_in(&maria).await;
    let call = site.call("dipylon.v1.ApprovalService/RevokeApproverKeys", "olga");
    let person = PersonId::parse("maria").expect("person");
    let revoked = site.broker.revoke_approver_keys(&call, person, None).await;
    revoked.expect("revokes");
    site.open(&maria, "/console").await;
    maria.seen("#sign-in").await.click().await;
    maria.seen("#problem").await;
    assert!(maria.url().await.contains("/console/sign-in"));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inbox_shows_what_waits_and_moves_by_itself() {
    if absent() {
        return;
    }
    let mut world = World::new();
    world.policy.get_mut("agents.toml").expect("agents").push_str(
        "\n[[agent]]\nid = \"contain\"\nspiffe_id = \"spiffe://soc.example/agent/contain\"\nowner = \"dana\"\n\
         environment = \"prod\"\nmodel = \"example-large-2\"\nautonomy = \"supervised\"\ngroups = [\"soc\"]\n\
         actions = [\"account.disable\", \"host.isolate\"]\n",
    );
    let site = Site::with(world, dipylon::clock::Clock::system().now()).await;
    let maria = site.desk_of("maria").await;
    maria.seen("#empty").await;
    maria.script("window.same = true", json!([])).await;

    let (triage, contain) = (site.task("triage").await, site.task("contain").await);
    let first = site.asks(&triage, disable("ann"), "r-1").await;
    maria.seen(&format!("li[data-request='{first}']")).await;
    maria.gone("#empty").await;
    let second = site.asks(&contain, disable("ann"), "r-1").await;
    maria.seen(&format!("li[data-request='{second}']")).await;
    let grave = site.asks(&contain, isolate("web-1"), "r-2").await;
    maria.seen(&format!("li[data-request='{grave}']")).await;
    assert_eq!(
        maria.script("return window.same", json!([])).await,
        true,
        "it was never loaded again"
    );

    // Risk first, then the deadline; alike ones of two agents stand together, each with a vote of its own.
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
    // The same action asked again in the same task is the same request.
    assert_eq!(site.asks(&triage, disable("ann"), "r-9").await, first);

    triage.cancel(first).await.expect("cancels");
    maria.gone(&format!("li[data-request='{first}']")).await;
    let link = format!("li[data-request='{grave}'] a");
    maria.click_on(&link).await;
    maria.wait("#card").await;
    assert!(maria.url().await.ends_with(&card_of(grave)));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_yes_at_the_console_is_a_token_that_works_once() {
    if absent() {
        return;
    }
    let site = Arc::new(Site::start().await);
    let validator = site.validator("idp", IDP).await;
    let maria = site.desk_of("maria").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    let waiting = {
        let (task, mut order) = (task.clone(), order(disable("ann"), "r-1"));
        order.wait_s = 60;
        tokio::spawn(async move { task.request_token(&order).await })
    };
    site.open_card(&maria, id).await;
    let phrase = maria.wait("#phrase").await.text().await;
    assert_eq!(phrase, MatchPhrase::of(&id).to_string());
    let card = maria.wait("#card").await.text().await;
    for words in [
        "Disable an account",
        "ann",
        "Ann Archer",
        "destructive-needs-a-yes",
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
    let said = voted(&maria).await;
    assert!(said.contains("yes"), "{said}");

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
    another.expect_err("for ann alone");

    maria.reload().await;
    let card = maria.wait("#card").await;
    assert_eq!(
        card.attribute("data-status").await.as_deref(),
        Some("consumed")
    );
    assert!(
        maria.find("#approve").await.is_none(),
        "nothing left to decide"
    );

    // What happened, from verification to revocation.
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
    Arc::into_inner(site).expect("ours alone").close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_no_reaches_the_agent_with_its_comment() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let maria = site.desk_of("maria").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    maria
        .wait("#comment")
        .await
        .type_in("ann is on call; ask lee")
        .await;
    maria.seen("#deny").await.click().await;
    voted(&maria).await;
    assert_eq!(site.standing(id), "denied");
    let denied = denied(&task, disable("ann"), "r-1").await;
    assert_eq!(denied.comment(), Some("ann is on call; ask lee"));
    assert_eq!(denied.reason(), Some(DeniedReason::DeniedByPerson));
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_decide_is_seen_on_a_card_that_is_open() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let (maria, lee) = (site.desk_of("maria").await, site.desk_of("lee").await);
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    site.open_card(&lee, id).await;
    lee.seen("#deny").await.click().await;
    voted(&lee).await;
    let told = maria.seen("#outcome-text").await.text().await;
    assert!(told.contains("denied"), "{told}");
    maria
        .holds("document.querySelector('#ballot').hidden")
        .await;
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_narrowed_yes_is_a_shorter_token() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let maria = site.desk_of("maria").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    maria.press("n").await;
    assert_eq!(maria.focus().await, "narrow-ttl");
    let ttl = maria.seen("#narrow-ttl").await;
    // More than was asked is refused, not cut.
    ttl.type_in("99999").await;
    maria.seen("#approve").await.click().await;
    maria.seen("#problem").await;
    assert_eq!(site.standing(id), "waiting");
    ttl.clear().await;
    // What stands in the fields is what is signed, and the page says it beside the buttons.
    let signs = async || maria.seen("#signs b").await.text().await;
    let asked = signs().await;
    ttl.type_in("7").await;
    assert!(signs().await.starts_with("7 s, "), "{}", signs().await);
    maria.press(keys::ESCAPE).await;
    assert_eq!(signs().await, asked, "nothing is left of it");
    assert_eq!(ttl.property("value").await, "");
    maria.press("n").await;
    ttl.type_in("45").await;
    // Closed, it still holds.
    maria.seen("#narrow summary").await.click().await;
    maria.holds("!document.querySelector('#narrow').open").await;
    assert!(signs().await.starts_with("45 s, "), "{}", signs().await);
    maria.seen("#approve").await.click().await;
    voted(&maria).await;
    let token = token(&task, disable("ann"), "r-1").await;
    let life = token.expires_at().since(site.now());
    assert!((1..=45_000).contains(&life), "{life} ms");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_two_are_two_people() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let [maria, lee] = Browser::several([Look::DESK; 2]).await;
    site.permit(&maria, "maria").await;
    site.permit(&lee, "lee").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, isolate("web-1"), "r-1").await;
    site.open_card(&maria, id).await;
    maria.seen("#approve").await.click().await;
    let said = voted(&maria).await;
    assert!(said.contains("others"), "{said}");
    assert_eq!(site.standing(id), "waiting");

    // The same person again, with whatever key, is the same person.
    maria.wait("#sign-out button").await.click().await;
    maria.wait("#sign-in").await;
    maria.forget_passkeys().await;
    site.permit(&maria, "maria").await;
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
    assert_eq!(site.standing(id), "waiting");
    assert!(maria.find("#approve").await.is_none());
    maria.seen("#not-eligible").await;

    site.open_card(&lee, id).await;
    let needs = lee.wait("#card").await.text().await;
    assert!(
        needs.contains("Maria Moreau"),
        "who said yes before: {needs}"
    );
    lee.seen("#approve").await.click().await;
    voted(&lee).await;
    assert_eq!(site.standing(id), "approved");
    token(&task, isolate("web-1"), "r-1").await;
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_reads_and_does_not_decide() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let dana = site.desk_of("dana").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    site.open_card(&dana, id).await;
    let why = dana.seen("#not-eligible").await.text().await;
    assert!(why.contains("answer for this agent"), "{why}");
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
    assert_eq!(site.standing(id), "waiting");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_yes_says_that_it_is_late() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let maria = site.desk_of("maria").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    let later = site.asks(&task, disable("cara"), "r-2").await;
    site.open_card(&maria, id).await;
    // The second she opens in time and signs in time, but what she signed comes late.
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    site.pass(14 * 60);
    let begun = ceremony::post(
        &maria,
        &format!("{}/vote/begin", card_of(later)),
        ask.clone(),
    )
    .await;
    let signed = ceremony::sign(&maria, &begun["body"]["challenge"], "required").await;
    site.pass(65);
    // The open card says by itself that nothing is left to decide; whoever asks all the same is told so.
    let told = maria.seen("#outcome-text").await.text().await;
    assert!(told.contains("expired"), "{told}");
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
        assert_eq!(site.standing(id), "expired");
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
async fn hands_that_never_leave_the_keys() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let maria = site.desk_of("maria").await;
    let task = site.task("triage").await;
    let first = site.asks(&task, disable("ann"), "r-1").await;
    let second = site.asks(&task, disable("cara"), "r-2").await;
    site.open(&maria, "/console").await;
    maria.seen(&format!("li[data-request='{second}']")).await;
    // Two of one moment stand in either order.
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

    // Nothing that a hurried Enter could press is a yes.
    assert!(!["approve", "deny"].contains(&maria.focus().await.as_str()));
    maria.press(keys::ENTER).await;
    maria.press("d").await;
    assert_eq!(maria.focus().await, "deny");
    maria.press("n").await;
    assert_eq!(maria.focus().await, "narrow-ttl");
    // Enter in a field is no yes either, nor do letters typed there move anything.
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
    assert_eq!(
        site.standing(first),
        "waiting",
        "reaching it is not pressing it"
    );
    maria.press(keys::ENTER).await;
    voted(&maria).await;
    assert_eq!(site.standing(first), "approved");
    assert_eq!(site.standing(second), "waiting");
    maria.press("?").await;
    maria.seen("dialog#keys").await;
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_read_without_scripts_and_on_a_telephone() {
    if absent() {
        return;
    }
    let site = Site::start().await;
    let [phone, still] = Browser::several([
        Look::PHONE,
        Look {
            scripts: false,
            ..Look::DESK
        },
    ])
    .await;
    site.permit(&phone, "maria").await;
    let task = site.task("triage").await;
    let id = site.asks(&task, disable("ann"), "r-1").await;
    // A browser without scripts cannot use a passkey; it gets the session of one that can.
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
    // What decides is on the first screen, and large enough for a thumb.
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

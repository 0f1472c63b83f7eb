//! Attacks on the console: XSS, CSRF, framing, signature replay, cloned passkeys.

use dipylon_sdk::model::*;
use serde_json::{Value, json};

use super::approve::{denied, voted};
use super::attacker_site::AttackerSite;
use super::ceremony;
use super::driver::{Browser, Viewport, is_skipped};
use super::site::{ConsoleServer, card_of, enrol_by_invitation};
use crate::support::{TestEnvironment, action, disable};

/// Executable markup, and characters that hide or reorder the text beside them.
const EVIL: &str =
    "<img src=x onerror=pwned=1><script>pwned=1</script>\u{202e}\u{200b}\"'`{{7*7}}&lt;b&gt;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xss_is_escaped() {
    if is_skipped() {
        return;
    }
    let mut env = TestEnvironment::new();
    let markup = "<img src=x onerror=pwned=1><script>pwned=1</script>";
    let unseen = "\\u202E\\u200B";
    for (file, plain, changed) in [
        ("people.toml", "Maria Moreau", format!("Maria {markup}")),
        ("people.toml", "Dana Diaz", format!("Dana {markup}")),
        ("agents.toml", "example-large-2", markup.to_owned()),
        (
            "schema.cedarschema",
            "Disable an account",
            format!("Disable {markup}"),
        ),
        (
            "schema.cedarschema",
            "The account can no longer sign in.",
            format!("Nothing. {markup}"),
        ),
        (
            "schema.cedarschema",
            "Enable the account at the identity provider.",
            format!("Undo {markup}"),
        ),
        (
            "schema.cedarschema",
            "Text of the note",
            format!("Text {markup}"),
        ),
        (
            "entities.json",
            "Ann Archer",
            format!("Ann {markup}{unseen}"),
        ),
        (
            "rules/20-guardrails.cedar",
            "Security approves every action that stops something from working.",
            format!("Why {markup}"),
        ),
    ] {
        let text = env.policy.get_mut(file).expect("a file");
        assert!(text.contains(plain), "{file}: {plain}");
        *text = text.replacen(plain, &changed.replace('"', "\\\""), 1);
    }
    // Notes need approval too, so that free text of the agent is a parameter on a card.
    let schema = env.policy.get_mut("schema.cedarschema").expect("schema");
    let (plain, graver) = (
        "action \"case.note\" in [\"write\"]",
        "action \"case.note\" in [\"destructive\"]",
    );
    assert!(schema.contains(plain));
    *schema = schema.replacen(plain, graver, 1);
    let site = ConsoleServer::with_policy(env, dipylon_sdk::clock::Clock::system().now()).await;
    let maria = Browser::open(Viewport::DESK).await;
    enrol_by_invitation(&maria, &site.invite("maria").await, "<b>key</b>").await;
    let name = maria.seen("#enrolled").await.text().await;
    assert!(name.contains("<img"), "{name}");
    assert_page_intact(&maria, "enrolled").await;
    site.sign_in(&maria).await;

    let task = site.task_for("triage", EVIL).await;
    let mut order = crate::support::served_broker::token_request(disable("ann"), "r-1");
    order.reason = EVIL.to_owned();
    let id = site.pending_request(&task, &order).await;
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        crate::support::CASES,
        &[("text", Param::Str(EVIL.into()))],
    );
    let noted = site.request_approval(&task, note, "r-2").await;

    let search = "/console/journal?q=%3Cimg+src%3Dx+onerror%3Dpwned=1%3E%E2%80%AE";
    let to = "/console/sign-in?to=%22%3E%3Cimg%20src%3Dx%20onerror%3Dpwned=1%3E";
    for path in [
        "/console",
        &card_of(id),
        &card_of(noted),
        &format!("/console/tasks/{}", task.id()),
        "/console/agents",
        "/console/agents/triage",
        "/console/rules",
        "/console/approvers",
        "/console/journal",
        "/console/journal?q=maria",
        search,
        to,
        "/console/nowhere/%3Cimg%20src%3Dx%20onerror%3Dpwned=1%3E",
    ] {
        site.open(&maria, path).await;
        maria.wait("main").await;
        assert_page_intact(&maria, path).await;
    }
    // All of it is shown as text.
    site.open_card(&maria, id).await;
    let card = maria.wait("#card").await.text().await;
    for words in [
        "<script>pwned=1</script>",
        "<U+202E>",
        "<U+200B>",
        "{{7*7}}",
        "&lt;b&gt;",
    ] {
        assert!(card.contains(words), "no {words:?} in {card}");
    }

    // An approver's comment reaches the agent as plain text, or is refused.
    maria
        .wait("#comment")
        .await
        .type_in("<script>pwned=1</script>")
        .await;
    maria.seen("#deny").await.click().await;
    voted(&maria).await;
    assert_page_intact(&maria, "denied").await;
    let denied = denied(&task, disable("ann"), "r-1").await;
    assert_eq!(denied.comment(), Some("<script>pwned=1</script>"));
    let ask = json!({ "profile": "one-security", "verdict": "deny", "comment": "yes\u{202e}on" });
    let begun = ceremony::post(&maria, &format!("{}/vote/begin", card_of(noted)), ask).await;
    assert_eq!(begun["status"], 400, "{begun}");
    site.close().await;
}

/// Asserts that no injected script ran, no injected element exists, and no invisible character is left.
async fn assert_page_intact(browser: &Browser, page: &str) {
    let look = "return {
        ran: typeof window.pwned, images: document.querySelectorAll('img, iframe, object, embed').length,
        scripts: [...document.scripts].filter((s) => !s.src.startsWith(location.origin + '/console/assets/')).length,
        handlers: document.querySelectorAll('[onerror], [onclick], [onload], [style]').length,
        unseen: /[\\u202a-\\u202e\\u2066-\\u2069\\u200b-\\u200f\\u2060\\ufeff]/.test(document.documentElement.outerHTML) }";
    let seen = browser.script(look, json!([])).await;
    let clean =
        json!({ "ran": "undefined", "images": 0, "scripts": 0, "handlers": 0, "unseen": false });
    assert_eq!(seen, clean, "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csrf_from_foreign_origin() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let attacker = AttackerSite::serve().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    let console = &site.console;
    let posts = [
        "/console/sign-out".to_owned(),
        format!("{}/vote/begin", card_of(id)),
        format!("{}/vote/cast", card_of(id)),
        "/console/sign-in/begin".to_owned(),
        "/console/enrol/begin".to_owned(),
    ];
    for (n, path) in posts.iter().enumerate() {
        // `text/plain`, which a form may send cross-origin, shaped like JSON.
        let ask = "{\"profile\":\"one-security\",\"verdict\":\"deny\",\"comment\":\"";
        attacker.put(
            &format!("/{n}"),
            &format!(
                "<form method=post enctype=text/plain action='{console}{path}'><input name='{ask}' value='\"}}'></form>
                 <script>document.forms[0].submit()</script>"
            ),
        );
        // Another site, whose posts come without the cookie; and another port of the same host, whose posts carry the cookie:
        // a site has no port (RFC 6265bis §5.2).
        for from in [
            attacker.foreign_url(&format!("/{n}")),
            attacker.same_site_url(&format!("/{n}")),
        ] {
            maria.navigate(&from).await;
            maria
                .wait_for_script(&format!("location.href === '{console}{path}'"))
                .await;
            let status = "performance.getEntriesByType('navigation')[0].responseStatus";
            assert_eq!(maria.wait_for_script(status).await, 403, "{from} to {path}");
        }
    }
    // The same by script: the response is opaque, and the request has no effect.
    for from in [attacker.foreign_url("/0"), attacker.same_site_url("/0")] {
        attacker.put("/0", "a page");
        maria.navigate(&from).await;
        let tries = "const all = [];
             for (const order of [
                 { method: 'POST', mode: 'no-cors', credentials: 'include', body: '{}' },
                 { method: 'POST', credentials: 'include', headers: { 'content-type': 'application/json' }, body: '{}' },
                 { credentials: 'include' },
             ]) all.push(await fetch(args[0], order).then((a) => a.type === 'opaque' ? 'opaque' : 'read', (e) => e.name));
             return all;";
        let sign_out = format!("{console}/console/sign-out");
        let tried = maria.run(tries, json!([sign_out])).await;
        let read = tried
            .as_array()
            .expect("a list")
            .iter()
            .any(|how| how == "read");
        assert!(!read, "{from}: {tried}");
    }
    // She is still signed in, and the request is still pending.
    site.open(&maria, "/console").await;
    maria.seen(&format!("li[data-request='{id}']")).await;
    assert_eq!(site.status(id), "waiting");
    let name = "dipylon-session";
    let kept = maria.cookies().await;
    assert!(kept.iter().any(|cookie| cookie["name"] == name));
    let strayed = attacker.cookies();
    let from_neighbour = strayed.iter().all(|cookie| cookie.starts_with(name));
    assert!(from_neighbour, "{strayed:?}");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn console_cannot_be_framed() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let attacker = AttackerSite::serve().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    let framed = |path: &str| {
        format!(
            "<iframe id=f width=800 height=600 src='{}{path}' onload='window.came = true'></iframe>",
            site.console
        )
    };
    attacker.put("/card", &framed(&card_of(id)));
    attacker.put("/sign-in", &framed("/console/sign-in"));
    // Control: a page of the same broker that may be framed.
    attacker.put("/alive", &framed("/livez"));
    for (page, inside) in [("/alive", true), ("/card", false), ("/sign-in", false)] {
        maria.navigate(&attacker.same_site_url(page)).await;
        maria.wait_for_script("window.came").await;
        maria.enter_frame("#f").await;
        let found = maria
            .script(
                "return [location.protocol, document.body.innerText]",
                json!([]),
            )
            .await;
        maria.leave_frame().await;
        assert_eq!(found[0] == "http:", inside, "{page}: {found}");
    }
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signature_replay_is_rejected() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, isolate_web(), "r-1").await;
    let other = site.request_approval(&task, disable("ann"), "r-2").await;
    site.open_card(&maria, id).await;
    ceremony::listen(&maria).await;
    maria.seen("#approve").await.click().await;
    voted(&maria).await;
    let taken = ceremony::sent(&maria, "/vote/cast").await;

    // A repetition gets the answer of the recorded vote, and counts nothing.
    let again = ceremony::post(&maria, &format!("{}/vote/cast", card_of(id)), taken.clone()).await;
    assert_eq!(again["status"], 200, "{again}");
    let votes = |id| {
        site.broker
            .show()
            .access_request(&id)
            .map(|request| request.votes.len())
    };
    assert_eq!(votes(id), Some(1), "one vote, however often it is sent");
    // Her valid signature under another statement: another request, and an approval where she began a denial.
    for verdict in ["approve", "deny"] {
        let ask = json!({ "profile": "one-security", "verdict": verdict });
        let begun = ceremony::post(&maria, &format!("{}/vote/begin", card_of(other)), ask).await;
        assert_eq!(begun["status"], 200, "{begun}");
        let cast = ceremony::cast(&begun, &without_statement(&taken));
        let cast = ceremony::post(&maria, &format!("{}/vote/cast", card_of(other)), cast).await;
        refused_as(&cast, &["INVALID_PASSKEY_ASSERTION"]);
    }
    // A statement of one request, cast for another.
    let strayed = ceremony::post(&maria, &format!("{}/vote/cast", card_of(other)), taken).await;
    refused_as(
        &strayed,
        &[
            "VOTE_STATEMENT_EXPIRED",
            "INVALID_PASSKEY_ASSERTION",
            "MALFORMED",
        ],
    );
    // A sign-in assertion is not a vote.
    let begun = ceremony::post(&maria, "/console/sign-in/begin", json!({})).await;
    let entering = ceremony::sign(&maria, &begun["body"]["challenge"], "required").await;
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begun = ceremony::post(&maria, &format!("{}/vote/begin", card_of(other)), ask).await;
    let cast = ceremony::cast(&begun, &entering);
    let cast = ceremony::post(&maria, &format!("{}/vote/cast", card_of(other)), cast).await;
    refused_as(&cast, &["INVALID_PASSKEY_ASSERTION"]);
    assert_eq!(site.status(other), "waiting");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn user_verification_is_required() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    maria.recognises(false).await;
    // The browser does not sign where user verification is required.
    site.open_card(&maria, id).await;
    maria.seen("#approve").await.click().await;
    maria.seen("#problem").await;
    assert!(maria.is_hidden("#outcome").await);
    // With `discouraged` the browser signs, and the broker rejects the signature.
    let begin = format!("{}/vote/begin", card_of(id));
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begun = ceremony::post(&maria, &begin, ask.clone()).await;
    let signed = ceremony::sign(&maria, &begun["body"]["challenge"], "discouraged").await;
    assert!(signed["signature"].is_string(), "{signed}");
    let cast = format!("{}/vote/cast", card_of(id));
    let answer = ceremony::post(&maria, &cast, ceremony::cast(&begun, &signed)).await;
    refused_as(&answer, &["INVALID_PASSKEY_ASSERTION"]);
    // Sign-in rejects it too.
    let begun = ceremony::post(&maria, "/console/sign-in/begin", json!({})).await;
    let signed = ceremony::sign(&maria, &begun["body"]["challenge"], "discouraged").await;
    let answer = ceremony::post(&maria, "/console/sign-in/finish", signed).await;
    refused_as(&answer, &["NOT_AUTHENTICATED", "INVALID_PASSKEY_ASSERTION"]);
    assert_eq!(site.status(id), "waiting");

    // Control: the same steps with user verification succeed.
    maria.recognises(true).await;
    let begun = ceremony::post(&maria, &begin, ask).await;
    let signed = ceremony::sign(&maria, &begun["body"]["challenge"], "preferred").await;
    let answer = ceremony::post(&maria, &cast, ceremony::cast(&begun, &signed)).await;
    assert_eq!(answer["status"], 200, "{answer}");
    assert_eq!(site.status(id), "approved");
    site.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signature_from_foreign_origin_is_rejected() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let attacker = AttackerSite::serve().await;
    attacker.put("/", "a page that looks like the console");
    let maria = site.signed_in_browser("maria").await;
    let task = site.task("triage").await;
    let id = site.request_approval(&task, disable("ann"), "r-1").await;
    site.open_card(&maria, id).await;
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begun = ceremony::post(&maria, &format!("{}/vote/begin", card_of(id)), ask).await;
    let challenge = &begun["body"]["challenge"];

    // A page on another port may use the passkey, since RP IDs have no port; the client data names its origin.
    maria.navigate(&attacker.same_site_url("/")).await;
    let signed = ceremony::sign(&maria, challenge, "required").await;
    assert!(signed["signature"].is_string(), "{signed}");
    // A page of another site may not use the passkey.
    maria.navigate(&attacker.foreign_url("/")).await;
    let refused = ceremony::sign(&maria, challenge, "required").await;
    assert_eq!(refused["error"], "SecurityError");

    site.open_card(&maria, id).await;
    let cast = format!("{}/vote/cast", card_of(id));
    let answer = ceremony::post(&maria, &cast, ceremony::cast(&begun, &signed)).await;
    refused_as(&answer, &["INVALID_PASSKEY_ASSERTION"]);
    assert_eq!(site.status(id), "waiting");

    // The console does not answer under other host names.
    let port = site.console.rsplit(':').next().expect("a port");
    for other in [
        format!("http://127.0.0.1:{port}"),
        format!("http://console.localhost:{port}"),
    ] {
        maria.navigate(&format!("{other}{}", card_of(id))).await;
        assert!(maria.find("#card, #sign-in").await.is_none(), "{other}");
    }
    site.close().await;
}

/// The signature counter of a cloned passkey advances in two places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloned_passkey_is_revoked() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::start().await;
    let [maria, thief] = Browser::open_together([Viewport::DESK; 2]).await;
    site.enrol(&maria, "maria").await;
    thief.copy_in(&maria.passkeys().await[0]).await;
    site.sign_in(&maria).await;
    site.open(&thief, "/console/sign-in").await;
    thief.seen("#sign-in").await.click().await;
    thief.seen("#problem").await;
    // The broker cannot tell which one is hers: the passkey is revoked, and the session is over.
    assert_eq!(site.passkeys("maria"), 0);
    site.open(&maria, "/console").await;
    maria.wait("#sign-in").await;
    site.close().await;
}

fn isolate_web() -> Action {
    super::approve::isolate("web-1")
}

fn without_statement(cast: &Value) -> Value {
    let mut cast = cast.clone();
    cast.as_object_mut().expect("an object").remove("statement");
    cast
}

fn refused_as(answer: &Value, reasons: &[&str]) {
    let reason = answer["body"]["reason"].as_str().unwrap_or_default();
    let status = answer["status"].as_u64().unwrap_or_default();
    assert!(status >= 400 && reasons.contains(&reason), "{answer}");
}

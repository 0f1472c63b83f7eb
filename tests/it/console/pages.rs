//! Console pages: escaping of untrusted text, the form that revokes a token, assets named by hash.

use std::collections::BTreeSet;

use dipylon_sdk::client::TokenOutcome;

use super::{ConsoleUser, HttpBrowser};
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::{disable, read_case};

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}<b>bold</b> \u{202E}gnp.exe\u{200B}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_text_is_html_escaped() {
    // A policy bundle rejects invisible characters; the agent's text may contain any.
    let visible = HOSTILE.split(" \u{202E}").next().unwrap_or_default();
    let quoted = visible.replace('"', "\\\"");
    let s = ServedBroker::start_with_policy(|policy| {
        for (file, was, now) in [
            ("schema.cedarschema", "Disable an account", quoted.clone()),
            (
                "schema.cedarschema",
                "The account can no longer sign in.",
                quoted.clone(),
            ),
            (
                "schema.cedarschema",
                "Enable the account at the identity provider.",
                quoted.clone(),
            ),
            ("entities.json", "Ann Archer", quoted.clone()),
            ("agents.toml", "example-large-2", "<i>model</i>".to_owned()),
            ("people.toml", "Maria Moreau", "<u>Maria</u>".to_owned()),
            (
                "rules/20-guardrails.cedar",
                "Security approves every action that stops something from working.",
                quoted.clone(),
            ),
        ] {
            let text = policy.get_mut(file).expect("a file");
            assert!(text.contains(was), "{file}: {was}");
            *text = text.replace(was, &now);
        }
    })
    .await;
    let task = s.task_for("triage", HOSTILE).await;
    let mut request = token_request(disable("ann"), "r-1");
    request.reason = HOSTILE.to_owned();
    let id = match task.request_token(&request).await {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    };
    let (maria, olga) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "olga").await,
    );
    let tags = |page: &str| -> BTreeSet<String> {
        let starts = page.match_indices('<').map(|(at, _)| &page[at + 1..]);
        let named = starts.map(|rest| rest.split([' ', '>', '\n']).next().unwrap_or_default());
        named.map(str::to_owned).collect()
    };
    let mut shown = 0;
    for (user, path) in [
        (&maria, "/console".to_owned()),
        (&maria, "/console/fragment/inbox".to_owned()),
        (&maria, format!("/console/requests/{id}")),
        (&maria, format!("/console/tasks/{}", task.id())),
        (&maria, "/console/rules".to_owned()),
        (&maria, "/console/approvers".to_owned()),
        (&olga, "/console/agents".to_owned()),
        (&olga, "/console/agents/triage".to_owned()),
        (&olga, "/console/tasks".to_owned()),
        (&olga, "/console/tokens".to_owned()),
        (&olga, "/console/journal".to_owned()),
        (
            &olga,
            "/console/journal?q=%3Cscript%3Ealert(1)%3C/script%3E%22%3E".to_owned(),
        ),
    ] {
        let page = user.browser.get(&path).await.ok().body;
        for markup in [
            "<script>",
            "<img",
            "<b>bold",
            "<i>model",
            "<u>Maria",
            "\u{202E}",
            "\u{200B}",
            "onerror=alert(2)>",
        ] {
            assert!(!page.contains(markup), "{path}: {markup}\n{page}");
        }
        // One external script; no inline script, style or handler.
        assert_eq!(
            page.matches("<script").count(),
            usize::from(!path.contains("fragment")),
            "{path}"
        );
        assert!(
            !tags(&page).contains("style")
                && !page.contains(" style=")
                && !page.contains(" onclick="),
            "{path}"
        );
        shown += page.matches("&#60;script&#62;alert(1)").count();
    }
    assert!(shown >= 6, "shown as text, often: {shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoke_token_form() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let token = match task.request_token(&token_request(read_case(), "r-1")).await {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    let olga = ConsoleUser::sign_in(&s, "olga").await;
    let page = olga.browser.get("/console/tokens").await.ok();
    assert!(
        page.body.contains(&format!("data-jti=\"{}\"", token.jti())),
        "{}",
        page.body
    );
    let done = olga
        .browser
        .submit(&format!("/console/tokens/{}/revoke", token.jti()))
        .await;
    assert_eq!(done.status, 303, "{}", done.body);
    let page = olga
        .browser
        .get(done.header("location").expect("back"))
        .await
        .ok();
    assert!(
        page.has("outcome") && !page.body.contains("data-jti="),
        "{}",
        page.body
    );
    let timeline = olga
        .browser
        .get(&format!("/console/tasks/{}", task.id()))
        .await
        .ok();
    assert!(
        timeline.body.contains("data-kind=\"GrantsEnded\""),
        "{}",
        timeline.body
    );
    let found = olga
        .browser
        .get(&format!("/console/journal?q={}", token.jti()))
        .await
        .ok();
    assert!(
        found.body.contains("data-kind=\"TokenIssued\""),
        "{}",
        found.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_are_immutable_by_hash() {
    let s = ServedBroker::start().await;
    let browser = HttpBrowser::new(&s);
    let page = browser.get("/console/sign-in").await.ok().body;
    let mut seen = 0;
    for part in page
        .split('"')
        .filter(|part| part.starts_with("/console/assets/"))
    {
        let asset = browser.get(part).await.ok();
        assert_eq!(
            asset.header("cache-control"),
            Some("public, max-age=31536000, immutable")
        );
        assert_eq!(asset.header("x-content-type-options"), Some("nosniff"));
        assert!(
            !asset.body.contains("http://") || part.ends_with(".svg"),
            "{part} fetches nothing"
        );
        let (head, name) = part.rsplit_once('/').expect("a name");
        assert_eq!(browser.get(&format!("{head}0/{name}")).await.status, 404);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

//! What everyone is told of the operators: that none can act, and that they were recovered on the broker's host.

use dipylon::broker::KeyRevocation;
use dipylon_sdk::model::*;

use super::*;
use crate::support::recovery::{new_key, recover, with_key};

/// Looks for a text on every page of the person's navigation; returns how many these are.
async fn pages_with(user: &ConsoleUser, text: &str, is_there: bool) -> usize {
    let inbox = user.browser.get("/console").await.ok().body;
    let links = inbox.split("<li><a href=\"").skip(1);
    let paths: Vec<&str> = links.filter_map(|link| link.split('"').next()).collect();
    for path in &paths {
        let page = user.browser.get(path).await.ok().body;
        assert_eq!(page.contains(text), is_there, "{path}: {text}\n{page}");
    }
    paths.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_tells_that_no_operator_can_act_and_that_they_were_recovered() {
    const NONE: &str = "no operator has a living key";
    const RECOVERED: &str = "the operators were recovered on the broker&#39;s host at ";
    let s = ServedBroker::start().await;
    let mut maria = ConsoleUser::sign_in(&s, "maria").await;
    assert!(pages_with(&maria, NONE, false).await > 0);
    let call = operator_call(&s, "dipylon.v1.ApprovalService/RevokeApproverKeys");
    let revocation = KeyRevocation {
        compromised: true,
        ..KeyRevocation::default()
    };
    let olga = PersonId::parse("olga").expect("id");
    let revoked = s.broker.revoke_approver_keys(&call, olga, revocation);
    revoked.await.expect("revoked");
    pages_with(&maria, NONE, true).await;
    pages_with(&maria, RECOVERED, false).await;

    let mut files = with_key(&s.env, "olga", &new_key().0);
    let people = files.get_mut("people.toml").expect("people");
    let was = "name = \"Maria Moreau\"\ngroups = [\"security\"]\nroles = [\"approver\"";
    assert!(people.contains(was), "{people}");
    *people = people.replace(was, &format!("{was}, \"operator\""));
    let s = s
        .restart_after(async |dir, clock| {
            let done = recover(dir, clock, files, false).await.expect("recovered");
            assert_eq!(done.operators.len(), 2, "{done:?}");
        })
        .await;
    maria.browser.cookie = Some(maria.new_session().await);
    pages_with(&maria, NONE, false).await;
    let pages = pages_with(&maria, RECOVERED, true).await;
    assert_eq!(pages, 7, "an operator has every page");
    let by =
        "by ann, uid 1000 (unverified): olga&#39;s laptop &#60;b&#62;burnt&#60;/b&#62; (entry ";
    pages_with(&maria, by, true).await;
    let journal = maria.browser.get("/console/journal").await.ok().body;
    assert!(
        journal.contains("operators recovered on the broker&#39;s host"),
        "{journal}"
    );
    // Without a session the page tells strangers nothing.
    let stranger = HttpBrowser::new(&s).get("/console/sign-in").await.ok().body;
    assert!(!stranger.contains("recovered"), "{stranger}");
}

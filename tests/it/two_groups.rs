//! One remedy that asks for people of different groups.

use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::*;

const RULE: &str = r#"
@id("sessions-take-both")
@why("Security and legal agree before somebody is thrown out.")
@step_up("one-security + one-legal")
forbid (principal, action == Action::"session.end", resource)
unless { context.approvals.containsAll([StepUp::"one-security", StepUp::"one-legal"]) };
"#;

/// lee alone is of both groups.
fn environment() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let files = &mut env.policy;
    let people = files.get_mut("people.toml").expect("people");
    let of_lee = "name = \"Lee Lindqvist\"\ngroups = [\"security\"]";
    assert!(people.contains(of_lee));
    *people = people.replace(
        of_lee,
        "name = \"Lee Lindqvist\"\ngroups = [\"security\", \"legal\"]",
    );
    people.push_str("\n[profile.one-legal]\ngroup = \"legal\"\nquorum = 1\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n");
    files.insert("rules/90-both.cedar".to_owned(), RULE.to_owned());
    files.remove("tests.toml");
    env
}

#[tokio::test]
async fn two_people_of_different_groups_agree() {
    let b = TestBroker::start_with(environment(), FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let end = action("session.end", "Account", "ann", IDP, &[]);
    let ask = async || b.request_token(&triage, task, &end, 300, "end").await;
    let asked = ask().await.pending();
    let needs = asked.needs.iter().map(|need| need.profile.name.as_str());
    assert_eq!(needs.collect::<Vec<_>>(), ["one-legal", "one-security"]);
    let id = asked.access_request;

    // Nobody else is of legal: a vote of lee's for security would leave it without anybody.
    let needed = b.vote("lee", id, "one-security", Verdict::Approve).await;
    let why = needed.expect_err("refused").message;
    assert!(why.contains("left for another required profile"), "{why}");
    b.approve("lee", id, "one-legal").await;
    ask().await.pending();
    // One person is one, of whatever groups.
    b.vote("lee", id, "one-security", Verdict::Approve)
        .await
        .expect_err("voted");
    b.approve("maria", id, "one-security").await;
    let issued = ask().await.token().issued;
    let approval = issued.approval.as_ref().expect("approved");
    let profiles = approval.profiles.iter().map(ProfileName::as_str);
    assert_eq!(profiles.collect::<Vec<_>>(), ["one-legal", "one-security"]);
    b.check_invariants();
}

/// One no of either group ends it.
#[tokio::test]
async fn either_group_denies() {
    let b = TestBroker::start_with(environment(), FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let end = action("session.end", "Account", "ann", IDP, &[]);
    let id = b
        .request_token(&triage, task, &end, 300, "end")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    b.vote("lee", id, "one-legal", Verdict::Deny)
        .await
        .expect("denied");
    let denied = b
        .request_token(&triage, task, &end, 300, "end")
        .await
        .denied();
    assert_eq!(denied.why, DeniedReason::DeniedByApprover);
    b.check_invariants();
}

//! Changing the rules takes more than one: a proposal of a policy bundle waits for the people whom the bundle in force names, and comes in
//! force with their last vote.

use std::collections::BTreeMap;

use dipylon::audit::{AgreementError, AuditError};
use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::card::{self, AccessRequestStatus};
use dipylon_sdk::model::*;

use crate::audit_votes::journal_copy::JournalCopy;
use crate::support::agent_in_task::person_id;
use crate::support::own_key::row;
use crate::support::*;

const APPLY: &str = "dipylon.v1.GovernanceService/ApplyPolicyBundle";
const WITHDRAW: &str = "dipylon.v1.GovernanceService/WithdrawPolicyProposal";
const CARD: &str = "dipylon.v1.ApprovalService/GetCard";
const REVOKE_KEYS: &str = "dipylon.v1.ApprovalService/RevokeApproverKeys";
const OPERATORS: &str = "another-operator";

type Files = BTreeMap<String, String>;

/// olga and otto are operators; dana, maria and lee approve.
fn two_operators() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    env.add_key("otto");
    env
}

async fn start() -> TestBroker {
    TestBroker::start_with(two_operators(), FaultInjection::default()).await
}

/// A bundle that differs in one sentence.
fn changed(b: &TestBroker, title: &str) -> Files {
    b.env.policy_with("schema.cedarschema", |text| {
        let changed = text.replace("Disable an account", title);
        assert_ne!(changed, text);
        changed
    })
}

async fn apply_as(b: &TestBroker, name: &str, files: Files) -> Result<BundleApplied, Refusal> {
    let call = b.person_call(APPLY, name);
    let operator = b.broker.authenticate_person(&call)?;
    b.broker
        .apply_policy_bundle(&call, operator, files, Default::default(), None)
        .await
}

async fn propose(b: &TestBroker, name: &str, files: Files) -> AccessRequestId {
    let applied = apply_as(b, name, files).await.expect("proposed");
    assert!(!applied.changed);
    applied.proposal.expect("it waits").access_request
}

async fn agree(
    b: &TestBroker,
    name: &str,
    id: AccessRequestId,
    profile: &str,
) -> Result<AccessView, Refusal> {
    b.vote(name, id, profile, Verdict::Approve).await
}

fn version(b: &TestBroker) -> String {
    let rules = b.broker.show().rules().expect("rules");
    rules.bundle.version().to_string()
}

fn status(b: &TestBroker, id: AccessRequestId) -> AccessRequestStatus {
    let call = b.person_call(CARD, "olga");
    b.broker.card(&call, &id).expect("a card").status
}

#[tokio::test]
async fn another_operator_agrees_and_the_bundle_is_in_force() {
    let b = start().await;
    let before = version(&b);
    let files = changed(&b, "Lock an account");
    let applied = apply_as(&b, "olga", files.clone()).await.expect("proposed");
    let proposal = applied.proposal.expect("it waits");
    let id = proposal.access_request;
    assert_eq!(version(&b), before);
    // The same call finds the proposal.
    assert_eq!(propose(&b, "olga", files.clone()).await, id);

    let call = b.person_call(CARD, "otto");
    let card = b.broker.card(&call, &id).expect("a card");
    let changes = card.changes.clone().expect("changes");
    let file = changes
        .files
        .iter()
        .find(|f| f.path == "schema.cedarschema");
    let lines = &file.expect("the file").lines;
    assert!(
        lines
            .iter()
            .any(|line| line == "-@title(\"Disable an account\")"),
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line == "+@title(\"Lock an account\")"),
        "{lines:?}"
    );
    assert_eq!(changes.files.len(), 1);
    assert_eq!(card.max_ttl, None);
    let text = card::render_terminal(&card, b.now(), 100, card::LongValues::Full);
    assert!(text.contains("Lock an account"), "{text}");
    assert!(text.contains("olga"), "{text}");

    // Neither the proposer nor an approver who is no operator.
    assert_eq!(
        refused(agree(&b, "olga", id, OPERATORS).await),
        Reason::NotEligible
    );
    assert_eq!(
        refused(agree(&b, "dana", id, OPERATORS).await),
        Reason::NotEligible
    );
    assert_eq!(version(&b), before);

    let view = agree(&b, "otto", id, OPERATORS).await.expect("agreed");
    assert_eq!(view.status, AccessRequestStatus::Consumed);
    assert_eq!(version(&b), applied.version);
    // In force already: nothing to propose.
    let again = apply_as(&b, "olga", files).await.expect("in force");
    assert!(again.proposal.is_none() && !again.changed);
    b.check_invariants();
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(version(&b), applied.version);
    assert_eq!(status(&b, id), AccessRequestStatus::Consumed);
}

#[tokio::test]
async fn proposals_rest_on_one_bundle() {
    let b = start().await;
    let of_olga = propose(&b, "olga", changed(&b, "Lock an account")).await;
    let of_otto = propose(&b, "otto", changed(&b, "Close an account")).await;
    agree(&b, "otto", of_olga, OPERATORS).await.expect("agreed");
    assert_eq!(status(&b, of_otto), AccessRequestStatus::Ended);
    let late = agree(&b, "olga", of_otto, OPERATORS).await;
    assert_eq!(refused(late), Reason::AccessRequestClosed);
    b.check_invariants();
}

#[tokio::test]
async fn a_proposal_ends_by_its_proposer_by_time_and_by_a_dead_key() {
    let b = start().await;
    let withdraw = async |name: &str, id| {
        let call = b.person_call(WITHDRAW, name);
        b.broker.withdraw_proposal(&call, id).await
    };
    let id = propose(&b, "olga", changed(&b, "Lock an account")).await;
    assert_eq!(refused(withdraw("otto", id).await), Reason::NotFound);
    withdraw("olga", id).await.expect("withdrawn");
    withdraw("olga", id).await.expect("withdrawn before");
    assert_eq!(status(&b, id), AccessRequestStatus::Cancelled);
    assert_eq!(
        refused(agree(&b, "otto", id, OPERATORS).await),
        Reason::AccessRequestClosed
    );

    // A day later nobody can agree any more.
    let id = propose(&b, "olga", changed(&b, "Lock an account")).await;
    b.manual_clock.advance_millis(86_400_000);
    assert_eq!(
        refused(agree(&b, "otto", id, OPERATORS).await),
        Reason::AccessRequestClosed
    );
    assert_eq!(status(&b, id), AccessRequestStatus::Expired);

    // A key found copied may have proposed it.
    let id = propose(&b, "olga", changed(&b, "Lock an account")).await;
    let call = b.person_call(REVOKE_KEYS, "otto");
    let revoked = b
        .broker
        .revoke_approver_keys(&call, person_id("olga"), Default::default());
    revoked.await.expect("revoked");
    assert_eq!(
        refused(agree(&b, "otto", id, OPERATORS).await),
        Reason::AccessRequestClosed
    );
    // And nobody is left who could agree to a change of otto's; the brake needs nobody.
    let alone = apply_as(&b, "otto", changed(&b, "Lock an account")).await;
    let refusal = alone.expect_err("refused");
    assert_eq!(
        refusal.reason,
        Reason::ChangeQuorumUnreachable,
        "{}",
        refusal.message
    );
    let call = b.person_call("dipylon.v1.GovernanceService/Freeze", "otto");
    b.broker
        .freeze(&call, FreezeScope::All, None)
        .await
        .expect("one hand freezes");
    b.check_invariants();
}

#[tokio::test]
async fn what_a_change_adds_does_not_count_for_it() {
    let b = start().await;
    let before = version(&b);
    let (key, _) = dipylon_sdk::jose::SigningKey::generate().expect("key");
    // An operator invented by the proposer, and a second key of hers.
    let invented = b.env.policy_with("people.toml", |text| {
        format!(
            "{text}\n[[person]]\nid = \"mallory\"\nname = \"Mallory\"\nroles = [\"operator\"]\n{}",
            row("mallory", &key)
        )
    });
    let id = propose(&b, "olga", invented).await;
    let input = || VoteInput {
        profile: ProfileName::parse(OPERATORS).expect("profile"),
        verdict: Verdict::Approve,
        narrowing: Narrowing::default(),
        comment: None,
        policy: None,
        facts: None,
    };
    assert_eq!(
        refused(b.vote_with(&key, id, input()).await),
        Reason::NotAuthenticated
    );
    agree(&b, "otto", id, OPERATORS).await.expect("agreed");
    // Now mallory counts for what is opened after.
    let later = propose(&b, "olga", changed(&b, "Lock an account")).await;
    assert_ne!(version(&b), before);
    b.vote_with(&key, later, input()).await.expect("agreed");
    assert_eq!(status(&b, later), AccessRequestStatus::Consumed);
    b.check_invariants();
}

#[tokio::test]
async fn the_rule_of_changes_is_changed_under_the_old_one() {
    let b = start().await;
    let with_rule = |rule: &str| {
        b.env
            .policy_with("people.toml", |text| format!("{text}\n[changes]\n{rule}\n"))
    };
    let weaker = with_rule("agree = \"nobody\"");
    let id = propose(&b, "olga", weaker).await;
    let card = b
        .broker
        .card(&b.person_call(CARD, "otto"), &id)
        .expect("a card");
    let summary = card.changes.expect("changes").summary;
    assert!(
        summary[0].starts_with("WHO AGREES TO CHANGES: nobody else"),
        "{summary:?}"
    );
    agree(&b, "otto", id, OPERATORS).await.expect("agreed");
    // One hand now; and stricter again with one.
    let profile = with_rule("agree = \"two-security\"");
    let applied = apply_as(&b, "olga", profile.clone())
        .await
        .expect("applied");
    assert!(applied.changed && applied.proposal.is_none());

    // Two people of the profile, and no operator.
    let files = {
        let mut files = profile;
        let schema = changed(&b, "Lock an account")["schema.cedarschema"].clone();
        files.insert("schema.cedarschema".to_owned(), schema);
        files
    };
    let id = propose(&b, "olga", files).await;
    assert_eq!(
        refused(agree(&b, "otto", id, OPERATORS).await),
        Reason::NotEligible
    );
    assert_eq!(
        refused(agree(&b, "otto", id, "two-security").await),
        Reason::NotEligible
    );
    let view = agree(&b, "maria", id, "two-security")
        .await
        .expect("one of two");
    assert_eq!(view.status, AccessRequestStatus::Waiting);
    let view = agree(&b, "lee", id, "two-security")
        .await
        .expect("two of two");
    assert_eq!(view.status, AccessRequestStatus::Consumed);
    b.check_invariants();
}

#[tokio::test]
async fn one_no_ends_a_proposal_and_a_restart_keeps_one() {
    let b = start().await;
    let id = propose(&b, "olga", changed(&b, "Lock an account")).await;
    let view = b
        .vote("otto", id, OPERATORS, Verdict::Deny)
        .await
        .expect("denied");
    assert_eq!(view.status, AccessRequestStatus::Denied);
    let id = propose(&b, "olga", changed(&b, "Lock an account")).await;
    let b = b.restart(FaultInjection::default()).await;
    assert_eq!(status(&b, id), AccessRequestStatus::Waiting);
    agree(&b, "otto", id, OPERATORS).await.expect("agreed");
    assert_eq!(status(&b, id), AccessRequestStatus::Consumed);
    b.check_invariants();
}

#[tokio::test]
async fn the_action_is_the_brokers_own() {
    let b = start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let own = action(POLICY_APPLY, "PolicyBundle", "x", IDP, &[]);
    let asked = b.request_token(&triage, task, &own, 300, "own").await;
    assert_eq!(refused(asked), Reason::UnknownAction);
    let taken = b.env.policy_with("schema.cedarschema", |text| {
        text.replace("action \"case.note\"", "action \"policy.note\"")
    });
    let refusal = apply_as(&b, "olga", taken).await.expect_err("refused");
    assert_eq!(refusal.reason, Reason::InvalidPolicyBundle);
    assert!(
        refusal.message.contains("\"policy.\""),
        "{}",
        refusal.message
    );
}

/// A change of a bundle, and its sentence on the card.
type SummaryRow = (&'static str, &'static str, &'static str, &'static str);

const SENTENCES: &[SummaryRow] = &[
    (
        "people.toml",
        "[approvals]\n",
        "[approvals]\nconfirm_at_or_above = \"medium\"\n",
        "the limits of approvals changes: confirm_at_or_above medium instead of high",
    ),
    (
        "people.toml",
        "quorum = 2",
        "quorum = 1",
        "the profile two-security changes: quorum 1 of security instead of 2 of security",
    ),
    (
        "people.toml",
        "audiences = [\"https://idp.soc.example\"]",
        "audiences = [\"https://idp.soc.example\", \"https://more.example\"]",
        "the service idp changes: audiences get https://more.example",
    ),
    (
        "agents.toml",
        "model = \"example-large-2\"",
        "model = \"example-large-3\"",
        "the agent triage changes: model \"example-large-3\" instead of \"example-large-2\"",
    ),
    (
        "rules/20-guardrails.cedar",
        "when { resource.protected };",
        "when { resource.protected && context.target_known };",
        "the rule protected-accounts-stay changes: its conditions are others (the lines that differ say how)",
    ),
    (
        "rules/20-guardrails.cedar",
        "@max_ttl(\"10m\")\nforbid",
        "@max_ttl(\"5m\")\nforbid",
        "the rule writes-are-short changes: effect forbid beyond a life of 5m instead of forbid beyond a life of 10m",
    ),
    (
        "schema.cedarschema",
        "    @sensitive\n",
        "",
        "the action case.note changes: parameters {text: text, \"Text of the note\"} instead of {text: text, sensitive, \"Text of the note\"}",
    ),
    (
        "entities.json",
        "\"protected\": true",
        "\"protected\": false",
        "the target Account::\"break-glass\" changes: attribute \"protected\" false instead of true",
    ),
    (
        "rules/90-more.cedar",
        "",
        "@id(\"more\") forbid (principal, action == Action::\"case.read\", resource == Case::\"INC-8850\");",
        "the rule more comes: effect forbid, why not said",
    ),
    (
        "schema.cedarschema",
        "@reversible(\"reversible\")\n@undo(\"Delete",
        "@reversible(\"irreversible\")\n@undo(\"Delete",
        "WARNING: schema.cedarschema: action \"case.note\" is irreversible, and nobody has to approve it",
    ),
];

/// What decides has a sentence, and what is only written otherwise has none.
#[tokio::test]
async fn each_change_has_its_sentence() {
    let b = start().await;
    for (file, from, to, sentence) in SENTENCES {
        let files = b.env.policy_with(file, |text| match from.is_empty() {
            true => (*to).to_owned(),
            false => {
                assert!(text.contains(from), "{file}: {from}");
                text.replacen(from, to, 1)
            }
        });
        let summary = summary_of(&b, files).await;
        assert!(
            summary.iter().any(|line| line.starts_with(sentence)),
            "{sentence}: {summary:#?}"
        );
    }
    let layout = b.env.policy_with("rules/20-guardrails.cedar", |text| {
        text.replace("unless {", "unless\n  // As before.\n  {")
    });
    assert_eq!(summary_of(&b, layout).await, [""; 0]);
}

/// The sentences on the card of a proposal, which is taken back.
async fn summary_of(b: &TestBroker, files: Files) -> Vec<String> {
    let id = propose(b, "olga", files).await;
    let card = b.broker.card(&b.person_call(CARD, "otto"), &id);
    let summary = card.expect("a card").changes.expect("changes").summary;
    let call = b.person_call(WITHDRAW, "olga");
    let withdrawn = b.broker.withdraw_proposal(&call, id).await;
    withdrawn.expect("withdrawn");
    summary
}

/// A rule of changes that nobody could satisfy locks the rules: the proposer and the card hear it.
#[tokio::test]
async fn a_change_that_locks_the_rules_says_so() {
    let b = start().await;
    let files = b.env.policy_with("people.toml", |text| {
        let profile = "[profile.locked]\ngroup = \"security\"\nwait = \"5m\"\ngood_for = \"5m\"\nmethod = \"passkey\"\n";
        format!("{text}\n{profile}\n[changes]\nagree = \"locked\"\n")
    });
    let applied = apply_as(&b, "olga", files).await.expect("proposed");
    let locks = "NOBODY COULD CHANGE THE POLICY BUNDLE";
    assert!(applied.warnings[0].starts_with(locks), "{applied:?}");
    let id = applied.proposal.expect("waits").access_request;
    let card = b.broker.card(&b.person_call(CARD, "otto"), &id);
    let summary = card.expect("a card").changes.expect("changes").summary;
    assert!(summary[0].starts_with(locks), "{summary:?}");
}

/// The audit compares what was shown with what differs between the two bundles.
#[tokio::test]
async fn audit_finds_changes_that_were_not_shown() {
    let b = start().await;
    let id = propose(&b, "olga", changed(&b, "Lock an account")).await;
    agree(&b, "otto", id, OPERATORS).await.expect("agreed");
    let mut copy = JournalCopy::read(&b);
    copy.votes().expect("whole");
    let opened = copy.find(|event| matches!(event, Event::AccessRequestOpened(_)));
    let less = PolicyChanges {
        summary: Vec::new(),
        files: Vec::new(),
    };
    let less = copy.put_blob(&json::canonical_of(&less).expect("canonical"));
    if let Event::AccessRequestOpened(f) = &mut copy.entries[opened].event
        && let AccessRequester::Person(by) = &mut f.requester
    {
        by.changes = less;
    }
    let found = copy.votes().expect_err("found");
    let is_found = matches!(
        &found,
        AuditError::Agreement { why: AgreementError::Changes, index } if usize::try_from(*index) == Ok(opened)
    );
    assert!(is_found, "{found}");
}

/// One operator fills nobody's inbox: ten proposals wait, and one taken back makes room.
#[tokio::test]
async fn ten_proposals_of_one_operator_wait() {
    let b = start().await;
    let mut first = None;
    for n in 0..10 {
        let files = changed(&b, &format!("Close account {n}"));
        let id = propose(&b, "olga", files).await;
        first.get_or_insert(id);
    }
    let more = changed(&b, "Close one more");
    let refusal = apply_as(&b, "olga", more.clone()).await;
    assert_eq!(refused(refusal), Reason::TooManyPending);
    propose(&b, "otto", more.clone()).await;
    let call = b.person_call(WITHDRAW, "olga");
    let withdrawn = b.broker.withdraw_proposal(&call, first.expect("one")).await;
    withdrawn.expect("withdrawn");
    propose(&b, "olga", more).await;
    b.check_invariants();
}

//! A vote by a registered key counts only for actions whose risk is below `key_votes_below`: a bundle that would ask for one is
//! refused, and one that raises the risk takes back what such votes lifted.

use std::collections::BTreeMap;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::cli_deployment::CliDeployment;
use crate::support::passkey_votes::{approve, deny};
use crate::support::served_broker::ServedBroker;
use crate::support::*;

const SCHEMA: &str = "schema.cedarschema";
const RULES: &str = "rules/20-guardrails.cedar";
const PEOPLE: &str = "people.toml";

/// A bundle in which disabling an account is of high risk.
fn risk_raised(env: &TestEnvironment) -> BTreeMap<String, String> {
    let mut files = env.policy_with(SCHEMA, |text| {
        let raised = text.replacen("@risk(\"medium\")", "@risk(\"high\")", 1);
        assert!(raised.contains("@title(\"Disable an account\")") && raised != text);
        raised
    });
    // `[autonomy]` asks them for an action of this risk.
    let people = files.get_mut(PEOPLE).expect("people");
    let profile = people.find("[profile.one-passkey]").expect("a profile");
    let (before, after) = people.split_at(profile);
    let after = after.replace("method = \"key\"", "method = \"passkey\"");
    *people = format!("{before}{after}");
    files
}

/// The rule asks for passkeys, and still accepts what was approved before.
fn ask_passkeys(files: &mut BTreeMap<String, String>) {
    let rules = files.get_mut(RULES).expect("rules");
    let asks = "@step_up(\"one-security\")\nforbid (principal, action in Action::\"destructive\"";
    assert!(rules.contains(asks));
    *rules = rules.replace(asks, &asks.replace("one-security", "one-passkey"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_that_ask_keys_for_high_risk_are_refused() {
    let site = CliDeployment::new();
    let s = ServedBroker::start().await;
    let olga = s.operator("olga");
    let group = |text: &str| {
        format!(
            "{text}\n@id(\"writes-need-a-yes\")\n@step_up(\"one-security\")\nforbid (principal, action in Action::\"write\", \
             resource)\nunless {{ context.approvals.contains(StepUp::\"one-security\") }};\n"
        )
    };
    let high = |text: &str| text.replace("@risk(\"medium\")", "@risk(\"high\")");
    let first_high = |text: &str| text.replacen("@risk(\"medium\")", "@risk(\"high\")", 1);
    // (the changed files, the rule, the actions of the finding)
    type Change<'a> = &'a [(&'a str, &'a dyn Fn(&str) -> String)];
    let cases: [(Change, &str, &[&str]); 4] = [
        (
            &[(SCHEMA, &high)],
            "destructive-needs-approval",
            &["\"account.disable\" (high risk)"],
        ),
        (
            &[(SCHEMA, &|text| text.replace("@risk(\"medium\")\n", ""))],
            "destructive-needs-approval",
            &["\"account.disable\" (no @risk, which counts as high)"],
        ),
        (
            // A group of groups.
            &[(SCHEMA, &first_high), (RULES, &group)],
            "writes-need-a-yes",
            &["\"account.disable\" (high risk)"],
        ),
        (
            &[(PEOPLE, &|text| {
                format!("{text}\nkey_votes_below = \"low\"\n")
            })],
            "destructive-needs-approval",
            &[
                "\"account.disable\" (medium risk)",
                "below low risk (`key_votes_below`)",
            ],
        ),
    ];
    for (changes, rule, words) in cases {
        let change = |policy: &BTreeMap<String, String>| {
            let mut files = policy.clone();
            for (file, change) in changes {
                let text = files.get_mut(*file).expect("a file");
                let keys_at = text.find("\n[[key]]").unwrap_or(text.len());
                // The limits stand before the keys of the test.
                let (limits, keys) = match *file {
                    PEOPLE => text.split_at(keys_at),
                    _ => text.split_at(text.len()),
                };
                *text = format!("{}{keys}", change(limits));
            }
            files
        };
        let files = change(&site.env.policy);
        for (path, text) in &files {
            site.write(&format!("policy/{path}"), text);
        }
        let line = files[RULES]
            .lines()
            .position(|line| line == format!("@id(\"{rule}\")"))
            .expect("the rule")
            + 1;
        let place = format!(
            "{RULES}:{line}: rule \"{rule}\" may ask profile one-security, which takes votes by key, for "
        );
        let (code, error, _) = site.run(&["policy", "check", "policy"]);
        assert_eq!(code, 1, "{rule}");
        let applied = olga.apply_policy_bundle(&change(&s.env.policy)).await;
        let refused = applied.expect_err("refused");
        assert_eq!(refused.reason(), Some(Reason::InvalidPolicyBundle));
        for told in [error, refused.to_string()] {
            assert!(told.contains(&place), "{place}\n{told}");
            for words in words {
                assert!(told.contains(words), "{words}\n{told}");
            }
            assert!(
                told.contains("write method = \"passkey\" in [profile.one-security]"),
                "{told}"
            );
        }
    }
    // With passkeys the same risk is accepted.
    let mut files = risk_raised(&site.env);
    let people = files.get_mut(PEOPLE).expect("people");
    *people = people.replace("method = \"key\"", "method = \"passkey\"");
    for (path, text) in &files {
        site.write(&format!("policy/{path}"), text);
    }
    let (code, error, _) = site.run(&["policy", "check", "policy"]);
    assert_eq!(code, 0, "{error}");
}

#[tokio::test]
async fn a_raised_risk_voids_votes_by_key() {
    let b = TestBroker::start().await;
    let passkey = b.enrol("lee").await;
    let session = b.sign_in(&passkey).await.expect("signed in");
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async |account: &str| {
        let action = disable(account);
        let asked = b.request_token(&triage, task, &action, 300, account);
        asked.await
    };
    let ids = [
        ask("ann").await.pending().access_request,
        ask("cara").await.pending().access_request,
    ];
    for id in ids {
        b.approve("maria", id, "one-security").await;
    }
    let status = |id: &AccessRequestId| {
        let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "maria");
        let card = b.broker.card(&call, id).expect("a card");
        (
            card.status,
            card.needs[0].approvers.len(),
            card.needs[0].passkey,
        )
    };
    assert_eq!(status(&ids[0]), (AccessRequestStatus::Approved, 1, false));

    // The requests go on, and ask for what the risk takes: what was approved by key was approved at another risk.
    let mut files = risk_raised(&b.env);
    ask_passkeys(&mut files);
    let applied = b.apply_policy(files).await.expect("applied");
    assert_eq!(applied.revoked.requests, 0);
    assert_eq!(status(&ids[0]), (AccessRequestStatus::Waiting, 0, true));
    for verdict in [Verdict::Approve, Verdict::Deny] {
        let begun = b.begin_vote("lee", ids[0], "one-passkey", verdict).await;
        let begun = begun.expect("a passkey could sign it");
        let refusal = b.cast_vote("lee", ids[0], &begun.statement).await;
        assert_eq!(
            refusal.expect_err("a key does not").reason,
            Reason::NotEligible
        );
    }
    let pending = ask("ann").await.pending();
    assert_eq!(pending.void.len(), 1, "maria's");
    let input = VoteInput {
        profile: ProfileName::parse("one-passkey").expect("profile"),
        ..approve()
    };
    let cast = b.vote_in_session(&session, &passkey, ids[0], input);
    assert_eq!(
        cast.await.expect("counts").status,
        AccessRequestStatus::Approved
    );
    assert!(ask("ann").await.token().issued.approval.is_some());
    b.check_invariants();
    let b = b.restart(FaultInjection::default()).await;
    b.check_invariants();
}

#[tokio::test]
async fn a_raised_risk_ends_tokens_that_votes_by_key_lifted() {
    let b = TestBroker::start().await;
    let passkey = b.enrol("lee").await;
    let session = b.sign_in(&passkey).await.expect("signed in");
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let mut tokens = Vec::new();
    for account in ["ann", "cara"] {
        let ask = async || {
            b.request_token(&triage, task, &disable(account), 300, account)
                .await
        };
        let id = ask().await.pending().access_request;
        match account {
            "ann" => b.approve("maria", id, "one-security").await,
            _ => {
                let cast = b.vote_in_session(&session, &passkey, id, approve());
                cast.await.expect("counts");
            }
        }
        tokens.push(ask().await.token());
    }
    let live = async || {
        let mut live = Vec::new();
        for token in &tokens {
            live.push(b.introspect("idp", &token.token).await);
        }
        live
    };
    assert_eq!(live().await, [true, true]);
    // The rule asks for passkeys, and still accepts what was approved before.
    let mut files = risk_raised(&b.env);
    ask_passkeys(&mut files);
    let applied = b.apply_policy(files).await.expect("applied");
    assert_eq!(applied.revoked.grants, 1);
    assert_eq!(live().await, [false, true], "by key, by passkey");
    b.check_invariants();
}

/// The person has a passkey, and the profile takes nothing else: the key of the same person is refused, for a denial too.
#[tokio::test]
async fn a_profile_of_passkeys_takes_no_key() {
    let env = TestEnvironment::with_high_risk();
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    b.enrol_voters(&["maria", "lee"]).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let ask = async || b.request_token(&triage, task, &isolate, 300, "r-1").await;
    let id = ask().await.pending().access_request;
    for input in [approve(), deny()] {
        let input = VoteInput {
            profile: ProfileName::parse("two-security").expect("profile"),
            ..input
        };
        let refusal = b.vote_with(&b.env.keys["maria"], id, input).await;
        let refusal = refusal.expect_err("by key");
        assert_eq!(refusal.reason, Reason::NotEligible);
        assert!(refusal.message.contains("by passkey alone"), "{refusal:?}");
    }
    for name in ["maria", "lee"] {
        b.approve(name, id, "two-security").await;
    }
    assert!(ask().await.token().issued.approval.is_some());
    b.check_invariants();
}

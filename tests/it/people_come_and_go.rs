//! People come and go by entries: a bundle that drops a person, or takes a role, ends passkeys, invitation and sessions, in words; the
//! same id later is another person, unless the operator says that the same one returns. Also after a restart, and in the audit.

use std::collections::BTreeMap;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;
use serde_json::{Value, json};

use crate::support::agent_in_task::person_id;
use crate::support::cli_deployment::CliDeployment;
use crate::support::own_key::OwnKey;
use crate::support::passkey_votes::{approve, deny};
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::*;

const INBOX: &str = "dipylon.v1.ApprovalService/ListAccessRequests";

type Files = BTreeMap<String, String>;

/// How a bundle ends what a person had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    Dropped,
    RoleTaken,
}

/// How a later bundle has them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coming {
    Anew,
    Returning,
}

fn going(env: &TestEnvironment, how: Going) -> Files {
    match how {
        Going::Dropped => env.without_person("lee"),
        Going::RoleTaken => env.without_role("lee"),
    }
}

/// With another key of lee's in place of the registered one.
fn with_lees_new_key(env: &TestEnvironment, key: &OwnKey) -> Files {
    env.policy_with("people.toml", |text| {
        text.replace(&env.own_key("lee").row("lee"), &key.row("lee"))
    })
}

/// What lee had before.
struct Had {
    passkey: SoftwareAuthenticator,
    sessions: [Session; 2],
    invitation: Secret,
    /// Begun before, not cast.
    begun: VoteStatementReply,
}

struct World {
    b: TestBroker,
    triage: TestAgent,
    task: TaskId,
    /// Approved by lee's passkey before, and by lee's key.
    approved: [AccessRequestId; 2],
    /// Waits.
    waiting: AccessRequestId,
    lee: Had,
}

const BY_PASSKEY: &str = "ann";
const BY_KEY: &str = "cara";

impl World {
    async fn new() -> Self {
        let b = TestBroker::start().await;
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        let passkey = b.enrol("lee").await;
        let sign_in = async || b.sign_in(&passkey).await.expect("signed in");
        let sessions = [sign_in().await, sign_in().await];
        let invitation = b.invite("lee").await;
        let ask = async |action: Action, key| {
            b.request_token(&triage, task, &action, 300, key)
                .await
                .pending()
                .access_request
        };
        let approved = [
            ask(disable(BY_PASSKEY), BY_PASSKEY).await,
            ask(disable(BY_KEY), BY_KEY).await,
        ];
        let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
        let waiting = ask(isolate, "waiting").await;
        let cast = b
            .vote_in_session(&sessions[0], &passkey, approved[0], approve())
            .await;
        cast.expect("counts");
        b.approve("lee", approved[1], "one-security").await;
        let ask = VoteInput {
            profile: ProfileName::parse("two-security").expect("profile"),
            ..approve()
        };
        let begun = b
            .begin_vote_in_session(&sessions[0], waiting, ask)
            .await
            .expect("begun");
        let lee = Had {
            passkey,
            sessions,
            invitation,
            begun,
        };
        Self {
            b,
            triage,
            task,
            approved,
            waiting,
            lee,
        }
    }

    async fn ask(&self, account: &str) -> Result<TokenReply, Refusal> {
        let action = disable(account);
        // A start forgets evidence.
        let evidence = Some(self.b.svid(&self.triage));
        let asked = self.b.request_token_with_evidence(
            &self.triage,
            self.task,
            &action,
            300,
            account,
            evidence,
        );
        asked.await
    }

    /// The agent withdraws a request and asks again: people and keys that were added meanwhile count.
    async fn ask_anew(&self, n: usize) -> AccessRequestId {
        let method = "dipylon.v1.TaskService/CancelAccessRequest";
        let call = self.b.call(method, &self.triage.key, None, None);
        let cancelled = self
            .b
            .broker
            .cancel_access_request(&call, self.task, self.approved[n]);
        cancelled.await.expect("cancelled");
        self.ask_again(n).await.pending().access_request
    }

    async fn ask_again(&self, n: usize) -> Result<TokenReply, Refusal> {
        let account = [BY_PASSKEY, BY_KEY][n];
        let evidence = Some(self.b.svid(&self.triage));
        let action = disable(account);
        let key = format!("{account}-again");
        let (agent, task) = (&self.triage, self.task);
        let asked = self
            .b
            .request_token_with_evidence(agent, task, &action, 300, &key, evidence);
        asked.await
    }

    /// Nothing that lee had before counts.
    async fn assert_ended(&self, case: &str) {
        let b = &self.b;
        for session in &self.lee.sessions {
            let call = b.session_call(INBOX, session);
            let signed_in = b.broker.signed_in_user(&call);
            assert_eq!(
                signed_in.map(drop).map_err(|e| e.reason),
                Err(Reason::NotAuthenticated),
                "{case}"
            );
            let voted = b.begin_vote_in_session(session, self.waiting, deny()).await;
            assert_eq!(refused(voted), Reason::NotAuthenticated, "{case}");
        }
        let begun = &self.lee.begun;
        let assertion = self.lee.passkey.get(begun.challenge.as_bytes(), CONSOLE);
        let proof = VoteProof::Passkey(assertion);
        let cast = b
            .cast_vote_in_session(&self.lee.sessions[0], self.waiting, begun, proof)
            .await;
        assert_eq!(refused(cast), Reason::NotAuthenticated, "{case}");
        let enrolled = b
            .enrol_with(&self.lee.invitation, &PasskeyBehaviour::default())
            .await;
        let reason = enrolled.map(drop).map_err(|e| e.reason);
        assert_eq!(reason, Err(Reason::InvalidInvitation), "{case}");
        for account in [BY_PASSKEY, BY_KEY] {
            self.ask(account).await.pending();
        }
        for id in self.approved {
            let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "maria");
            let view = b.broker.view_of(&call, &id).expect("known");
            assert_eq!(view.status, AccessRequestStatus::Waiting, "{case}");
        }
    }

    /// Nor does lee sign in with the passkey from before.
    async fn assert_passkey_ended(&self, case: &str) {
        let signed_in = self.b.sign_in(&self.lee.passkey).await;
        assert_eq!(
            signed_in.map(drop).map_err(|e| e.reason),
            Err(Reason::NotAuthenticated),
            "{case}"
        );
    }

    async fn restart(self) -> Self {
        let before = self.b.broker.show().canonical_snapshot();
        let b = self.b.restart(FaultInjection::default()).await;
        assert_eq!(b.broker.show().canonical_snapshot(), before);
        Self { b, ..self }
    }
}

async fn comes_and_goes(how: Going, again: Coming, is_restarted: bool) {
    let case = format!("{how:?}, {again:?}, restarted: {is_restarted}");
    let mut world = World::new().await;
    let applied = world
        .b
        .apply_policy(going(&world.b.env, how))
        .await
        .expect("in force");
    let ended = "1 passkey, 2 sessions, 1 invitation end";
    let words = match how {
        Going::Dropped => format!("lee leaves: {ended}"),
        Going::RoleTaken => format!("lee loses the role approver: {ended}"),
    };
    assert_eq!(applied.people, [words], "{case}");
    world.assert_ended(&case).await;
    world.assert_passkey_ended(&case).await;
    let is_caller = |b: &TestBroker| {
        b.broker
            .authenticate_person(&b.person_call(INBOX, "lee"))
            .is_ok()
    };
    assert!(!is_caller(&world.b), "{case}");
    if is_restarted {
        world = world.restart().await;
        world.assert_ended(&case).await;
        world.assert_passkey_ended(&case).await;
        assert!(!is_caller(&world.b), "{case}");
    }
    let b = &world.b;
    let (_, before) = b.broker.show().position();
    let mut another_without_lee = b.env.without_person("lee");
    another_without_lee.insert("rules/30-more.cedar".to_owned(), "// More.\n".to_owned());
    // Nobody else returns, and nobody by another bundle.
    for (files, returning) in [
        (b.env.policy.clone(), vec!["lee", "maria"]),
        (b.env.policy.clone(), vec!["maria"]),
        (b.env.policy.clone(), vec!["lee", "zoe"]),
        (
            b.env
                .policy_with("rules/30-more.cedar", |_| "// More.\n".to_owned()),
            vec!["olga", "lee"],
        ),
        (another_without_lee, vec!["lee"]),
    ] {
        let applied = b.apply_returning(files, &returning).await;
        let refusal = applied.expect_err(&case);
        assert!(
            refusal.message.contains("does not return"),
            "{case}: {refusal}"
        );
        assert_eq!(
            refusal.reason,
            Reason::InvalidPolicyBundle,
            "{case}: {returning:?}"
        );
    }
    // A former person's key is nobody's to bring by the id alone.
    if how == Going::Dropped {
        let refusal = b.apply_policy(b.env.policy.clone()).await.expect_err(&case);
        assert_eq!(refusal.reason, Reason::InvalidPolicyBundle, "{case}");
        assert!(
            refusal.message.contains("--returning lee"),
            "{case}: {refusal}"
        );
    }
    assert_eq!(
        b.broker.show().position().1,
        before,
        "{case}: nothing half done"
    );

    let key = OwnKey::generate();
    let (files, returning): (_, &[&str]) = match (how, again) {
        (Going::Dropped, Coming::Anew) => (with_lees_new_key(&b.env, &key), &[]),
        (_, Coming::Returning) => (b.env.policy.clone(), &["lee"]),
        (Going::RoleTaken, Coming::Anew) => (b.env.policy.clone(), &[]),
    };
    let applied = b.apply_returning(files, returning).await.expect("in force");
    match (how, again) {
        (_, Coming::Returning) => {
            assert_eq!(
                applied.people[0], "lee returns: 1 passkey and registered keys count again",
                "{case}"
            )
        }
        (Going::Dropped, Coming::Anew) => {
            let words = applied.people.concat();
            assert!(
                words.starts_with("lee comes as a new person: "),
                "{case}: {words}"
            );
            assert!(applied.people[1].starts_with("lee gets "), "{case}");
            assert_eq!(applied.people.len(), 2);
        }
        (Going::RoleTaken, Coming::Anew) => {
            assert_eq!(applied.people, ["lee gets the role approver"], "{case}")
        }
    }
    for restarted in [false, true] {
        if restarted {
            if !is_restarted {
                break;
            }
            world = world.restart().await;
        }
        world.assert_ended(&case).await;
        if again == Coming::Anew {
            world.assert_passkey_ended(&case).await;
        }
    }
    let b = &world.b;
    let keys = b.broker.show().person(&person_id("lee"));
    let expected = match (how, again) {
        (_, Coming::Returning) => (1, 0),
        (Going::Dropped, Coming::Anew) => (0, 0),
        (Going::RoleTaken, Coming::Anew) => (0, 1),
    };
    assert_eq!((keys.passkeys.len(), keys.left.len()), expected, "{case}");
    // Lee, the same or another, votes again: with the passkey that returned, or with one of their own.
    let enrolled;
    let passkey = match again {
        Coming::Returning => &world.lee.passkey,
        Coming::Anew => {
            enrolled = b.enrol("lee").await;
            &enrolled
        }
    };
    let session = b.sign_in(passkey).await.expect("signed in");
    let cast = b
        .vote_in_session(&session, passkey, world.approved[0], approve())
        .await;
    assert_eq!(refused(cast), Reason::NotEligible, "{case}: opened before");
    let id = world.ask_anew(0).await;
    let cast = b.vote_in_session(&session, passkey, id, approve()).await;
    cast.expect("counts");
    world.ask_again(0).await.token();
    match (how, again) {
        (Going::Dropped, Coming::Anew) => {
            let vote = b
                .vote("lee", world.approved[1], "one-security", Verdict::Approve)
                .await;
            assert_eq!(
                refused(vote),
                Reason::NotAuthenticated,
                "{case}: the former person's key"
            );
            let call = b.call(INBOX, &key.key, None, None);
            b.broker
                .authenticate_person(&call)
                .expect("the new person's key");
            // It is dead also where a rollback lists it.
            let refusal = b.apply_returning(b.env.policy.clone(), &["lee"]).await;
            assert_eq!(refused(refusal), Reason::InvalidPolicyBundle, "{case}");
            let applied = b
                .apply_policy(b.env.policy.clone())
                .await
                .expect("in force");
            assert!(
                applied.warnings.concat().contains("is dead"),
                "{:?}",
                applied.warnings
            );
            let vote = b
                .vote("lee", world.approved[1], "one-security", Verdict::Approve)
                .await;
            assert_eq!(
                refused(vote),
                Reason::NotAuthenticated,
                "{case}: the former person's key"
            );
        }
        _ => {
            let id = world.ask_anew(1).await;
            b.approve("lee", id, "one-security").await;
            world.ask_again(1).await.token();
        }
    }
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn person_who_left_or_lost_a_role_is_another_unless_returning() {
    for how in [Going::Dropped, Going::RoleTaken] {
        for again in [Coming::Anew, Coming::Returning] {
            comes_and_goes(how, again, false).await;
            comes_and_goes(how, again, true).await;
        }
    }
}

/// A person who returns gets back what left, and nothing that was revoked meanwhile; who comes anew after it, nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_of_a_former_persons_keys_holds_for_ever() {
    let mut world = World::new().await;
    world
        .b
        .apply_policy(world.b.env.without_person("lee"))
        .await
        .expect("in force");
    let former = world.b.env.keys["lee"].thumbprint();
    let revoked = world.b.revoke_keys_of("lee", Some(former)).await;
    assert_eq!(revoked.expect("revoked"), 1);
    let applied = world
        .b
        .apply_returning(world.b.env.policy.clone(), &["lee"])
        .await;
    let applied = applied.expect("in force");
    assert_eq!(
        applied.people[0],
        "lee returns: 1 passkey and registered keys count again"
    );
    assert!(
        applied.warnings.concat().contains("is dead"),
        "{:?}",
        applied.warnings
    );
    for is_restarted in [false, true] {
        if is_restarted {
            world = world.restart().await;
        }
        let b = &world.b;
        let caller = b.broker.authenticate_person(&b.person_call(INBOX, "lee"));
        assert_eq!(refused(caller), Reason::NotAuthenticated);
        b.sign_in(&world.lee.passkey)
            .await
            .expect("the passkey returned");
        world.assert_ended("returned").await;
    }
    // All that is left.
    let b = &world.b;
    b.apply_policy(b.env.without_person("lee"))
        .await
        .expect("in force");
    assert_eq!(b.revoke_keys_of("lee", None).await.expect("revoked"), 1);
    let applied = b.apply_returning(b.env.policy.clone(), &["lee"]).await;
    assert_eq!(
        applied.expect("in force").people,
        [
            "lee returns: 0 passkeys and registered keys count again",
            "lee gets the role approver, the group security, 1 registered key",
        ]
    );
    world.assert_passkey_ended("revoked while away").await;
    b.check_invariants();
}

/// By the program: the answer says it, in text and in JSON; `--returning` names the person.
#[test]
fn policy_apply_says_who_comes_and_goes() {
    let site = CliDeployment::new();
    let running = site.serve();
    let code = running.code().expect("a code");
    let apply = |files: &Files, more: &[&str]| {
        site.write("policy/checks.toml", "");
        for (path, text) in files {
            site.write(&format!("policy/{path}"), text);
        }
        let base = [
            "policy", "apply", "policy", "--url", &site.url, "--key", "olga.pem",
        ];
        site.run(&[&base[..], more].concat())
    };
    let env = &site.env;
    let (done, out, error) = apply(&env.policy, &["--code", &code]);
    assert_eq!(done, 0, "{out}{error}");
    let (done, out, error) = apply(&env.without_person("lee"), &[]);
    assert_eq!(done, 0, "{out}{error}");
    assert!(
        out.contains("person  lee leaves: 0 passkeys, 0 sessions end\n"),
        "{out}"
    );
    let (done, out, error) = apply(&env.policy, &[]);
    assert_ne!(done, 0, "{out}");
    assert!(
        error.contains("INVALID_POLICY_BUNDLE") && error.contains("--returning lee"),
        "{error}"
    );
    let (done, out, error) = apply(&env.policy, &["--returning", "maria", "--returning", "lee"]);
    assert_ne!(done, 0, "{out}");
    assert!(error.contains("maria does not return"), "{error}");
    let (done, out, error) = apply(&env.policy, &["--json", "--returning", "lee"]);
    assert_eq!(done, 0, "{out}{error}");
    let out: Value = serde_json::from_str(&out).expect("JSON");
    let people = json!([
        "lee returns: 0 passkeys and registered keys count again",
        "lee gets the role approver, the group security, 1 registered key",
    ]);
    assert_eq!(out["people"], people);
    let (done, out, error) = apply(&env.without_role("lee"), &[]);
    assert_eq!(done, 0, "{out}{error}");
    assert!(
        out.contains("person  lee loses the role approver: 0 passkeys, 0 sessions end\n"),
        "{out}"
    );
    let key = OwnKey::generate();
    apply(&env.without_person("lee"), &[]);
    let (done, out, error) = apply(&with_lees_new_key(env, &key), &[]);
    assert_eq!(done, 0, "{out}{error}");
    assert!(out.contains("person  lee comes as a new person: "), "{out}");
    // The rollback to the first bundle: its key of lee is a dead one.
    let (done, out, error) = apply(&env.policy, &[]);
    assert_eq!(done, 0, "{out}{error}");
    assert!(
        out.contains("warning  ") && out.contains("is dead and does nothing"),
        "{out}"
    );
    drop(running);
    let (code, out, error) = site.run(&["audit", "verify", "--data-dir", "data"]);
    assert_eq!(code, 0, "{out}{error}");
}

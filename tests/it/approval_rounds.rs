//! Votes, enrolments and revocations of keys beside other calls, and what wakes a watch: each is decided again where something moved
//! between its last read and its append.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dipylon::broker::*;
use dipylon::journal::{BeforeAppend, FaultInjection};
use dipylon_sdk::client::{Endpoint, OperatorClient};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::support::agent_in_task::person_id;
use crate::support::passkey_votes::{ENROL, RP_ID, approve, pending_request};
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::transport_server::{TestServer, TransportSetup};
use crate::support::wait::in_time;
use crate::support::*;

const CAST: &str = "dipylon.v1.ApprovalService/CastVote";
const REVOKE: &str = "dipylon.v1.ApprovalService/RevokeApproverKeys";
const INVITE: &str = "dipylon.v1.ApprovalService/InviteApprover";
const REQUEST: &str = "dipylon.v1.TaskService/RequestToken";
const CONSUME: &str = "dipylon.v1.TokenService/ConsumeToken";
const NEUTRAL: &str = "@id(\"neutral\")\n@why(\"Changes nothing.\")\n\
    forbid (principal, action == Action::\"case.read\", resource)\n\
    when { resource == Case::\"INC-8841\" && context.ttl > duration(\"15m\") };\n";

type Order = Pin<Box<dyn Future<Output = ()> + Send>>;
type Change<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// What comes between the last read of the next call of a method and its append.
#[derive(Clone, Default)]
struct Between(Arc<Mutex<Option<(&'static str, Order)>>>);

impl Between {
    fn set(&self, method: &'static str, order: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock().expect("slot") = Some((method, Box::pin(order)));
    }

    fn is_spent(&self) -> bool {
        self.0.lock().expect("slot").is_none()
    }

    fn faults(&self) -> FaultInjection {
        let slot = self.0.clone();
        let hook: BeforeAppend = Arc::new(move |method| {
            let mut slot = slot.lock().expect("slot");
            match slot.take_if(|(of, _)| *of == method) {
                Some((_, order)) => order,
                None => Box::pin(std::future::ready(())),
            }
        });
        FaultInjection {
            before_append: Some(hook),
            ..FaultInjection::default()
        }
    }
}

/// A broker whose calls can be interrupted, with a second operator.
async fn broker(between: &Between) -> Arc<TestBroker> {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    people.push_str("\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n");
    // One operator alone changes the rules here.
    people.push_str("\n[changes]\nagree = \"nobody\"\n");
    env.add_key("otto");
    Arc::new(TestBroker::start_with(env, between.faults()).await)
}

async fn revoke_keys(b: &TestBroker, by: &str, of: &str) -> Result<usize, Refusal> {
    let call = b.person_call(REVOKE, by);
    b.broker
        .revoke_approver_keys(&call, person_id(of), Default::default())
        .await
        .map(|revoked| revoked.keys)
}

#[tokio::test]
async fn of_two_operators_who_revoke_each_other_one_succeeds() {
    let between = Between::default();
    let b = broker(&between).await;
    let other = b.clone();
    between.set(REVOKE, async move {
        assert_eq!(
            revoke_keys(&other, "otto", "olga").await.expect("revoked"),
            1
        );
    });
    let second = revoke_keys(&b, "olga", "otto").await;
    assert!(between.is_spent());
    assert_eq!(refused(second), Reason::NotPermitted);
    assert_eq!(b.broker.show().person(&person_id("otto")).revoked.len(), 0);
    b.check_invariants();
}

#[tokio::test]
async fn one_authenticator_is_enrolled_once() {
    let between = Between::default();
    let b = broker(&between).await;
    let (of_maria, of_lee) = (b.invite("maria").await, b.invite("lee").await);
    let begin = |code| b.broker.begin_enrolment(ENROL, code).expect("begins");
    let (marias, lees) = (begin(&of_maria), begin(&of_lee));
    let (key, of_marias) =
        SoftwareAuthenticator::create(RP_ID, CONSOLE, &marias.challenge, &marias.user);
    let of_lees = key.register_as(&lees.challenge, CONSOLE, &PasskeyBehaviour::default());
    let other = b.clone();
    between.set(ENROL, async move {
        let enrolled = other
            .broker
            .finish_enrolment(ENROL, &of_lee, &of_lees, "Phone")
            .await;
        assert_eq!(enrolled.expect("enrolled").person, person_id("lee"));
    });
    let second = b
        .broker
        .finish_enrolment(ENROL, &of_maria, &of_marias, "Phone")
        .await;
    assert!(between.is_spent());
    let refusal = second.expect_err("enrolled before");
    assert_eq!(refusal.reason, Reason::InvalidPasskeyAssertion);
    assert!(
        refusal.message.contains("had a holder already"),
        "{refusal}"
    );
    let passkeys = |name| b.broker.show().person(&person_id(name)).passkeys.len();
    assert_eq!((passkeys("maria"), passkeys("lee")), (0, 1));
    b.check_invariants();
}

/// An invitation is an order of the operator who gave it, until it is used: it ends with the operator's key and role.
#[tokio::test]
async fn invitation_rests_on_the_living_key_of_its_operator() {
    let invite = async |b: &TestBroker, of: &str| {
        let call = b.person_call(INVITE, "otto");
        let invited = b.broker.invite_approver(&call, person_id(of)).await;
        invited.expect("invited").code
    };
    for case in ["key revoked", "role removed", "revoked between"] {
        let between = Between::default();
        let b = broker(&between).await;
        let code = invite(&b, "lee").await;
        let begun = b.broker.begin_enrolment(ENROL, &code).expect("begins");
        let (_, made) =
            SoftwareAuthenticator::create(RP_ID, CONSOLE, &begun.challenge, &begun.user);
        let other = b.clone();
        match case {
            "key revoked" => {
                let revoked = revoke_keys(&b, "olga", "otto").await;
                assert_eq!(revoked.expect("revoked"), 1);
            }
            "role removed" => {
                let files = b.env.policy_with("people.toml", |text| {
                    let of_otto = text.find("id = \"otto\"").expect("otto");
                    let (before, after) = text.split_at(of_otto);
                    let after = after.replacen("\"operator\"", "\"approver\"", 1);
                    format!("{before}{after}")
                });
                b.apply_policy(files).await.expect("applied");
            }
            _ => between.set(ENROL, async move {
                let revoked = revoke_keys(&other, "olga", "otto").await;
                assert_eq!(revoked.expect("revoked"), 1);
            }),
        }
        let enrolled = b
            .broker
            .finish_enrolment(ENROL, &code, &made, "Phone")
            .await;
        assert!(between.is_spent(), "{case}");
        assert_eq!(refused(enrolled), Reason::InvalidInvitation, "{case}");
        let begun = b.broker.begin_enrolment(ENROL, &code);
        assert_eq!(refused(begun), Reason::InvalidInvitation, "{case}");
        assert!(
            b.broker
                .show()
                .person(&person_id("lee"))
                .passkeys
                .is_empty()
        );
        // Of an operator with a living key it is good.
        b.enrol("lee").await;
        b.check_invariants();
    }
}

/// Invitations, of the operator who orders and of the person whom the order is about, move nothing that an order rests on.
#[tokio::test]
async fn invitations_delay_no_order() {
    let between = Between::default();
    let b = broker(&between).await;
    let (other, again) = (b.clone(), between.clone());
    between.set(REVOKE, async move {
        for of in ["olga", "otto"] {
            let call = other.person_call(INVITE, "otto");
            let invited = other.broker.invite_approver(&call, person_id(of)).await;
            invited.expect("invited");
        }
        again.set(REVOKE, async {});
    });
    let revoked = revoke_keys(&b, "olga", "otto").await;
    assert_eq!(revoked.expect("revoked"), 1);
    assert!(!between.is_spent(), "decided once");
    let invitation = |of| b.broker.show().invitation(&person_id(of));
    assert!(invitation("otto").is_none(), "withdrawn with the keys");
    assert!(invitation("olga").is_some());
    b.check_invariants();
}

/// The key of a task is the agent's: nobody enrols it as a passkey, and the task goes on.
#[tokio::test]
async fn task_key_becomes_no_passkey() {
    let between = Between::default();
    let b = broker(&between).await;
    let (key, pkcs8) = SigningKey::generate().expect("key");
    let triage = TestAgent {
        key: Arc::new(key),
        ..b.agent("triage")
    };
    let task = b.open_task(&triage).await;
    let action = read_case();
    let ask = |key| b.request_token(&triage, task, &action, 300, key);
    ask("first").await.token();
    let code = b.invite("lee").await;
    let other = b.clone();
    between.set(REQUEST, async move {
        let begun = other.broker.begin_enrolment(ENROL, &code).expect("begins");
        let passkey = SoftwareAuthenticator::of_key(&pkcs8, RP_ID, &begun.user);
        let made = passkey.register_as(&begun.challenge, CONSOLE, &PasskeyBehaviour::default());
        let enrolled = other.broker.finish_enrolment(ENROL, &code, &made, "Phone");
        assert_eq!(refused(enrolled.await), Reason::InvalidPasskeyAssertion);
    });
    for key in ["second", "first", "third"] {
        ask(key).await.token();
        assert!(between.is_spent());
    }
    b.check_invariants();
}

/// A service whose evidence expires while its call is decided consumes nothing.
#[tokio::test]
async fn expired_evidence_of_a_service_consumes_nothing() {
    let between = Between::default();
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    let id = "spiffe://soc.example/idp";
    *people = people.replacen(
        "id = \"idp\"\n",
        &format!("id = \"idp\"\nspiffe_id = \"{id}\"\n"),
        1,
    );
    let b = Arc::new(TestBroker::start_with(env, between.faults()).await);
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let action = disable("ann");
    let ask = || b.request_token(&triage, task, &action, 300, "r-1");
    let request = ask().await.pending().access_request;
    b.approve("maria", request, "one-security").await;
    let token = ask().await.token().token;
    let call = || CallContext {
        proof: None,
        bearer: Some(b.env.svid(id, b.now(), 60)),
        ..b.person_call(CONSUME, "idp")
    };
    let other = b.clone();
    between.set(CONSUME, async move {
        let files = other
            .env
            .policy_with("rules/30-more.cedar", |_| NEUTRAL.to_owned());
        other.apply_policy(files).await.expect("applied");
        other.manual_clock.advance_millis(60_000);
    });
    let use_id = UseId::parse("use-1").expect("id");
    let expired = b.broker.consume_token(&call(), &token, &use_id).await;
    assert!(between.is_spent());
    assert_eq!(refused(expired), Reason::NotPermitted);
    let consumed = b.broker.consume_token(&call(), &token, &use_id).await;
    assert_eq!(consumed.expect("consumed").outcome, UseOutcome::Spent);
    b.check_invariants();
}

/// Assertions of a passkey, whose counter is above zero, in votes that are decided twice: because something moved, and because the
/// first call was dropped. The passkey signs another vote meanwhile.
#[tokio::test]
async fn passkey_vote_that_is_decided_again_is_no_copy() {
    for is_dropped in [false, true] {
        let between = Between::default();
        let b = broker(&between).await;
        let triage = b.agent("triage");
        let key = b.enrol("maria").await;
        let session = Arc::new(b.sign_in(&key).await.expect("signed in"));
        let mut signed = Vec::new();
        for task in ["first", "second"] {
            let opened = b.try_open_task(&triage, "work", task).await;
            let (task, action) = (opened.expect("opens").task.task, disable("ann"));
            let asked = b.request_token(&triage, task, &action, 900, "r-1");
            let id = asked.await.pending().access_request;
            let begun = b.begin_vote_in_session(&session, id, approve()).await;
            let begun = begun.expect("begins");
            let made = key.get(begun.challenge.as_bytes(), CONSOLE);
            signed.push((id, begun, made));
        }
        let (later_id, later, later_made) = signed.pop().expect("two");
        let (id, begun, made) = signed.pop().expect("two");
        let cast = || {
            let proof = VoteProof::Passkey(made.clone());
            b.cast_vote_in_session(&session, id, &begun, proof)
        };
        let (other, of_other) = (b.clone(), session.clone());
        let meanwhile = async move {
            let proof = VoteProof::Passkey(later_made);
            let cast = other.cast_vote_in_session(&of_other, later_id, &later, proof);
            cast.await.expect("the later vote counts");
            let files = other
                .env
                .policy_with("rules/30-more.cedar", |_| NEUTRAL.to_owned());
            other.apply_policy(files).await.expect("applied");
        };
        let view = if is_dropped {
            let (reached, dropped) = tokio::sync::oneshot::channel();
            between.set(CAST, async move {
                let _gone = reached.send(());
                std::future::pending().await
            });
            tokio::select! {
                _ = cast() => panic!("the call waits"),
                reached = dropped => reached.expect("reached"),
            }
            meanwhile.await;
            cast().await
        } else {
            between.set(CAST, meanwhile);
            cast().await
        };
        assert!(between.is_spent());
        let view = view.expect("the vote counts");
        assert_eq!(view.status, AccessRequestStatus::Approved);
        let maria = b.broker.show().person(&person_id("maria"));
        assert_eq!((maria.passkeys.len(), maria.revoked.len()), (1, 0));
        b.check_invariants();
    }
}

/// A vote that the journal did not take can be sent again as it was signed; one that was refused for good cannot.
#[tokio::test]
async fn vote_that_was_not_taken_keeps_its_statement() {
    let full = Arc::new(AtomicBool::new(false));
    let faults = FaultInjection {
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let action = disable("ann");
    let asked = b.request_token(&triage, task, &action, 900, "r-1");
    let id = asked.await.pending().access_request;
    let begin = || b.begin_vote("maria", id, "one-security", Verdict::Approve);
    let (signed, wrong) = (
        begin().await.expect("begins"),
        begin().await.expect("begins"),
    );

    full.store(true, Ordering::SeqCst);
    let not_taken = b.cast_vote("maria", id, &signed.statement).await;
    assert_eq!(refused(not_taken), Reason::JournalUnavailable);
    full.store(false, Ordering::SeqCst);

    let call = b.person_call(CAST, "maria");
    let proof = VoteProof::Signature(vec![0; 64]);
    let cast = b.broker.cast_vote(&call, id, &wrong.statement, proof).await;
    assert_eq!(refused(cast), Reason::InvalidSignature);
    let again = b.cast_vote("maria", id, &wrong.statement).await;
    assert_eq!(refused(again), Reason::VoteStatementExpired);

    let view = b.cast_vote("maria", id, &signed.statement).await;
    assert_eq!(
        view.expect("the vote counts").status,
        AccessRequestStatus::Approved
    );
    b.check_invariants();
}

/// A watch that waits reports each change at once, not at its next heartbeat.
#[tokio::test]
async fn watch_wakes_for_what_its_status_rests_on() {
    let (b, triage, task, id) = pending_request(TestEnvironment::new()).await;
    b.approve("maria", id, "one-security").await;
    let call = b.call(
        "dipylon.v1.TaskService/WatchAccessRequest",
        &triage.key,
        None,
        None,
    );
    let mut watch = b
        .broker
        .watch_access_request(&call, task, id, None)
        .expect("watches");
    let status = |event: Option<AccessRequestEvent>| match event {
        Some(AccessRequestEvent::StatusChanged { view, .. }) => view.status,
        other => panic!("no change: {other:?}"),
    };
    assert_eq!(
        status(watch.next(&b.broker).await),
        AccessRequestStatus::Approved
    );
    let of_maria = b.env.policy_with("agents.toml", |text| {
        text.replacen("owner = \"dana\"", "owner = \"maria\"", 1)
    });
    let changes: [(&str, Change<'_>, AccessRequestStatus); 4] = [
        (
            "rules",
            Box::pin(async { drop(b.apply_policy(of_maria).await.expect("applied")) }),
            AccessRequestStatus::Waiting,
        ),
        (
            "rules, rolled back",
            Box::pin(async {
                drop(b.apply_policy(b.env.policy.clone()).await.expect("applied"));
                // The vote is for ten minutes: two seconds are left, which the paused clock does not wait for.
                b.manual_clock.advance_millis(598_000);
            }),
            AccessRequestStatus::Approved,
        ),
        (
            "the vote lapses",
            Box::pin(async {
                tokio::time::pause();
                b.manual_clock.advance_millis(2_000);
                tokio::time::advance(Duration::from_secs(2)).await;
                tokio::time::resume();
            }),
            AccessRequestStatus::Waiting,
        ),
        (
            "a freeze of the owner",
            Box::pin(async { b.freeze("owner/dana").await.map(drop).expect("frozen") }),
            AccessRequestStatus::Ended,
        ),
    ];
    for (name, change, expected) in changes {
        // The watch is polled first: it waits when the change comes.
        let (event, ()) = tokio::join!(watch.next(&b.broker), change);
        assert_eq!(status(event), expected, "{name}");
    }
    assert!(watch.next(&b.broker).await.is_none());
}

/// A service keeps its id in the bundle, but not the key that its watch began with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retired_key_ends_the_watch_of_its_validator() {
    let site = TestServer::start(TransportSetup::default()).await;
    let mut stream = site.watch_revocations().await;
    assert!(stream.message().await.expect("streams").is_some());
    let endpoint = Endpoint::connect(&site.url).expect("endpoint");
    let olga = OperatorClient::new(endpoint, Arc::new(site.env.key_of("olga")));
    let files = with_other_key(&site.env.policy, "cases");
    olga.apply_policy_bundle(&files).await.expect("applied");
    let ended = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return status,
            }
        }
    };
    let status = in_time("the end of the watch", ended).await;
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
}

/// A policy bundle with another key of one person or service.
fn with_other_key(policy: &BTreeMap<String, String>, of: &str) -> BTreeMap<String, String> {
    let mut files = policy.clone();
    let people = files.get_mut("people.toml").expect("people");
    let jwk = SigningKey::generate().expect("key").0.public().to_jwk();
    let old = format!("\n[[key]]\nof = \"{of}\"\n");
    let (before, after) = people.split_once(&old).expect("a key");
    let rest = after.split_once('\n').map_or("", |(_jwk, rest)| rest);
    *people = format!(
        "{before}{old}jwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }}\n{rest}",
        jwk["x"], jwk["y"]
    );
    files
}

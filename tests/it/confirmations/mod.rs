//! Passkeys are confirmed by another hand than their inviter's, and people and keys that were added count for later access requests: at
//! the first vote, at the token, after a restart and in the audit.

mod additions;
mod stolen_keys;

use dipylon::audit::{AuditError, GrantError, VoteError};
use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::audit_votes::journal_copy::JournalCopy;
use crate::support::agent_in_task::person_id;
use crate::support::passkey_votes::{CONFIRM, approve};
use crate::support::software_authenticator::SoftwareAuthenticator;
use crate::support::*;

/// Two approvers without a registered key, and a second operator; cara's account is disabled by two people, with medium risk.
fn environment() -> TestEnvironment {
    extended(TestEnvironment::with_high_risk())
}

/// The same where every profile takes registered keys, since no action is of high risk.
fn environment_of_keys() -> TestEnvironment {
    extended(TestEnvironment::new())
}

fn extended(mut env: TestEnvironment) -> TestEnvironment {
    let people = env.policy.get_mut("people.toml").expect("people");
    for (id, groups, roles) in [
        ("yan", "\"security\"", "approver"),
        ("zoe", "\"security\"", "approver"),
        ("otto", "", "operator"),
    ] {
        people.push_str(&format!(
            "\n[[person]]\nid = \"{id}\"\nname = \"{id}\"\ngroups = [{groups}]\nroles = [\"{roles}\"]\n"
        ));
    }
    // Bundles are applied here for what they say of keys.
    people.push_str("\n[changes]\nagree = \"nobody\"\n");
    env.add_key("otto");
    let rules = env.policy.get_mut("rules/20-guardrails.cedar");
    rules.expect("rules").push_str(
        "\n@id(\"cara-needs-two\") @why(\"For this test.\") @step_up(\"two-security\")\n\
         forbid (principal, action == Action::\"account.disable\", resource == Account::\"cara\")\n\
         unless { context.approvals.contains(StepUp::\"two-security\") };\n",
    );
    env
}

/// A broker with an agent in a task.
struct World {
    b: TestBroker,
    triage: TestAgent,
    task: TaskId,
}

/// A person with a passkey, signed in.
struct Voter {
    name: &'static str,
    passkey: SoftwareAuthenticator,
    session: Session,
}

/// An action of high risk, and one of medium risk; each needs two people.
const HIGH: &str = "isolate";
const MEDIUM: &str = "disable";
const TWO: &str = "two-security";

impl World {
    async fn new(env: TestEnvironment) -> Self {
        let b = TestBroker::start_with(env, FaultInjection::default()).await;
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        Self { b, triage, task }
    }

    /// The same where maria and lee vote by passkey.
    async fn of_passkeys() -> Self {
        let world = Self::new(environment()).await;
        world.b.enrol_voters(&["maria", "lee"]).await;
        world
    }

    async fn ask(&self, risk: &str, key: &str) -> Result<TokenReply, Refusal> {
        let action = match risk {
            HIGH => action("host.isolate", "Host", "web-1", IDP, &[]),
            _ => disable("cara"),
        };
        let evidence = Some(self.b.svid(&self.triage));
        let (agent, task) = (&self.triage, self.task);
        let asked = self
            .b
            .request_token_with_evidence(agent, task, &action, 300, key, evidence);
        asked.await
    }

    async fn request(&self, risk: &str, key: &str) -> AccessRequestId {
        self.ask(risk, key).await.pending().access_request
    }

    async fn enrol(&self, name: &'static str) -> Voter {
        let passkey = self.b.enrol_unconfirmed(name).await;
        let session = self.b.sign_in(&passkey).await.expect("signed in");
        Voter {
            name,
            passkey,
            session,
        }
    }

    async fn vote(&self, voter: &Voter, id: AccessRequestId) -> Result<AccessView, Refusal> {
        let ask = VoteInput {
            profile: ProfileName::parse(TWO).expect("profile"),
            ..approve()
        };
        let (session, passkey) = (&voter.session, &voter.passkey);
        self.b.vote_in_session(session, passkey, id, ask).await
    }

    /// The vote is refused with these words when it is begun.
    async fn assert_not_eligible(&self, voter: &Voter, id: AccessRequestId, why: &str) {
        let refusal = self.vote(voter, id).await.expect_err(why);
        assert_eq!(refusal.reason, Reason::NotEligible, "{why}");
        assert!(refusal.message.contains(why), "{why}: {}", refusal.message);
    }

    async fn confirm(&self, by: &str, voter: &Voter) {
        let key = self.b.newest_passkey(voter.name);
        let confirmed = self.b.confirm(by, voter.name, key).await;
        confirmed.expect("confirmed");
    }

    /// The agent withdraws its request.
    async fn cancel(&self, id: AccessRequestId) {
        let method = "dipylon.v1.TaskService/CancelAccessRequest";
        let call = self.b.call(method, &self.triage.key, None, None);
        let cancelled = self.b.broker.cancel_access_request(&call, self.task, id);
        cancelled.await.expect("cancelled");
    }

    fn counted(&self, id: AccessRequestId) -> Vec<String> {
        let call = self
            .b
            .person_call("dipylon.v1.ApprovalService/GetCard", "maria");
        let view = self.b.broker.view_of(&call, &id).expect("known");
        let names = view.needs[0].approvers.keys().map(ToString::to_string);
        names.collect()
    }

    async fn restart(self) -> Self {
        let before = self.b.broker.show().canonical_snapshot();
        let b = self.b.restart(FaultInjection::default()).await;
        assert_eq!(b.broker.show().canonical_snapshot(), before);
        Self { b, ..self }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_operator_alone_meets_no_quorum_at_high_risk() {
    let mut world = World::of_passkeys().await;
    let (yan, zoe) = (world.enrol("yan").await, world.enrol("zoe").await);
    let id = world.request(HIGH, "r-1").await;
    for voter in [&yan, &zoe] {
        world
            .assert_not_eligible(voter, id, "the passkey is not confirmed: read its code out")
            .await;
    }
    world = world.restart().await;
    let (yan, zoe) = (
        world.sign_in_again(yan).await,
        world.sign_in_again(zoe).await,
    );
    world
        .assert_not_eligible(&yan, id, "is not confirmed")
        .await;
    world.confirm("maria", &yan).await;
    world.vote(&yan, id).await.expect("counts");
    world
        .assert_not_eligible(&zoe, id, "is not confirmed")
        .await;
    world.ask(HIGH, "r-1").await.pending();
    // A passkey that another confirmed confirms.
    let call = world.b.session_call(CONFIRM, &yan.session);
    let key = world.b.newest_passkey("zoe");
    let confirmed = world.b.broker.confirm_passkey(&call, person_id("zoe"), key);
    confirmed.await.expect("confirmed");
    world.vote(&zoe, id).await.expect("counts");
    assert_eq!(world.counted(id), ["yan", "zoe"]);
    world = world.restart().await;
    world.ask(HIGH, "r-1").await.token();
    world.b.check_invariants();
}

impl World {
    /// A start forgets sessions.
    async fn sign_in_again(&self, voter: Voter) -> Voter {
        let session = self.b.sign_in(&voter.passkey).await.expect("signed in");
        Voter { session, ..voter }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unconfirmed_passkeys_of_one_inviter_are_one_hand_at_medium_risk() {
    let world = World::new(environment_of_keys()).await;
    let (yan, zoe) = (world.enrol("yan").await, world.enrol("zoe").await);
    let id = world.request(MEDIUM, "r-1").await;
    world.vote(&yan, id).await.expect("counts");
    let why = "counts as its inviter's hand, which has voted";
    world.assert_not_eligible(&zoe, id, why).await;
    assert_eq!(world.counted(id), ["yan"]);
    world.ask(MEDIUM, "r-1").await.pending();
    world.b.approve("maria", id, TWO).await;
    world.ask(MEDIUM, "r-1").await.token();
    // Confirmed, both count.
    let id = world.request(MEDIUM, "r-2").await;
    world.vote(&yan, id).await.expect("counts");
    world.confirm("lee", &zoe).await;
    world.vote(&zoe, id).await.expect("counts");
    assert_eq!(world.counted(id), ["yan", "zoe"]);
    world.ask(MEDIUM, "r-2").await.token();
    world.b.check_invariants();
}

/// The inviter's own vote takes their hand, before and after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inviter_who_votes_has_one_hand() {
    let mut env = environment_of_keys();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace(
        "name = \"Olga Okafor\"\n",
        "name = \"Olga Okafor\"\ngroups = [\"security\"]\n",
    );
    *people = people.replace(
        "roles = [\"operator\"]            #",
        "roles = [\"operator\", \"approver\"] #",
    );
    let world = World::new(env).await;
    let yan = world.enrol("yan").await;
    let id = world.request(MEDIUM, "r-1").await;
    world.vote(&yan, id).await.expect("counts");
    world.b.approve("olga", id, TWO).await;
    assert_eq!(world.counted(id), ["olga"], "yan's vote was olga's hand");
    world.ask(MEDIUM, "r-1").await.pending();
    world.confirm("maria", &yan).await;
    assert_eq!(world.counted(id), ["olga", "yan"]);
    world.ask(MEDIUM, "r-1").await.token();
    // The other way round.
    let zoe = world.enrol("zoe").await;
    let id = world.request(MEDIUM, "r-2").await;
    world.b.approve("olga", id, TWO).await;
    world.assert_not_eligible(&zoe, id, "which has voted").await;
    world.b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unconfirmed_passkey_does_not_count_where_its_inviter_may_not_vote() {
    let mut env = environment_of_keys();
    let agents = env.policy.get_mut("agents.toml").expect("agents");
    *agents = agents.replace("owner = \"dana\"", "owner = \"olga\"");
    let world = World::new(env).await;
    let yan = world.enrol("yan").await;
    let id = world.request(MEDIUM, "r-1").await;
    let why = "the inviter may not vote";
    world.assert_not_eligible(&yan, id, why).await;
    world.confirm("maria", &yan).await;
    world.vote(&yan, id).await.expect("counts");
    world.b.check_invariants();
}

/// Whoever owns the agent makes nobody's passkey count for what it has asked by confirming it; for later requests it counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owner_confirms_no_voter_for_a_waiting_request() {
    let mut world = World::of_passkeys().await;
    let yan = world.enrol("yan").await;
    let id = world.request(HIGH, "r-1").await;
    world.confirm("dana", &yan).await;
    world
        .assert_not_eligible(&yan, id, "is not confirmed")
        .await;
    world.cancel(id).await;
    let later = world.request(HIGH, "r-2").await;
    world.vote(&yan, later).await.expect("counts");
    world = world.restart().await;
    assert_eq!(world.counted(later), ["yan"]);
    world.b.check_invariants();
}

/// A vote by the inviter's own hand would take the place of the one that a passkey on their invitation gave: not where another profile
/// then lacks people.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_vote_takes_none_from_a_profile_that_needs_it() {
    let mut env = environment_of_keys();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people
        .replace(
            "name = \"Olga Okafor\"\n",
            "name = \"Olga Okafor\"\ngroups = [\"second\"]\n",
        )
        .replace(
            "roles = [\"operator\"]            #",
            "roles = [\"operator\", \"approver\"] #",
        )
        .replace(
            "name = \"yan\"\ngroups = [",
            "name = \"yan\"\ngroups = [\"first\", ",
        )
        .replace(
            "name = \"Maria Moreau\"\ngroups = [",
            "name = \"Maria Moreau\"\ngroups = [\"second\", ",
        );
    let mut rules = String::new();
    for name in ["first", "second"] {
        people.push_str(&format!(
            "\n[profile.{name}]\ngroup = \"{name}\"\nquorum = 1\nwait = \"15m\"\ngood_for = \"5m\"\nmethod = \"key\"\n"
        ));
        rules.push_str(&format!(
            "\n@id(\"case-{name}\") @why(\"For this test.\") @step_up(\"{name}\")\n\
             forbid (principal, action == Action::\"case.read\", resource)\n\
             unless {{ context.approvals.contains(StepUp::\"{name}\") }};\n",
        ));
    }
    env.policy.insert("rules/90-cases.cedar".to_owned(), rules);
    let world = World::new(env).await;
    let yan = world.enrol("yan").await;
    let b = &world.b;
    let ask = async || {
        b.request_token(&world.triage, world.task, &read_case(), 300, "r-1")
            .await
    };
    let id = ask().await.pending().access_request;
    let vote = VoteInput {
        profile: ProfileName::parse("first").expect("profile"),
        ..approve()
    };
    let (session, passkey) = (&yan.session, &yan.passkey);
    let voted = b.vote_in_session(session, passkey, id, vote).await;
    voted.expect("counts as olga's hand");
    let own = b.vote("olga", id, "second", Verdict::Approve).await;
    let refusal = own.expect_err("yan's would no longer count");
    assert_eq!(refusal.reason, Reason::NotEligible);
    let why = "too few people would be left";
    assert!(refusal.message.contains(why), "{}", refusal.message);
    b.approve("maria", id, "second").await;
    ask().await.token();
    b.check_invariants();
}

/// `confirm_at_or_above` moves the line, and asks votes on record anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundle_says_from_which_risk_on() {
    let world = World::new(environment_of_keys()).await;
    let yan = world.enrol("yan").await;
    let id = world.request(MEDIUM, "r-1").await;
    world.vote(&yan, id).await.expect("counts");
    assert_eq!(world.counted(id), ["yan"]);
    let with = |line: &str| {
        let own = format!("{NO_LIMITS}{line}\n");
        world
            .b
            .env
            .policy_with("people.toml", |text| text.replace(NO_LIMITS, &own))
    };
    for (line, counted) in [
        ("confirm_at_or_above = \"medium\"", &[][..]),
        ("confirm_at_or_above = \"high\"", &["yan"][..]),
        ("confirm_at_or_above = \"low\"", &[]),
    ] {
        world.b.apply_policy(with(line)).await.expect("in force");
        assert_eq!(world.counted(id), counted, "{line}");
    }
    let refusal = world
        .b
        .apply_policy(with("confirm_at_or_above = \"none\""))
        .await;
    let refusal = refusal.expect_err("unknown");
    assert_eq!(refusal.reason, Reason::InvalidPolicyBundle);
    assert!(
        refusal.message.contains("confirm_at_or_above") && refusal.message.contains("\"high\""),
        "{}",
        refusal.message
    );
    world.b.check_invariants();
}

/// No request waits for people whose passkeys cannot count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_that_only_unconfirmed_passkeys_could_decide_is_denied() {
    let mut env = environment();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("method = \"key\"", "method = \"passkey\"");
    let world = World::new(env).await;
    let yan = world.enrol("yan").await;
    let _zoe = world.enrol("zoe").await;
    for risk in [HIGH, MEDIUM] {
        let denied = world.ask(risk, risk).await.denied();
        assert_eq!(denied.why, DeniedReason::NoEligibleApprover, "{risk}");
    }
    world.confirm("maria", &yan).await;
    assert_eq!(
        world.ask(HIGH, "again").await.denied().why,
        DeniedReason::NoEligibleApprover
    );
    // Yan's own hand, and olga's by zoe's passkey.
    world.request(MEDIUM, "again").await;
    world.b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmation_is_by_another_hand() {
    let world = World::new(environment()).await;
    let b = &world.b;
    let (yan, zoe) = (world.enrol("yan").await, world.enrol("zoe").await);
    let (yans, zoes) = (b.newest_passkey("yan"), b.newest_passkey("zoe"));
    let dead = {
        let _old = b.enrol_unconfirmed("lee").await;
        let dead = b.newest_passkey("lee");
        b.revoke_keys_of("lee", Some(dead)).await.expect("revoked");
        dead
    };
    let unknown = Thumbprint(Digest::sha256(b"unknown"));
    let by = |name: &str| b.person_call(CONFIRM, name);
    let in_session = |voter: &Voter| b.session_call(CONFIRM, &voter.session);
    let refusals = [
        (
            "the inviter",
            by("olga"),
            "yan",
            yans,
            Reason::NotAnotherHand,
            "invitation of olga",
        ),
        (
            "the person",
            in_session(&yan),
            "yan",
            yans,
            Reason::NotAnotherHand,
            "yan's own",
        ),
        (
            "an unconfirmed passkey",
            in_session(&zoe),
            "yan",
            yans,
            Reason::NotAnotherHand,
            "not confirmed itself",
        ),
        (
            "a service",
            by("idp"),
            "yan",
            yans,
            Reason::NotPermitted,
            "",
        ),
        (
            "an unknown key",
            by("maria"),
            "yan",
            unknown,
            Reason::NotFound,
            "no passkey",
        ),
        (
            "another person's key",
            by("maria"),
            "yan",
            zoes,
            Reason::NotFound,
            "no passkey",
        ),
        (
            "a registered key",
            by("maria"),
            "lee",
            b.env.keys["lee"].thumbprint(),
            Reason::NotFound,
            "no passkey",
        ),
        (
            "a dead key",
            by("maria"),
            "lee",
            dead,
            Reason::NotConfirmable,
            "revoked",
        ),
        (
            "an unknown person",
            by("maria"),
            "nobody",
            yans,
            Reason::NotFound,
            "no person nobody",
        ),
    ];
    let position = || b.broker.show().position();
    let before = position();
    for (case, call, person, key, reason, words) in refusals {
        let refusal = b
            .broker
            .confirm_passkey(&call, person_id(person), key)
            .await;
        let refusal = refusal.expect_err(case);
        assert_eq!(refusal.reason, reason, "{case}: {}", refusal.message);
        assert!(
            refusal.message.contains(words),
            "{case}: {}",
            refusal.message
        );
    }
    assert_eq!(position(), before, "nothing half done");
    world.confirm("maria", &yan).await;
    for name in ["maria", "lee", "olga"] {
        let refusal = b.confirm(name, "yan", yans).await.expect_err("twice");
        assert_eq!(refusal.reason, Reason::NotConfirmable, "{name}");
        assert!(refusal.message.contains("by maria"), "{}", refusal.message);
    }
    // Shown to people: the list, and the card of one who voted.
    let call = b.person_call("dipylon.v1.ApprovalService/ListApprovers", "olga");
    let people = b.broker.list_approvers(&call).expect("listed");
    let passkey = |name: &str| {
        let person = people.iter().find(|person| person.id.as_str() == name);
        person.expect("listed").passkeys.first().expect("a passkey")
    };
    assert_eq!(passkey("yan").invited_by, person_id("olga"));
    let by = passkey("yan")
        .confirmation
        .as_ref()
        .map(|known| known.by.to_string());
    assert_eq!(by.as_deref(), Some("maria"));
    assert_eq!(passkey("zoe").confirmation, None);
    let others: Vec<&str> = passkey("zoe")
        .confirmers
        .iter()
        .map(PersonId::as_str)
        .collect();
    assert_eq!(others, ["dana", "lee", "maria", "otto", "yan"]);
    b.manual_clock.advance_millis(240_000);
    let id = world.request(MEDIUM, "r-1").await;
    world.vote(&zoe, id).await.expect("counts");
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "maria");
    let card = b.broker.card(&call, &id).expect("a card");
    let note = format!(
        "the passkey {zoes} of zoe was enrolled 4m before this request, on an invitation of olga, not confirmed"
    );
    assert_eq!(card.needs[0].key_notes, [note.as_str()]);
    let text = dipylon_sdk::card::render_terminal(
        &card,
        b.now(),
        400,
        dipylon_sdk::card::LongValues::Full,
    );
    assert!(
        text.contains("on an invitation of olga, not confirmed"),
        "{text}"
    );
    b.check_invariants();
}

/// A journal in which a vote by an unconfirmed passkey counted, and one in which a grant rests on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_finds_an_unconfirmed_vote_that_counted() {
    let world = World::of_passkeys().await;
    let yan = world.enrol("yan").await;
    world.confirm("maria", &yan).await;
    let id = world.request(HIGH, "r-1").await;
    world.vote(&yan, id).await.expect("counts");
    world.b.approve("lee", id, TWO).await;
    world.ask(HIGH, "r-1").await.token();
    let whole = JournalCopy::read(&world.b);
    assert_eq!(whole.votes().expect("whole").by_passkey, 2);
    let confirmed = whole
        .find(|event| matches!(event, Event::PasskeyConfirmed(f) if f.person.as_str() == "yan"));
    let issued = whole.find(|event| matches!(event, Event::TokenIssued(_)));
    let forged = |change: &dyn Fn(&mut JournalCopy)| {
        let mut copy = whole.clone();
        change(&mut copy);
        copy.votes().expect_err("found")
    };
    let found = forged(&|copy| drop(copy.entries.remove(confirmed)));
    assert!(
        matches!(&found, AuditError::Vote { why: VoteError::Ineligible(why), .. } if why.contains("not confirmed")),
        "{found}"
    );
    // Enrolled after the access request was opened.
    let found = forged(&|copy| {
        let opened = copy.find(|event| matches!(event, Event::AccessRequestOpened(_)));
        let entry = copy.entries.remove(opened);
        let enrolled = copy.find(
            |event| matches!(event, Event::ApproverEnrolled(f) if f.person.as_str() == "yan"),
        );
        copy.entries.insert(enrolled, entry);
        for (index, entry) in copy.entries.iter_mut().enumerate() {
            entry.index = u64::try_from(index).expect("small");
        }
    });
    assert!(
        matches!(&found, AuditError::Vote { why: VoteError::Ineligible(why), .. } if why.contains("added after")),
        "{found}"
    );
    // The confirmation fell with the confirmer's stolen key before the token.
    let found = forged(&|copy| {
        let mut entry = copy.entries[issued].clone();
        entry.event = Event::ApproverKeysRevoked(ApproverKeysRevoked {
            person: person_id("maria"),
            keys: vec![world.b.env.keys["maria"].thumbprint()],
            all: false,
            cause: RevokeCause::Compromised,
            by: Some(person_id("olga")),
            invited: 0,
            unconfirmed: 1,
        });
        copy.entries.insert(issued, entry);
    });
    assert!(
        matches!(
            &found,
            AuditError::Grant {
                why: GrantError::Quorum { .. },
                ..
            }
        ),
        "{found}"
    );
    world.b.check_invariants();
}

//! Passkeys at the test broker: enrolment by invitation, sign-in, votes in a session.

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::authorization;
use dipylon_sdk::model::*;

use crate::support::own_key::OwnKey;
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::*;

pub const RP_ID: &str = "localhost";

pub const ENROL: &str = "console/enrol";

pub const CONFIRM: &str = "dipylon.v1.ApprovalService/ConfirmPasskey";

/// Has a person's passkeys confirmed by the first person who can and for whom `call` has a key.
pub async fn confirm_passkeys(
    broker: &Broker,
    name: &str,
    call: impl Fn(&str) -> Option<CallContext>,
) {
    let person = PersonId::parse(name).expect("id");
    let enrolled = broker.show().person(&person);
    let passkeys = enrolled.passkeys.iter();
    for passkey in passkeys.filter(|passkey| passkey.confirmation.is_none()) {
        let key = passkey.record.key;
        let confirmers = broker.show().confirmers(&person, key);
        let found = confirmers.iter().find_map(|by| call(by.as_str()));
        if let Some(call) = found {
            let confirmed = broker.confirm_passkey(&call, person.clone(), key);
            confirmed.await.expect("confirmed");
        }
    }
}

impl TestBroker {
    pub async fn try_invite(&self, name: &str) -> Option<Secret> {
        let call = self.person_call("dipylon.v1.ApprovalService/InviteApprover", "olga");
        let person = PersonId::parse(name).expect("id");
        let invited = self.broker.invite_approver(&call, person).await;
        invited.ok().map(|invited| invited.code)
    }

    pub async fn invite(&self, name: &str) -> Secret {
        self.try_invite(name).await.expect("invited")
    }

    pub async fn enrol_with(
        &self,
        code: &Secret,
        behaviour: &PasskeyBehaviour,
    ) -> Result<SoftwareAuthenticator, Refusal> {
        let begun = self.broker.begin_enrolment(ENROL, code)?;
        let kind = crate::support::software_authenticator::KeyKind::Es256;
        let (key, made) = SoftwareAuthenticator::create_as(
            kind,
            RP_ID,
            CONSOLE,
            &begun.challenge,
            &begun.user,
            behaviour,
        );
        self.broker
            .finish_enrolment(ENROL, code, &made, "Phone")
            .await?;
        Ok(key)
    }

    /// Enrols a key that the person has already.
    pub async fn enrol_key(
        &self,
        name: &str,
        key: &OwnKey,
    ) -> Result<SoftwareAuthenticator, Refusal> {
        let code = self.invite(name).await;
        let passkey = self.enrol_key_with(&code, key).await?;
        self.confirm_passkeys(name).await;
        Ok(passkey)
    }

    pub async fn enrol_key_with(
        &self,
        code: &Secret,
        key: &OwnKey,
    ) -> Result<SoftwareAuthenticator, Refusal> {
        let begun = self.broker.begin_enrolment(ENROL, code)?;
        let passkey = key.passkey(RP_ID, &begun.user);
        let made = passkey.register_as(&begun.challenge, CONSOLE, &PasskeyBehaviour::default());
        let done = self.broker.finish_enrolment(ENROL, code, &made, "Phone");
        done.await.map(|_| passkey)
    }

    /// A passkey that another person than its inviter has confirmed.
    pub async fn enrol(&self, name: &str) -> SoftwareAuthenticator {
        let passkey = self.enrol_unconfirmed(name).await;
        self.confirm_passkeys(name).await;
        passkey
    }

    pub async fn enrol_unconfirmed(&self, name: &str) -> SoftwareAuthenticator {
        let code = self.invite(name).await;
        let enrolled = self.enrol_with(&code, &PasskeyBehaviour::default()).await;
        enrolled.expect("enrolled")
    }

    /// Enrols a passkey of each of these people, with which [`TestBroker::vote`] votes from then on.
    pub async fn enrol_voters(&self, names: &[&str]) {
        for name in names {
            let passkey = self.enrol(name).await;
            self.env.keep_passkey(name, passkey);
        }
    }

    /// Has a person's passkeys confirmed, as far as a person with a key of the environment can.
    pub async fn confirm_passkeys(&self, name: &str) {
        confirm_passkeys(&self.broker, name, |by| {
            let key = self.env.keys.get(by)?;
            Some(self.call(CONFIRM, key, None, None))
        })
        .await;
    }

    /// Confirms one passkey of a person, as another.
    pub async fn confirm(&self, by: &str, name: &str, key: Thumbprint) -> Result<u64, Refusal> {
        let call = self.person_call(CONFIRM, by);
        let person = PersonId::parse(name).expect("id");
        self.broker.confirm_passkey(&call, person, key).await
    }

    /// The key of a person's newest passkey.
    pub fn newest_passkey(&self, name: &str) -> Thumbprint {
        let person = PersonId::parse(name).expect("id");
        let enrolled = self.broker.show().person(&person);
        enrolled.passkeys.last().expect("a passkey").record.key
    }

    pub async fn sign_in(&self, key: &SoftwareAuthenticator) -> Result<Session, Refusal> {
        let begun = self.broker.begin_sign_in();
        let assertion = key.get(&begun.challenge, CONSOLE);
        self.broker
            .finish_sign_in("console/sign-in", assertion)
            .await
    }

    /// A call as the console makes it: with the session cookie, without a proof.
    pub fn session_call(&self, method: &str, session: &Session) -> CallContext {
        let policy = authorization::method_policy(method).expect("a row");
        CallContext {
            method: policy.name,
            allowed_roles: policy.allowed_roles,
            proof: None,
            bearer: None,
            session: Some(session.cookie.clone()),
            permit: ConcurrencyPermit::unlimited(policy.rate_class),
        }
    }

    pub async fn begin_vote_in_session(
        &self,
        session: &Session,
        id: AccessRequestId,
        ask: VoteInput,
    ) -> Result<VoteStatementReply, Refusal> {
        let call = self.session_call("dipylon.v1.ApprovalService/BeginVote", session);
        self.broker.begin_vote(&call, id, ask).await
    }

    pub async fn cast_vote_in_session(
        &self,
        session: &Session,
        id: AccessRequestId,
        begun: &VoteStatementReply,
        proof: VoteProof,
    ) -> Result<AccessView, Refusal> {
        let call = self.session_call("dipylon.v1.ApprovalService/CastVote", session);
        let cast = self.broker.cast_vote(&call, id, &begun.statement, proof);
        cast.await.map(|done| done.view)
    }

    /// A complete vote at the console.
    pub async fn vote_in_session(
        &self,
        session: &Session,
        key: &SoftwareAuthenticator,
        id: AccessRequestId,
        ask: VoteInput,
    ) -> Result<AccessView, Refusal> {
        let begun = self.begin_vote_in_session(session, id, ask).await?;
        let assertion = key.get(begun.challenge.as_bytes(), CONSOLE);
        self.cast_vote_in_session(session, id, &begun, VoteProof::Passkey(assertion))
            .await
    }
}

pub fn approve() -> VoteInput {
    vote_request(Verdict::Approve)
}

pub fn deny() -> VoteInput {
    vote_request(Verdict::Deny)
}

fn vote_request(verdict: Verdict) -> VoteInput {
    VoteInput {
        profile: ProfileName::parse("one-security").expect("profile"),
        verdict,
        narrowing: Narrowing::default(),
        comment: None,
        policy: None,
        facts: None,
    }
}

/// An environment whose profiles accept only passkeys.
pub fn passkeys_alone() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    *people = people.replace("method = \"key\"", "method = \"passkey\"");
    env
}

/// An environment with its own `[approvals]` table.
pub fn with_approvals(table: &str) -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let people = env.policy.get_mut("people.toml").expect("people");
    assert!(people.contains(NO_LIMITS));
    *people = people.replace(NO_LIMITS, &format!("[approvals]\n{table}\n"));
    env
}

/// The same in which every action that needs an approval is of high risk, and every profile takes passkeys alone.
pub fn high_risk_with_approvals(table: &str) -> TestEnvironment {
    let mut env = with_approvals(table);
    for (file, from, to) in [
        ("schema.cedarschema", "@risk(\"medium\")", "@risk(\"high\")"),
        ("people.toml", "method = \"key\"", "method = \"passkey\""),
    ] {
        let text = env.policy.get_mut(file).expect("a file");
        *text = text.replace(from, to);
    }
    env
}

/// A broker, an agent with a task, and its pending access request to disable ann.
pub async fn pending_request(
    env: TestEnvironment,
) -> (TestBroker, TestAgent, TaskId, AccessRequestId) {
    let (b, triage, task, id, []) = pending_request_for(env, []).await;
    (b, triage, task, id)
}

/// The same with confirmed passkeys of these people: those that are enrolled later do not count for the request.
pub async fn pending_request_for<const N: usize>(
    env: TestEnvironment,
    voters: [&str; N],
) -> (
    TestBroker,
    TestAgent,
    TaskId,
    AccessRequestId,
    [SoftwareAuthenticator; N],
) {
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let _held = b.enrol("lee").await;
    let mut passkeys = Vec::new();
    for voter in voters {
        passkeys.push(b.enrol(voter).await);
    }
    let Ok(passkeys) = passkeys.try_into() else {
        unreachable!("one for each voter")
    };
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let pending = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await
        .pending();
    (b, triage, task, pending.access_request, passkeys)
}

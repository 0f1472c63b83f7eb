//! A sample card for unit tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    AccessRequestStatus, AgentRegistration, Attestation, Card, PersonRef, ProfileProgress,
    Requester, RequestingAgent, RuleSummary,
};
use crate::model::*;

/// The time at which the samples are shown.
pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// An action on an account, with one parameter.
pub fn action(target: &str, flag: bool) -> Action {
    Action::new(
        ActionName::parse("account.disable").expect("name"),
        Audience::parse("https://idp.example").expect("audience"),
        Target::parse("Account", target).expect("target"),
        BTreeMap::from([("end_sessions".to_owned(), Param::Bool(flag))]),
    )
    .expect("action")
}

/// The same action with other parameters.
pub fn action_with(parameters: &[(&str, Param)]) -> Action {
    let parameters = parameters
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()));
    Action {
        parameters: parameters.collect(),
        ..action("ann", true)
    }
}

/// The first profile of the sample, and the text its digest is of.
pub const PROFILE: &str = "two-security";

fn need(name: &str) -> ProfileProgress {
    ProfileProgress {
        profile: ProfileRef {
            name: ProfileName::parse(name).expect("profile"),
            digest: Digest::sha256(name.as_bytes()),
        },
        group: "security".to_owned(),
        quorum: 1,
        approvers: Vec::new(),
        passkey: false,
        key_notes: Vec::new(),
    }
}

/// A card with every value but its history.
pub fn card() -> Card {
    Card {
        access_request: AccessRequestId::from_random([1; 16]),
        status: AccessRequestStatus::Waiting,
        realm: Realm::parse("prod").expect("realm"),
        title: "Disable an account".to_owned(),
        effect: "The person cannot sign in.".to_owned(),
        reversible: "reversible".to_owned(),
        undo: "Enable it again.".to_owned(),
        risk: Some(Risk::High),
        action: Some(Arc::new(action("ann", true))),
        parameter_titles: BTreeMap::from([("end_sessions".to_owned(), "End sessions".to_owned())]),
        target_attributes: Some(vec![("environment".to_owned(), "prod".to_owned())]),
        named_facts: BTreeMap::new(),
        openings: None,
        changes: None,
        plan: Vec::new(),
        requester: Requester::Agent(Box::new(RequestingAgent {
            id: AgentId::parse("ci").expect("agent"),
            owner: PersonRef {
                id: PersonId::parse("p1").expect("person"),
                name: Some("Dana Ruiz".to_owned()),
            },
            registered: Some(AgentRegistration {
                environment: "prod".to_owned(),
                model: "m-1".to_owned(),
                autonomy: "supervised".to_owned(),
            }),
            verified: Attestation {
                kind: "jwt-svid".to_owned(),
                subject: SpiffeId::parse("spiffe://soc.example/ci").expect("subject"),
                issued_at: Some(NOW.plus_secs(-42)),
                verified_at: NOW.plus_secs(-12),
                expires_at: NOW.plus_secs(288),
            },
            task: TaskId::from_random([2; 16]),
            task_key: Thumbprint(Digest::sha256(b"key")),
            executor: None,
        })),
        rules: vec![RuleSummary {
            id: "destructive-needs-approval".to_owned(),
            file: "rules/20.cedar".to_owned(),
            why: "It locks people out.".to_owned(),
            effect: "step_up".to_owned(),
        }],
        needs: vec![need(PROFILE)],
        delay: None,
        void_votes: Vec::new(),
        max_ttl: Some(300),
        uses: Some(1),
        policy: Digest::sha256(b"policy"),
        opened_at: NOW.plus_secs(-10),
        expires_at: NOW.plus_secs(890),
        anomalies: Vec::new(),
        history: None,
        dwell_s: 3,
        console_url: Some("http://localhost:8443/console/requests/x".to_owned()),
        purpose: Some(UntrustedText::parse("purpose", "contain a phished account").expect("prose")),
        reason: Some(UntrustedText::parse("reason", "INC-8841").expect("prose")),
    }
}

//! Card conversion: a card that the broker wrote is read completely, or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::convert::{
    action, action_to_wire, required, seconds, seconds_to_wire, timestamp, timestamp_to_wire,
};
use super::v1;
use crate::card::{
    AccessRequestStatus, AgentRegistration, Attestation, Card, CardDelay, CountedApproval,
    ExecutingAgent, History, NamedFact, PersonRef, ProfileProgress, Requester, RequestingAgent,
    RuleSummary, VoidVote,
};
use crate::model::*;

/// Writes a card.
pub fn to_wire(card: &Card) -> v1::Card {
    let agent = card.requester.agent();
    v1::Card {
        access_request_id: card.access_request.to_string(),
        realm: card.realm.to_string(),
        status: status_to_wire(card.status).into(),
        title: card.title.clone(),
        effect: card.effect.clone(),
        reversible: card.reversible.clone(),
        undo: card.undo.clone(),
        risk: card.risk.map(|r| r.as_str().to_owned()).unwrap_or_default(),
        action: card.action.as_deref().map(action_to_wire),
        action_digest: digest_of(card.action.as_deref()),
        target_attributes: card
            .target_attributes
            .iter()
            .flatten()
            .map(|(name, value)| v1::TargetAttribute {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        target_known: card.target_attributes.is_some(),
        agent: agent.map(|agent| agent_to_wire(&agent.id, &agent.owner, &agent.registered)),
        executor: agent
            .and_then(|agent| agent.executor.as_ref())
            .map(|agent| agent_to_wire(&agent.id, &agent.owner, &agent.registered)),
        verification: agent.map(|agent| v1::Verification {
            evidence_kind: agent.verified.kind.clone(),
            subject: agent.verified.subject.to_string(),
            verified_at: Some(timestamp_to_wire(agent.verified.verified_at)),
            expires_at: Some(timestamp_to_wire(agent.verified.expires_at)),
            issued_at: agent.verified.issued_at.map(timestamp_to_wire),
        }),
        rules: card
            .rules
            .iter()
            .map(|r| v1::Rule {
                id: r.id.clone(),
                file: r.file.clone(),
                why: r.why.clone(),
                effect: r.effect.clone(),
            })
            .collect(),
        needs: card.needs.iter().map(need_to_wire).collect(),
        delay: card.delay.as_ref().map(delay_to_wire),
        task_id: agent
            .map(|agent| agent.task.to_string())
            .unwrap_or_default(),
        task_key: agent
            .map(|agent| agent.task_key.to_string())
            .unwrap_or_default(),
        max_ttl: card.max_ttl.map(seconds_to_wire),
        uses: card.uses,
        policy_version: card.policy.to_string(),
        opened_at: Some(timestamp_to_wire(card.opened_at)),
        expires_at: Some(timestamp_to_wire(card.expires_at)),
        purpose: prose_to_wire(card.purpose.as_ref()),
        reason: prose_to_wire(card.reason.as_ref()),
        match_phrase: card.phrase().to_string(),
        anomalies: card.anomalies.clone(),
        history: card.history.as_ref().map(history_to_wire),
        dwell: (card.dwell_s > 0).then(|| seconds_to_wire(card.dwell_s.into())),
        console_url: card.console_url.clone().unwrap_or_default(),
        parameter_titles: card
            .parameter_titles
            .iter()
            .map(|(path, title)| v1::ParameterTitle {
                path: path.clone(),
                title: title.clone(),
            })
            .collect(),
        people: people_of(card)
            .into_iter()
            .map(|(person_id, name)| v1::CardPerson { person_id, name })
            .collect(),
        openings: card
            .openings
            .iter()
            .flat_map(|secret| &secret.parameters)
            .map(|(parameter, opening)| v1::Opening {
                parameter: parameter.clone(),
                salt: opening.salt.clone(),
            })
            .collect(),
        digest_salt: card
            .openings
            .as_ref()
            .map(|secret| secret.salt.clone())
            .unwrap_or_default(),
        proposer: match &card.requester {
            Requester::Agent(_) => String::new(),
            Requester::Person(person) => person.id.to_string(),
        },
        plan: card.plan.clone(),
        facts: card
            .named_facts
            .iter()
            .map(|(name, fact)| v1::CardFact {
                name: name.clone(),
                title: fact.title.clone(),
                value: fact.value,
            })
            .collect(),
        changes: card.changes.as_ref().map(|changes| v1::PolicyChanges {
            summary: changes.summary.clone(),
            files: changes
                .files
                .iter()
                .map(|file| v1::FileChange {
                    path: file.path.clone(),
                    lines: file.lines.clone(),
                })
                .collect(),
        }),
        void_votes: card
            .void_votes
            .iter()
            .map(|vote| v1::VoidVote {
                voter: vote.voter.id.to_string(),
                changed: vote.changed.clone(),
            })
            .collect(),
    }
}

/// Writes the status of an access request.
pub const fn status_to_wire(status: AccessRequestStatus) -> v1::AccessRequestStatus {
    match status {
        AccessRequestStatus::Waiting => v1::AccessRequestStatus::Waiting,
        AccessRequestStatus::Approved => v1::AccessRequestStatus::Approved,
        AccessRequestStatus::Denied => v1::AccessRequestStatus::Denied,
        AccessRequestStatus::Consumed => v1::AccessRequestStatus::Consumed,
        AccessRequestStatus::Cancelled => v1::AccessRequestStatus::Cancelled,
        AccessRequestStatus::Expired => v1::AccessRequestStatus::Expired,
        AccessRequestStatus::ApprovalExpired => v1::AccessRequestStatus::ApprovalExpired,
        AccessRequestStatus::Ended => v1::AccessRequestStatus::Ended,
    }
}

/// Reads a card. Everything that is signed must be there and in its form: an approver who sees half a card
/// would sign the other half unseen.
pub fn read(wire: &v1::Card) -> Result<Card, ParseError> {
    let card_action = wire.action.as_ref().map(action).transpose()?.map(Arc::new);
    if wire.action_digest != digest_of(card_action.as_deref()) {
        return Err(ParseError::new(
            "action_digest",
            "is of another action than the card's",
        ));
    }
    let people: BTreeMap<&str, &str> = wire
        .people
        .iter()
        .map(|p| (p.person_id.as_str(), p.name.as_str()))
        .collect();
    let person = |id: &str| -> Result<PersonRef, ParseError> {
        Ok(PersonRef {
            id: PersonId::parse(id)?,
            name: people.get(id).map(|name| (*name).to_owned()),
        })
    };
    let requester = match wire.proposer.as_str() {
        "" => Requester::Agent(Box::new(requesting_agent(wire, person)?)),
        proposer => Requester::Person(person(proposer)?),
    };
    let max_ttl = match &requester {
        Requester::Agent(_) => Some(seconds(
            "max_ttl",
            required("max_ttl", wire.max_ttl.as_ref())?,
        )?),
        Requester::Person(_) => None,
    };
    let openings = openings(wire, card_action.as_deref())?;
    // Each stands once: the facts that are signed have one value for each.
    let names = wire.target_attributes.iter().map(|f| f.name.as_str());
    let is_repeated = !all_differ(names)
        || !all_differ(wire.rules.iter().map(|r| r.id.as_str()))
        || !all_differ(wire.facts.iter().map(|f| f.name.as_str()));
    if is_repeated {
        return Err(ParseError::new(
            "card",
            "must name each attribute, rule and fact once",
        ));
    }
    Ok(Card {
        access_request: AccessRequestId::parse(&wire.access_request_id)?,
        status: status(wire.status)?,
        realm: Realm::parse(&wire.realm)?,
        title: wire.title.clone(),
        effect: wire.effect.clone(),
        reversible: wire.reversible.clone(),
        undo: wire.undo.clone(),
        risk: risk(&wire.risk)?,
        action: card_action,
        parameter_titles: wire
            .parameter_titles
            .iter()
            .map(|t| (t.path.clone(), t.title.clone()))
            .collect(),
        target_attributes: wire.target_known.then(|| {
            let facts = wire.target_attributes.iter();
            facts.map(|f| (f.name.clone(), f.value.clone())).collect()
        }),
        openings,
        named_facts: wire
            .facts
            .iter()
            .map(|fact| {
                let shown = NamedFact {
                    title: fact.title.clone(),
                    value: fact.value,
                };
                (fact.name.clone(), shown)
            })
            .collect(),
        plan: wire.plan.clone(),
        changes: match (&requester, &wire.changes) {
            (Requester::Agent(_), _) => None,
            (Requester::Person(_), changes) => {
                let changes = required("changes", changes.as_ref())?;
                Some(PolicyChanges {
                    summary: changes.summary.clone(),
                    files: changes
                        .files
                        .iter()
                        .map(|file| FileChange {
                            path: file.path.clone(),
                            lines: file.lines.clone(),
                        })
                        .collect(),
                })
            }
        },
        requester,
        rules: wire
            .rules
            .iter()
            .map(|r| RuleSummary {
                id: r.id.clone(),
                file: r.file.clone(),
                why: r.why.clone(),
                effect: r.effect.clone(),
            })
            .collect(),
        needs: wire
            .needs
            .iter()
            .map(|need| {
                Ok(ProfileProgress {
                    profile: ProfileRef {
                        name: ProfileName::parse(&need.name)?,
                        digest: Digest::parse(&need.digest)?,
                    },
                    group: need.group.clone(),
                    quorum: need.quorum,
                    approvers: need
                        .approvers
                        .iter()
                        .map(|approval| {
                            Ok(CountedApproval {
                                person: person(&approval.person_id)?,
                                method: VoteMethod::parse(&approval.method)?,
                            })
                        })
                        .collect::<Result<_, ParseError>>()?,
                    passkey: passkey(&need.method)?,
                    key_notes: need.key_notes.clone(),
                })
            })
            .collect::<Result<_, ParseError>>()?,
        delay: wire.delay.as_ref().map(delay_from_wire).transpose()?,
        void_votes: wire
            .void_votes
            .iter()
            .map(|vote| {
                Ok(VoidVote {
                    voter: person(&vote.voter)?,
                    changed: vote.changed.clone(),
                })
            })
            .collect::<Result<_, ParseError>>()?,
        max_ttl,
        uses: wire.uses,
        policy: Digest::parse(&wire.policy_version)?,
        opened_at: moment("opened_at", wire.opened_at.as_ref())?,
        expires_at: moment("expires_at", wire.expires_at.as_ref())?,
        anomalies: wire.anomalies.clone(),
        history: match &wire.history {
            Some(history) => Some(History {
                approved: history.approved,
                denied: history.denied,
                approved_by_caller: history.approved_by_caller,
                denied_by_caller: history.denied_by_caller,
                last_approved_at: maybe(history.last_approved_at.as_ref())?,
                last_denied_at: maybe(history.last_denied_at.as_ref())?,
                last_denied_by: match history.last_denied_by.as_str() {
                    "" => None,
                    id => Some(person(id)?),
                },
                requested_today: history.requested_today,
                first: history.first,
            }),
            None => None,
        },
        dwell_s: match &wire.dwell {
            Some(dwell) => u32::try_from(seconds("dwell", dwell)?)
                .map_err(|_| ParseError::new("dwell", "must not be negative"))?,
            None => 0,
        },
        console_url: (!wire.console_url.is_empty()).then(|| wire.console_url.clone()),
        purpose: prose("purpose", &wire.purpose)?,
        reason: prose("reason", &wire.reason)?,
    })
}

fn all_differ<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = BTreeSet::new();
    names.into_iter().all(|name| seen.insert(name))
}

fn agent_to_wire(
    id: &AgentId,
    owner: &PersonRef,
    registered: &Option<AgentRegistration>,
) -> v1::CardAgent {
    let claims = registered.clone();
    let claims = claims.map(|claims| (claims.environment, claims.model, claims.autonomy));
    let (environment, model, autonomy) = claims.unwrap_or_default();
    v1::CardAgent {
        agent_id: id.to_string(),
        owner: owner.id.to_string(),
        environment,
        model,
        autonomy,
    }
}

fn registration(agent: &v1::CardAgent) -> Option<AgentRegistration> {
    (!agent.environment.is_empty()).then(|| AgentRegistration {
        environment: agent.environment.clone(),
        model: agent.model.clone(),
        autonomy: agent.autonomy.clone(),
    })
}

fn requesting_agent(
    wire: &v1::Card,
    person: impl Fn(&str) -> Result<PersonRef, ParseError>,
) -> Result<RequestingAgent, ParseError> {
    let agent = required("agent", wire.agent.as_ref())?;
    let verification = required("verification", wire.verification.as_ref())?;
    Ok(RequestingAgent {
        id: AgentId::parse(&agent.agent_id)?,
        owner: person(&agent.owner)?,
        registered: registration(agent),
        executor: match &wire.executor {
            None => None,
            Some(executor) => Some(ExecutingAgent {
                id: AgentId::parse(&executor.agent_id)?,
                owner: person(&executor.owner)?,
                registered: registration(executor),
            }),
        },
        verified: Attestation {
            kind: verification.evidence_kind.clone(),
            subject: SpiffeId::parse(&verification.subject)?,
            issued_at: match verification.issued_at.as_ref() {
                None => None,
                at @ Some(_) => Some(moment("issued_at", at)?),
            },
            verified_at: moment("verified_at", verification.verified_at.as_ref())?,
            expires_at: moment("expires_at", verification.expires_at.as_ref())?,
        },
        task: TaskId::parse(&wire.task_id)?,
        task_key: Thumbprint(Digest::parse(&wire.task_key)?),
    })
}

/// The openings of the signed action's commitments: the wire has the salts, and the values in the action.
fn openings(wire: &v1::Card, action: Option<&Action>) -> Result<Option<ActionSecret>, ParseError> {
    let (Some(action), false) = (action, wire.digest_salt.is_empty()) else {
        return Ok(None);
    };
    let opening = |wire: &v1::Opening| {
        let value = action.parameters.get(&wire.parameter);
        let value = value.ok_or_else(|| ParseError::new("openings", "name no parameter"))?;
        let opening = Opening {
            salt: wire.salt.clone(),
            value: value.to_json(),
        };
        Ok((wire.parameter.clone(), opening))
    };
    let parameters = wire.openings.iter().map(opening);
    Ok(Some(ActionSecret {
        salt: wire.digest_salt.clone(),
        digest: action.digest(),
        parameters: parameters.collect::<Result<_, ParseError>>()?,
    }))
}

fn digest_of(action: Option<&Action>) -> String {
    action.map(|a| a.digest().to_string()).unwrap_or_default()
}

fn need_to_wire(need: &ProfileProgress) -> v1::Profile {
    let approval = |approval: &CountedApproval| v1::ProfileApproval {
        person_id: approval.person.id.to_string(),
        method: approval.method.as_str().to_owned(),
    };
    v1::Profile {
        name: need.profile.name.to_string(),
        digest: need.profile.digest.to_string(),
        group: need.group.clone(),
        quorum: need.quorum,
        approvals: u32::try_from(need.approvers.len()).unwrap_or(u32::MAX),
        approvers: need.approvers.iter().map(approval).collect(),
        method: if need.passkey {
            VoteMethod::Passkey
        } else {
            VoteMethod::Key
        }
        .as_str()
        .to_owned(),
        key_notes: need.key_notes.clone(),
    }
}

/// Whether only passkeys count; the method is empty for a profile that is no longer defined.
fn passkey(method: &str) -> Result<bool, ParseError> {
    Ok(!method.is_empty() && VoteMethod::parse(method)? == VoteMethod::Passkey)
}

fn history_to_wire(history: &History) -> v1::CardHistory {
    v1::CardHistory {
        approved: history.approved,
        denied: history.denied,
        approved_by_caller: history.approved_by_caller,
        denied_by_caller: history.denied_by_caller,
        last_approved_at: history.last_approved_at.map(timestamp_to_wire),
        last_denied_at: history.last_denied_at.map(timestamp_to_wire),
        last_denied_by: history
            .last_denied_by
            .as_ref()
            .map(|person| person.id.to_string())
            .unwrap_or_default(),
        requested_today: history.requested_today,
        first: history.first,
    }
}

/// The people on the card who have a display name.
fn people_of(card: &Card) -> BTreeMap<String, String> {
    let history = card.history.iter();
    let approvers = card
        .needs
        .iter()
        .flat_map(|need| &need.approvers)
        .map(|approval| &approval.person);
    let void = card.void_votes.iter().map(|vote| &vote.voter);
    let executor = card.requester.agent().and_then(|by| by.executor.as_ref());
    std::iter::once(card.requester.owner())
        .chain(executor.map(|executor| &executor.owner))
        .chain(approvers)
        .chain(void)
        .chain(history.filter_map(|h| h.last_denied_by.as_ref()))
        .filter_map(|person| Some((person.id.to_string(), person.name.clone()?)))
        .collect()
}

/// Reads the status of an access request.
pub fn status(wire: i32) -> Result<AccessRequestStatus, ParseError> {
    match v1::AccessRequestStatus::try_from(wire) {
        Ok(v1::AccessRequestStatus::Waiting) => Ok(AccessRequestStatus::Waiting),
        Ok(v1::AccessRequestStatus::Approved) => Ok(AccessRequestStatus::Approved),
        Ok(v1::AccessRequestStatus::Denied) => Ok(AccessRequestStatus::Denied),
        Ok(v1::AccessRequestStatus::Consumed) => Ok(AccessRequestStatus::Consumed),
        Ok(v1::AccessRequestStatus::Cancelled) => Ok(AccessRequestStatus::Cancelled),
        Ok(v1::AccessRequestStatus::Expired) => Ok(AccessRequestStatus::Expired),
        Ok(v1::AccessRequestStatus::ApprovalExpired) => Ok(AccessRequestStatus::ApprovalExpired),
        Ok(v1::AccessRequestStatus::Ended) => Ok(AccessRequestStatus::Ended),
        Ok(v1::AccessRequestStatus::Unspecified) | Err(_) => {
            Err(ParseError::new("status", "is not one this program knows"))
        }
    }
}

fn risk(word: &str) -> Result<Option<Risk>, ParseError> {
    if word.is_empty() {
        return Ok(None);
    }
    Risk::parse(word).map(Some)
}

/// The wire form of a delay of rules.
pub fn delay_to_wire(delay: &CardDelay) -> v1::Delay {
    v1::Delay {
        at: Some(timestamp_to_wire(delay.at)),
        needs: delay.needs.iter().map(ToString::to_string).collect(),
    }
}

/// Reads a delay of rules.
pub(crate) fn delay_from_wire(delay: &v1::Delay) -> Result<CardDelay, ParseError> {
    let needs = delay.needs.iter().map(|name| ProfileName::parse(name));
    Ok(CardDelay {
        at: moment("delay.at", delay.at.as_ref())?,
        needs: needs.collect::<Result<_, _>>()?,
    })
}

fn moment(
    what: &'static str,
    wire: Option<&prost_types::Timestamp>,
) -> Result<Timestamp, ParseError> {
    timestamp(what, required(what, wire)?)
}

fn maybe(wire: Option<&prost_types::Timestamp>) -> Result<Option<Timestamp>, ParseError> {
    wire.map(|at| timestamp("history", at)).transpose()
}

fn prose(what: &'static str, text: &str) -> Result<Option<UntrustedText>, ParseError> {
    match text {
        "" => Ok(None),
        text => UntrustedText::parse(what, text).map(Some),
    }
}

fn prose_to_wire(prose: Option<&UntrustedText>) -> String {
    prose.map(|p| p.as_str().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::sample::{NOW, card};

    fn full() -> Card {
        let lee = PersonRef {
            id: PersonId::parse("lee").expect("person"),
            name: Some("Lee Song".to_owned()),
        };
        let mut card = card();
        card.needs[0].approvers = vec![CountedApproval {
            person: lee.clone(),
            method: VoteMethod::Key,
        }];
        card.needs[0].passkey = true;
        card.anomalies = vec!["no earlier decision on this target".to_owned()];
        card.history = Some(History {
            approved: 4,
            denied: 1,
            approved_by_caller: 2,
            denied_by_caller: 0,
            last_approved_at: Some(NOW.plus_secs(-86_400)),
            last_denied_at: Some(NOW.plus_millis(-1)),
            last_denied_by: Some(lee),
            requested_today: 3,
            first: false,
        });
        card
    }

    fn unregistered() -> Card {
        let mut card = card();
        if let Requester::Agent(agent) = &mut card.requester {
            agent.registered = None;
        }
        card
    }

    fn proposal() -> Card {
        let lee = PersonRef {
            id: PersonId::parse("lee").expect("person"),
            name: None,
        };
        Card {
            changes: Some(PolicyChanges {
                summary: vec!["lee gets the role operator".to_owned()],
                files: vec![FileChange {
                    path: "people.toml".to_owned(),
                    lines: vec!["@3".to_owned(), "+roles".to_owned()],
                }],
            }),
            plan: vec!["1 task would end".to_owned()],
            void_votes: vec![VoidVote {
                voter: lee.clone(),
                changed: vec!["risk".to_owned()],
            }],
            requester: Requester::Person(lee),
            max_ttl: None,
            uses: None,
            ..card()
        }
    }

    #[test]
    fn card_roundtrip() {
        for ours in [
            card(),
            full(),
            Card {
                action: None,
                target_attributes: None,
                console_url: None,
                dwell_s: 0,
                risk: None,
                uses: None,
                purpose: None,
                reason: None,
                ..card()
            },
            unregistered(),
            proposal(),
        ] {
            let wire = to_wire(&ours);
            assert_eq!(read(&wire), Ok(ours));
            assert_eq!(wire.match_phrase.split('-').count(), 3);
        }
    }

    type Bend = fn(&mut v1::Card);

    #[test]
    fn incomplete_card_is_rejected() {
        let bends: [(&str, Bend); 16] = [
            ("request", |c| c.access_request_id.clear()),
            ("realm", |c| c.realm.clear()),
            ("status", |c| c.status = 0),
            ("status", |c| c.status = 99),
            ("risk", |c| c.risk = "none".to_owned()),
            ("action", |c| c.action = None),
            ("parameter", |c| {
                c.action.as_mut().expect("action").parameters[0].value = None
            }),
            ("digest", |c| {
                c.action_digest = Digest::sha256(b"other").to_string()
            }),
            ("target", |c| {
                let action = c.action.as_mut().expect("action");
                action.target.as_mut().expect("target").id = "bob".to_owned()
            }),
            ("agent", |c| c.agent = None),
            ("owner", |c| c.agent.as_mut().expect("agent").owner.clear()),
            ("profile", |c| c.needs[0].digest.clear()),
            ("method", |c| c.needs[0].method = "voice".to_owned()),
            ("key", |c| c.task_key = "k".to_owned()),
            ("ttl", |c| c.max_ttl = None),
            ("deadline", |c| c.expires_at = None),
        ];
        for (what, bend) in bends {
            let mut wire = to_wire(&full());
            bend(&mut wire);
            assert!(read(&wire).is_err(), "{what}");
        }
    }
}

//! Authentication of callers: DPoP key, service JWT-SVID or session cookie. Authority comes from the verified caller alone,
//! never from a field of the message.

use crate::broker::auth::replay_cache::ReplayCache;
use crate::broker::metrics::CallerId;
use crate::broker::{Broker, Refusal};
use crate::jose::{KeyError, ProofError};
use crate::model::*;
use crate::policy::{ActivePolicy, RegisteredCaller, Role, ServiceKind};
use crate::rate_limit::ConcurrencyPermit;
use crate::state::{KeyHolder, KeyRefusal, Read, Recorded, Shown, TaskRecord};
use crate::verify::{DpopInput, Possession, VerifyError};

/// The caller roles that a method may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerRole {
    /// A workload with evidence, or the holder of a task's key.
    Agent,
    /// A person who may vote.
    Approver,
    /// A person who may suspend, freeze and apply policy bundles.
    Operator,
    /// A resource server.
    Validator,
    /// A service that may only read.
    Auditor,
}

impl CallerRole {
    /// The word in refusals.
    const fn plural(self) -> &'static str {
        match self {
            Self::Agent => "agents",
            Self::Approver => "approvers",
            Self::Operator => "operators",
            Self::Validator => "validators",
            Self::Auditor => "auditors",
        }
    }
}

/// The context of a call beside its message: method, credentials, permit.
#[derive(Debug)]
pub struct CallContext {
    /// `dipylon.v1.Service/Method`.
    pub method: &'static str,
    /// Roles that may call it: the method's row in the guard table.
    pub allowed_roles: &'static [CallerRole],
    /// The DPoP proof.
    pub proof: Option<Secret>,
    /// The JWT-SVID of a service.
    pub bearer: Option<Secret>,
    /// The cookie of a signed-in browser.
    pub session: Option<Secret>,
    /// Its concurrency permit and rate class.
    pub permit: ConcurrencyPermit,
}

/// A registered person who proved one of their keys, in a role the method allows. Made only by
/// [`Broker::authenticate_person`]. Whether the key still lives is asked again in each round that rests on it.
#[derive(Debug, Clone)]
pub struct PersonCaller {
    pub(in crate::broker) id: PersonId,
    pub(in crate::broker) key: Thumbprint,
}

/// A registered validator or auditor.
#[derive(Debug)]
pub(in crate::broker) struct ServiceCaller {
    pub(in crate::broker) id: ServiceId,
    pub(in crate::broker) credential: ServiceCredential,
}

/// What a service called with.
#[derive(Debug, Clone)]
pub(in crate::broker) enum ServiceCredential {
    /// A registered key.
    Key(Thumbprint),
    /// Evidence of its workload identity.
    Evidence(EvidenceFacts),
}

impl PersonCaller {
    /// Whether their key may act for them in a round.
    pub(in crate::broker) fn may_act(&self, read: &Read) -> bool {
        let holder = KeyHolder::Person(self.id.clone());
        read.may_act(&holder, self.key).is_ok()
    }
}

impl ServiceCaller {
    /// When its credential expires; `None` for a key, which does not.
    pub(in crate::broker) const fn expires_at(&self) -> Option<Timestamp> {
        match &self.credential {
            ServiceCredential::Key(_) => None,
            ServiceCredential::Evidence(facts) => Some(facts.expires_at),
        }
    }
}

/// Longest life of a watch, in milliseconds; then its caller authenticates again.
pub(in crate::broker) const WATCH_MAX_MS: u64 = 300_000;

enum Caller {
    Person(PersonCaller),
    Service(ServiceCaller),
}

impl Broker {
    /// Checks the proof of possession that a call carries. `known` says whether the key is registered, before the proof is
    /// remembered: unknown keys cannot fill the replay cache.
    pub(in crate::broker) fn possession(
        &self,
        call: &CallContext,
        action: Option<Digest>,
        evidence: Option<Digest>,
        now: Timestamp,
        known: &dyn Fn(Thumbprint) -> Result<(), VerifyError>,
    ) -> Result<Possession, VerifyError> {
        self.possession_with_cache(call, action, evidence, now, &self.replay_cache, known)
    }

    fn possession_with_cache(
        &self,
        call: &CallContext,
        action: Option<Digest>,
        evidence: Option<Digest>,
        now: Timestamp,
        replay_cache: &ReplayCache,
        known: &dyn Fn(Thumbprint) -> Result<(), VerifyError>,
    ) -> Result<Possession, VerifyError> {
        // Two credentials in one call could be read as two callers.
        if call.bearer.is_some() || call.session.is_some() {
            return Err(VerifyError::SecondCredential);
        }
        let proof = DpopInput {
            proof: call.proof.as_ref(),
            htu: &format!("{}/{}", self.settings.external_url, call.method),
            action,
            evidence,
            nonces: &self.nonces,
            insert_once: &|key, jti, until| {
                known(key)?;
                replay_cache.insert_once(key, jti, until, now)
            },
        };
        Possession::check(&proof, now)
    }

    /// The possession of a key for a new task: no key whose private half is published. The evidence and the agent's rate limit were checked before, which bounds how
    /// many new keys the replay cache holds.
    pub(in crate::broker) fn possession_for_open_task(
        &self,
        call: &CallContext,
        evidence: Digest,
        now: Timestamp,
    ) -> Result<Possession, Refusal> {
        self.require_agent_role(call)?;
        let any = |_| Ok(());
        self.possession_with_cache(
            call,
            None,
            Some(evidence),
            now,
            &self.open_task_replay_cache,
            &any,
        )
        .and_then(|possession| {
            if possession.key().is_published() {
                let error = ProofError::Key(KeyError::Published);
                return Err(VerifyError::Proof(error));
            }
            Ok(possession)
        })
        .map_err(|e| self.refuse_gate_1(call.method, &e))
    }

    /// The caller's task and the possession of its key; another key's task and an unknown id get the same answer. The task is shown:
    /// a decision reads it again in its round. The key of a task never changes.
    pub(in crate::broker) fn task_possession(
        &self,
        call: &CallContext,
        id: &TaskId,
        action: Option<Digest>,
        evidence: Option<Digest>,
        now: Timestamp,
    ) -> Result<(Shown<TaskRecord>, Possession), Refusal> {
        self.require_agent_role(call)?;
        let task = self.show().task(id);
        let known = |key| match &task {
            Some(task) if task.opened.binding.jkt() == key => Ok(()),
            Some(_) | None => Err(VerifyError::TaskKeyMismatch),
        };
        match (self.possession(call, action, evidence, now, &known), &task) {
            (Ok(possession), Some(task)) => {
                self.check_rate_limit(call, CallerId::Agent(task.opened.agent.clone()))?;
                Ok((task.clone(), possession))
            }
            // Any key makes a proof: this one belongs to no task the call may name.
            (Ok(_), None) | (Err(VerifyError::TaskKeyMismatch), _) => Err(Refusal {
                gives_nonce: true,
                ..self.refuse_unauthenticated(
                    call.method,
                    Reason::NotFound,
                    format!("no task {id} bound to this key"),
                )
            }),
            (Err(error), _) => Err(self.refuse_gate_1(call.method, &error)),
        }
    }

    fn require_agent_role(&self, call: &CallContext) -> Result<(), Refusal> {
        if call.allowed_roles.contains(&CallerRole::Agent) {
            return Ok(());
        }
        Err(self.refuse_unauthenticated(
            call.method,
            Reason::NotPermitted,
            "the method does not allow agents",
        ))
    }

    /// Requires that a caller is an operator with the same living key in this round; returns the rules it read.
    pub(in crate::broker) fn require_operator<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        caller: &PersonCaller,
    ) -> Result<Recorded<'r, ActivePolicy>, Refusal> {
        let rules = read
            .rules()
            .ok_or_else(|| self.refuse_gate_1(call.method, &VerifyError::NoRules))?;
        if self.is_operator(read, caller) {
            return Ok(rules);
        }
        Err(self.refuse(
            call.method,
            Reason::NotPermitted,
            format!("{} is no longer an operator with this key", caller.id),
        ))
    }

    /// Requires that a caller is a registered person with the same living key in this round; returns the rules it read.
    pub(in crate::broker) fn require_person<'r>(
        &self,
        read: &'r Read,
        call: &CallContext,
        caller: &PersonCaller,
    ) -> Result<Recorded<'r, ActivePolicy>, Refusal> {
        let rules = read
            .rules()
            .ok_or_else(|| self.refuse_gate_1(call.method, &VerifyError::NoRules))?;
        if rules.bundle.person(&caller.id).is_some() && caller.may_act(read) {
            return Ok(rules);
        }
        Err(self.refuse(
            call.method,
            Reason::NotPermitted,
            format!("{} is no longer registered with this key", caller.id),
        ))
    }

    /// Whether a caller is an operator with the same living key in this round.
    pub(in crate::broker) fn is_operator(&self, read: &Read, caller: &PersonCaller) -> bool {
        let person = read.rules().and_then(|rules| {
            let person = rules.bundle.person(&caller.id)?;
            Some(person.roles.contains(&Role::Operator))
        });
        person == Some(true) && caller.may_act(read)
    }

    /// Requires that a service is registered with the credential it called with in this round, as a service of this kind, and that its
    /// evidence has not expired; returns the rules it read.
    pub(in crate::broker) fn require_service<'r>(
        &self,
        read: &'r Read,
        method: &'static str,
        caller: &ServiceCaller,
        kind: ServiceKind,
    ) -> Result<Recorded<'r, ActivePolicy>, Refusal> {
        let rules = read
            .rules()
            .ok_or_else(|| self.refuse_gate_1(method, &VerifyError::NoRules))?;
        let found = match &caller.credential {
            ServiceCredential::Key(key) => read.holder_of(*key).ok(),
            ServiceCredential::Evidence(facts)
                if self.now() < facts.expires_at && read.is_trusted(facts) =>
            {
                rules.by_spiffe_id(&facts.subject)
            }
            ServiceCredential::Evidence(_) => None,
        };
        let service = rules.bundle.service(&caller.id);
        if found == Some(RegisteredCaller::Service(caller.id.clone()))
            && service.is_some_and(|service| service.kind == kind)
        {
            return Ok(rules);
        }
        let message = format!(
            "{} is no longer registered with this credential; ask an operator",
            caller.id
        );
        Err(self.refuse(method, Reason::NotPermitted, message))
    }

    /// Whether a key may act for a person, for an answer that a later round checks again.
    pub(in crate::broker) fn may_still_act(&self, person: &PersonId, key: Thumbprint) -> bool {
        let holder = KeyHolder::Person(person.clone());
        self.preview(|read| read.may_act(&holder, key).is_ok())
    }

    /// Whether a caller may still read approvals: registered with the same key, in any role.
    pub(in crate::broker) fn may_still_read(&self, caller: &PersonCaller) -> bool {
        self.preview(|read| {
            let roles = read.rules().and_then(|rules| {
                let person = rules.bundle.person(&caller.id)?;
                Some(!person.roles.is_empty())
            });
            roles == Some(true) && caller.may_act(read)
        })
    }

    /// Authenticates a registered person in a role the method allows.
    pub fn authenticate_person(&self, call: &CallContext) -> Result<PersonCaller, Refusal> {
        match self.authenticate(call, self.now())? {
            Caller::Person(person) => Ok(person),
            Caller::Service(service) => Err(self.refuse(
                call.method,
                Reason::NotPermitted,
                format!("{} is a service: expected a person", service.id),
            )),
        }
    }

    /// Authenticates a registered service of a kind the method allows.
    pub(in crate::broker) fn authenticate_service(
        &self,
        call: &CallContext,
        now: Timestamp,
    ) -> Result<ServiceCaller, Refusal> {
        match self.authenticate(call, now)? {
            Caller::Service(service) => Ok(service),
            Caller::Person(person) => Err(self.refuse(
                call.method,
                Reason::NotPermitted,
                format!("{} is a person: expected a service", person.id),
            )),
        }
    }

    /// Authenticates any registered caller the method allows, by name: for methods that people and services share.
    pub(in crate::broker) fn authenticate_reader(
        &self,
        call: &CallContext,
        now: Timestamp,
    ) -> Result<String, Refusal> {
        Ok(match self.authenticate(call, now)? {
            Caller::Person(person) => person.id.to_string(),
            Caller::Service(service) => service.id.to_string(),
        })
    }

    /// Authenticates any registered caller the method allows: the person, or `None` for a service.
    pub(in crate::broker) fn authenticate_reader_person(
        &self,
        call: &CallContext,
        now: Timestamp,
    ) -> Result<Option<PersonCaller>, Refusal> {
        Ok(match self.authenticate(call, now)? {
            Caller::Person(person) => Some(person),
            Caller::Service(_) => None,
        })
    }

    /// Finds who calls. What a caller may do is asked again in each round that rests on it.
    fn authenticate(&self, call: &CallContext, now: Timestamp) -> Result<Caller, Refusal> {
        let closed = |e: &VerifyError| self.refuse_gate_1(call.method, e);
        let rules = self.show().rules();
        let rules = rules.ok_or_else(|| closed(&VerifyError::NoRules))?;
        let (registered, credential) = match (&call.bearer, &call.proof, &call.session) {
            (None, None, Some(cookie)) => {
                let session = self.session(cookie, now).map_err(|e| closed(&e))?;
                (
                    Some(RegisteredCaller::Person(session.person)),
                    ServiceCredential::Key(session.key),
                )
            }
            (Some(bearer), None, None) => {
                let evidence = Evidence::JwtSvid(bearer.clone());
                let attested = self.attest(&evidence, now).map_err(|e| closed(&e))?;
                let facts = attested.facts().clone();
                (
                    rules.by_spiffe_id(&facts.subject),
                    ServiceCredential::Evidence(facts),
                )
            }
            // Two credentials in one call could be read as two callers.
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) => {
                return Err(closed(&VerifyError::SecondCredential));
            }
            (None, _, None) => {
                let holder = |key| self.preview(|read| read.holder_of(key));
                let known = |key| match holder(key) {
                    Ok(_) => Ok(()),
                    Err(KeyRefusal::Unknown) => Err(VerifyError::NotRegistered),
                    Err(why) => Err(VerifyError::KeyMayNotAct(why)),
                };
                let possession = self
                    .possession(call, None, None, now, &known)
                    .map_err(|e| closed(&e))?;
                let key = possession.jkt();
                (holder(key).ok(), ServiceCredential::Key(key))
            }
        };
        let not_permitted = |caller: &dyn std::fmt::Display| {
            let roles = call.allowed_roles.iter().map(|kind| kind.plural());
            let roles = roles.collect::<Vec<_>>().join(" and ");
            let message = format!("{caller} is registered, but the method allows only {roles}");
            Err(self.refuse(call.method, Reason::NotPermitted, message))
        };
        match (registered, credential) {
            (Some(RegisteredCaller::Person(id)), ServiceCredential::Key(key)) => {
                let person = rules
                    .bundle
                    .person(&id)
                    .ok_or_else(|| closed(&VerifyError::NotRegistered))?;
                let admitted = person.roles.iter().any(|role| {
                    call.allowed_roles.contains(&match role {
                        Role::Approver => CallerRole::Approver,
                        Role::Operator => CallerRole::Operator,
                    })
                });
                if !admitted {
                    return not_permitted(&id);
                }
                self.check_rate_limit(call, CallerId::Person(id.clone()))?;
                Ok(Caller::Person(PersonCaller { id, key }))
            }
            (Some(RegisteredCaller::Service(id)), credential) => {
                let service = rules
                    .bundle
                    .service(&id)
                    .ok_or_else(|| closed(&VerifyError::NotRegistered))?;
                let kind = match service.kind {
                    ServiceKind::Validator => CallerRole::Validator,
                    ServiceKind::Auditor => CallerRole::Auditor,
                };
                if !call.allowed_roles.contains(&kind) {
                    return not_permitted(&id);
                }
                self.check_rate_limit(call, CallerId::Service(id.clone()))?;
                Ok(Caller::Service(ServiceCaller { id, credential }))
            }
            (Some(RegisteredCaller::Person(_)), ServiceCredential::Evidence(_)) | (None, _) => {
                Err(closed(&VerifyError::NotRegistered))
            }
        }
    }
}

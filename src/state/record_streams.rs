//! Every record that decisions read, with the streams it lies under: the check that no entry changes one under none of them.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{State, entry_rules, sorted};
use crate::model::{AccessRequester, PersonId, Stream};

/// A record that decisions read.
#[derive(Debug, Clone, PartialEq)]
pub struct DecisionInput {
    /// Its kind and id.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// The streams that reading it records: an entry that changes it advances one of them.
    pub streams: Vec<Stream>,
}

impl State {
    /// Every record that decisions read, in one order. Times of last votes, figures and the feed are none; a signature counter only
    /// grows, whoever reads it.
    pub(super) fn decision_inputs(&self) -> Vec<DecisionInput> {
        let mut all = Vec::new();
        let mut add = |name: String, value: Value, streams: Vec<Stream>| {
            all.push(DecisionInput {
                name,
                value,
                streams,
            });
        };
        let rules = self.rules().map(|rules| rules.bundle.version());
        add("policy".to_owned(), json!(rules), vec![Stream::Policy]);
        let operators = json!(*self.operators_ever());
        let streams = vec![Stream::Policy, Stream::Credentials];
        add("operators who held a key".to_owned(), operators, streams);
        for (id, task) in sorted(self.tasks.all()) {
            let mut streams = vec![Stream::Task(id)];
            streams.extend(entry_rules::task_grounds(self, &task.opened));
            let value = json!([task.ended, task.lease]);
            add(format!("task {id}"), value, streams);
        }
        for (id, request) in sorted(self.requests.all()) {
            let opened = &request.opened;
            let mut streams = vec![Stream::AccessRequest(id)];
            streams.extend(entry_rules::request_grounds(self, opened));
            let task = opened.task().and_then(|task| self.tasks.get(&task));
            let task = task.map(|task| task.ended);
            let value = json!([
                request.status,
                request.votes.len(),
                task,
                request.required_profiles(),
                request.delayed_until()
            ]);
            add(format!("access request {id}"), value, streams);
        }
        for (jti, grant) in sorted(self.grants.all()) {
            let mut streams = vec![Stream::Token(jti)];
            streams.extend(entry_rules::grant_grounds(self, &grant.issued));
            let task = self.tasks.get(&grant.issued.task).map(|task| task.ended);
            let is_trusted = self.is_trusted(&grant.issued.evidence);
            let frozen = self.action_frozen_at(&grant);
            let value = json!([
                grant.ended,
                grant.uses,
                grant.kids,
                task,
                is_trusted,
                frozen
            ]);
            add(format!("token {jti}"), value, streams);
        }
        for ((task, key), outcome) in sorted(self.idempotency_keys.all()) {
            let streams = vec![Stream::TokenRequest(task, key.clone())];
            add(format!("key {task}/{key}"), json!(outcome), streams);
        }
        for ((agent, jkt, key), task) in sorted(self.tasks_by_idempotency_key.all()) {
            let name = format!("opening {agent}/{jkt}/{key}");
            add(name, json!(*task), vec![Stream::open_task(agent, jkt, key)]);
        }
        for (_, request) in sorted(self.requests.all()) {
            let opened = &request.opened;
            let action = &opened.action;
            let stream = match &opened.requester {
                AccessRequester::Agent(by) => {
                    Stream::task_action(by.task, &action.action, &action.target)
                }
                AccessRequester::Person(by) => Stream::Proposals(by.person.clone()),
            };
            let name = format!("opened {}", opened.access_request);
            add(name, json!(opened.task()), vec![stream]);
        }
        for (id, status) in sorted(self.agents.all()) {
            let streams = vec![Stream::Agent(id.clone())];
            add(format!("agent {id}"), json!(status.suspended), streams);
        }
        for (id, history) in sorted(self.histories.all()) {
            // An opening makes the record; without denials it says what a missing one says.
            if history.denials.is_empty() {
                continue;
            }
            let streams = vec![Stream::Denials(id.clone()), Stream::Agent(id.clone())];
            add(format!("denials {id}"), json!(history.denials), streams);
        }
        for (scope, status) in sorted(self.freezes.all()) {
            let streams = vec![Stream::Freeze(scope.clone())];
            add(format!("freeze {scope}"), json!(*status), streams);
        }
        for (name, setting) in sorted(self.facts.all()) {
            let streams = vec![Stream::Fact(name.clone()), Stream::Policy];
            add(format!("fact {name}"), json!(*setting), streams);
        }
        // Of a count what decisions that read it add: what else is counted, they may read or not.
        for (key, moves) in self.event_counts.moves() {
            let name = format!("count {key}");
            let streams = vec![Stream::Count(Box::new(key)), Stream::Policy];
            add(name, json!(moves), streams);
        }
        for (name, history) in sorted(self.fact_histories.all()) {
            let streams = vec![Stream::Fact(name.clone()), Stream::Policy];
            add(format!("values of {name}"), json!(*history), streams);
        }
        for (domain, keys) in sorted(self.trust.all()) {
            let streams = vec![Stream::Trust(domain.clone())];
            add(format!("trust {domain}"), json!(*keys), streams);
        }
        for (kid, key) in sorted(self.keys.all()) {
            add(
                format!("signing key {kid}"),
                json!(*key),
                vec![Stream::Key(kid)],
            );
        }
        let mut everyone = Vec::new();
        let mut people: BTreeSet<PersonId> = self.credentials.people().into_iter().collect();
        let rules = self.rules();
        let registered = rules.iter().flat_map(|rules| rules.bundle.people());
        people.extend(registered.map(|person| person.id.clone()));
        for person in people {
            let keys = self.credentials.get(&person);
            let passkeys: Vec<_> = keys.passkeys.iter().map(|p| &p.record).collect();
            // Nobody's keys and no invitation are what a person has before the journal names them.
            let left: Vec<_> = keys.left.iter().map(|p| &p.record).collect();
            let living = self.living_keys(&person);
            let is_known = !passkeys.is_empty() || !left.is_empty() || !keys.revoked.is_empty();
            if is_known || !living.is_empty() || keys.votes_since > 0 {
                let records = self.key_registry.records_of(&person);
                let value = json!([
                    passkeys,
                    left,
                    keys.revoked,
                    keys.since,
                    keys.votes_since,
                    living,
                    records.iter().map(|r| &**r).collect::<Vec<_>>()
                ]);
                everyone.push(json!([person, value]));
                let streams = vec![Stream::Person(person.clone()), Stream::Policy];
                add(format!("keys of {person}"), value, streams);
            }
            if let Some(i) = self.credentials.invitation(&person) {
                let value = json!([i.id, i.code, i.expires_at, i.by, i.by_key, i.index]);
                let streams = entry_rules::invitation_streams(&person).to_vec();
                add(format!("invitation of {person}"), value, streams);
            }
        }
        for (key, record) in sorted(self.key_registry.all()) {
            let streams = vec![Stream::EnrolledKey(key), Stream::Policy];
            add(format!("holder of {key}"), json!(record.holder), streams);
        }
        for (key, agent) in sorted(self.key_registry.pins()) {
            add(format!("pin {key}"), json!(*agent), vec![Stream::Policy]);
        }
        for (id, person) in self.credentials.ever_enrolled() {
            let stream = Stream::Credential(id.as_str().into());
            add(format!("credential {id}"), json!(*person), vec![stream]);
        }
        add(
            "everyone".to_owned(),
            json!(everyone),
            vec![Stream::Credentials, Stream::Policy],
        );
        all
    }
}

//! Approval card: everything an approver reads about an access request.

use std::collections::BTreeMap;

use crate::broker::{AccessView, Broker, CallContext, Refusal};
use crate::card::{
    AgentRegistration, Attestation, Card, PersonRef, ProfileProgress, Requester, RuleSummary,
};
use crate::model::*;
use crate::policy::{CatalogueAction, ParamSpec, ParamType, PolicyBundle, VoteMethod};
use crate::state::Read;

impl Broker {
    /// The card of an access request that the caller may read, rendered for them. The view is recorded: approving a high-risk action requires a
    /// dwell time.
    pub fn card(&self, call: &CallContext, id: &AccessRequestId) -> Result<Card, Refusal> {
        let now = self.now();
        let reader = self.authenticate_person(call)?;
        self.preview(|read| self.card_for(read, call, &reader.id, id, now))
    }

    fn card_for(
        &self,
        read: &Read,
        call: &CallContext,
        reader: &PersonId,
        id: &AccessRequestId,
        now: Timestamp,
    ) -> Result<Card, Refusal> {
        let rules = self.rules_in_force(read, call)?;
        let request = self.find_readable_request(read, call, reader, id)?;
        self.record_card_view(reader, &request, &rules, now);
        let task = read.task(&request.opened.task);
        let task = task.ok_or_else(|| {
            self.refuse(
                call.method,
                Reason::DecisionUnavailable,
                "the task of the access request is missing",
            )
        })?;
        let dwell = self.dwell_time(&request, &rules);
        let AccessView {
            request,
            status,
            needs,
            title,
            risk,
        } = self.view(read, &request, &rules, now);
        let opened = &request.opened;
        let bundle = &rules.bundle;
        let (anomalies, history) = self.anomalies_and_history(&request, reader, bundle, now);
        let catalogue = bundle.action(&opened.action.action);
        let catalogue_text = |pick: fn(&CatalogueAction) -> &Option<String>| {
            catalogue.and_then(|a| pick(a).clone()).unwrap_or_default()
        };
        let need = |need: crate::broker::ProfileState| ProfileProgress {
            profile: need.profile,
            group: need.group,
            quorum: need.quorum,
            approvers: need
                .approvers
                .into_iter()
                .map(|id| person_ref(bundle, id))
                .collect(),
            passkey: need.method == Some(VoteMethod::Passkey),
        };
        let registered = bundle.agent(&opened.agent).map(|agent| AgentRegistration {
            environment: agent.environment.to_string(),
            model: agent.model.clone(),
            autonomy: agent.autonomy.clone(),
        });
        Ok(Card {
            access_request: opened.access_request,
            status,
            realm: self.settings.realm.clone(),
            title,
            effect: catalogue_text(|a| &a.effect),
            reversible: catalogue_text(|a| &a.reversible),
            undo: catalogue_text(|a| &a.undo),
            risk,
            action: request.action.clone(),
            parameter_titles: catalogue.map(|a| titles(&a.parameters)).unwrap_or_default(),
            target_attributes: bundle
                .target_attributes(&opened.action.target)
                .map(fit_attributes),
            agent: Requester {
                id: opened.agent.clone(),
                owner: person_ref(bundle, opened.owner.clone()),
                registered,
            },
            verified: Attestation {
                kind: opened.evidence.kind.as_str().to_owned(),
                subject: opened.evidence.subject.clone(),
                verified_at: opened.evidence.verified_at,
                expires_at: opened.evidence.expires_at,
            },
            rules: self.rules_that_ask(&opened.decision.rules),
            needs: needs.into_iter().map(need).collect(),
            task: opened.task,
            task_key: task.opened.binding.jkt(),
            max_ttl: opened.max_ttl,
            uses: opened.uses,
            policy: bundle.version(),
            opened_at: request.opened_at,
            expires_at: opened.expires_at,
            anomalies,
            history,
            dwell_s: u32::try_from(dwell.as_secs()).unwrap_or(u32::MAX),
            console_url: Some(format!(
                "{}/console/requests/{}",
                self.relying_party().origin,
                opened.access_request
            )),
            purpose: task.purpose.clone(),
            reason: request.reason.clone(),
        })
    }

    /// The rules that require an approval, without those that allow the action or limit its lifetime; rules that are no longer
    /// in force are kept, because it is unknown what they did.
    fn rules_that_ask(&self, rules: &[RuleRef]) -> Vec<RuleSummary> {
        let asks = |rule: &RuleSummary| !matches!(rule.effect.as_str(), "permit" | "max_ttl");
        let mut shown = self.rules_shown(rules);
        shown.retain(asks);
        shown
    }
}

/// Most bytes of a target's attributes on a card, and of the titles of its parameters: with the longest action, a card fits
/// into a message.
const ATTRIBUTES_BYTES_MAX: usize = 6 * 1024;
const TITLES_BYTES_MAX: usize = 6 * 1024;
/// Framing of one attribute or title in a message, in bytes.
const FRAME_BYTES: usize = 8;

/// The first attributes, and a last one that counts the others.
fn fit_attributes(mut all: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut left = ATTRIBUTES_BYTES_MAX;
    let fits = |(name, value): &&(String, String)| {
        let rest = left.checked_sub(name.len() + value.len() + FRAME_BYTES);
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    let kept = all.iter().take_while(fits).count();
    let left_out = all.len() - kept;
    if left_out > 0 {
        all.truncate(kept);
        all.push((
            "…".to_owned(),
            format!("{left_out} more attributes, too long for a card"),
        ));
    }
    all
}

/// A person by id, with the name in the policy bundle.
pub(in crate::broker) fn person_ref(bundle: &PolicyBundle, id: PersonId) -> PersonRef {
    PersonRef {
        name: bundle.person(&id).map(|person| person.name.clone()),
        id,
    }
}

/// Catalogue titles of the parameters, by the paths of [`Card::parameter_titles`].
fn titles(parameters: &BTreeMap<String, ParamSpec>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (name, spec) in parameters {
        title_of(name.clone(), spec, &mut found);
    }
    // A parameter without its title is shown by its name.
    let mut left = TITLES_BYTES_MAX;
    found.retain(|path, title| {
        let rest = left.checked_sub(path.len() + title.len() + FRAME_BYTES);
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    found
}

fn title_of(path: String, spec: &ParamSpec, found: &mut BTreeMap<String, String>) {
    let mut inside = path.clone();
    let mut ty = &spec.ty;
    while let ParamType::Set(of) = ty {
        inside.push_str("[]");
        ty = of;
    }
    if let ParamType::Record(members) = ty {
        for (name, member) in members {
            title_of(format!("{inside}.{name}"), member, found);
        }
    }
    if let Some(title) = &spec.title {
        found.insert(path, title.clone());
    }
}

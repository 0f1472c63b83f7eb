//! What differs between two policy bundles, in sentences: what people read before the lines themselves.
//!
//! Every part of a bundle that decides has its sentence, so that no change is only a line among others. Texts that the bundle's author
//! chose freely are quoted.

use std::collections::{BTreeMap, BTreeSet};

use super::rule::profile_list;
use super::{
    ApprovalLimits, CatalogueAction, DeclaredCount, ParamSpec, ParamType, PolicyBundle,
    RegisteredService, Remedy, RuleEffect, RuleInfo, ServiceKind, StepUpProfile,
};
use crate::jose::PublicKey;
use crate::model::text::quote;
use crate::model::{
    ActionName, PolicyChanges, Proposed, RegisteredAgent, Reversibility, Risk, format_seconds,
};

/// Everything that differs, in the order in which people read it, without figures: who agrees to changes, what people lose and get
/// (`people`), everything else, and what the check warns of and did not before (`warned`).
pub fn summary(
    before: &PolicyBundle,
    after: &PolicyBundle,
    people: impl IntoIterator<Item = String>,
    warned: &BTreeSet<String>,
) -> Vec<String> {
    let mut all: Vec<String> = change_rule(before, after).into_iter().collect();
    all.extend(people);
    all.extend(changes(before, after));
    let new = warnings(after);
    let new = new.difference(warned);
    all.extend(new.map(|warning| format!("WARNING: {warning}")));
    all
}

/// Most rules that are named to read a fact.
const READING_MAX: usize = 40;

/// What people are shown of a proposed value of a fact: what it says then, until when, what tokens do, and the rules that read it. `None`
/// for a fact that the bundle does not declare, and for a bundle.
pub fn of_fact(bundle: &PolicyBundle, proposed: &Proposed) -> Option<PolicyChanges> {
    let Proposed::Fact {
        fact,
        value,
        seconds,
        ..
    } = proposed
    else {
        return None;
    };
    let declared = bundle.fact(fact)?;
    let says = match value {
        true => "true",
        false => "not true",
    };
    let time = match seconds {
        Some(seconds) => format!("for {}", format_seconds((*seconds).into())),
        None => "as is normal".to_owned(),
    };
    let mut summary = vec![format!("{says} {time}: {}", quote(&declared.title))];
    summary.push(match declared.ends {
        true => "tokens that the rules would not issue with this value end".to_owned(),
        false => "no token ends by it".to_owned(),
    });
    let reading = bundle.rules_reading(fact);
    let more = reading.len().saturating_sub(READING_MAX);
    summary.extend(reading.into_iter().take(READING_MAX).map(|id| {
        let why = bundle.rule(&id).and_then(|rule| rule.why.clone());
        let why = why.map(|why| format!(": {why}")).unwrap_or_default();
        format!("the rule {id} reads it{why}")
    }));
    if more > 0 {
        summary.push(format!("and {more} rules more read it"));
    }
    Some(PolicyChanges {
        summary,
        files: Vec::new(),
    })
}

/// What a plan cannot know of counts: decisions on record lack the numbers of a count that is new to them, and of one that is declared
/// otherwise they have others.
pub fn counts(before: &PolicyBundle, after: &PolicyBundle) -> Vec<String> {
    let sentence = |declared: &DeclaredCount| {
        let name = &declared.name;
        let Some(was) = before.count(name) else {
            return Some(format!(
                "the count {name} is new: this plan decides again as if it were 0"
            ));
        };
        if was != declared {
            return Some(format!(
                "the count {name} is declared otherwise: this plan decides again with the numbers of before"
            ));
        }
        let reading = before.rules_reading_count(name);
        let anew = after.rules_reading_count(name).into_iter();
        let anew: Vec<String> = anew.filter(|id| !reading.contains(id)).collect();
        (!anew.is_empty()).then(|| {
            format!(
                "{} read the count {name} anew: where a decision did not read it this plan decides again as if it were 0",
                anew.join(", ")
            )
        })
    };
    after.counts().filter_map(sentence).collect()
}

/// What the check warns of, without lines, which move.
pub fn warnings(bundle: &PolicyBundle) -> BTreeSet<String> {
    let warnings = bundle.warnings().iter();
    warnings
        .map(|warning| format!("{}: {}", warning.file, warning.message))
        .collect()
}

/// Who agrees to changes, where that differs.
fn change_rule(before: &PolicyBundle, after: &PolicyBundle) -> Option<String> {
    let agreement = |bundle: &PolicyBundle| {
        let profile = bundle.change_profile();
        profile.map_or_else(|| "nobody else".to_owned(), |p| agreement_text(&p))
    };
    let (was, is) = (agreement(before), agreement(after));
    (was != is).then(|| format!("WHO AGREES TO CHANGES: {is} instead of {was}"))
}

fn agreement_text(profile: &StepUpProfile) -> String {
    let texts = profile_texts(profile).into_iter();
    let texts: Vec<String> = texts.map(|(what, text)| format!("{what} {text}")).collect();
    format!("{} ({})", profile.name, texts.join(", "))
}

/// What else differs, but for people: limits, profiles, services, agents, rules, actions, targets.
fn changes(before: &PolicyBundle, after: &PolicyBundle) -> Vec<String> {
    let mut all = Vec::new();
    let mut compare = |kind: &str, things: fn(&PolicyBundle) -> Things| {
        differences(&mut all, kind, &things(before), &things(after));
    };
    compare("the limits of", limits);
    compare("the profile", profiles);
    compare("the zone", |bundle| {
        bundle.evaluator.declared().calendar.things()
    });
    compare("the fact", |bundle| {
        bundle.evaluator.declared().facts.things()
    });
    compare("the count", |bundle| {
        bundle.evaluator.declared().counts.things()
    });
    compare("the service", services);
    compare("the agent", agents);
    compare("the rule", rules);
    compare("the action", actions);
    compare("the entity type", entity_types);
    compare("the target", PolicyBundle::target_texts);
    all
}

/// What each thing is: texts by what they say of it.
pub(super) type Texts = BTreeMap<String, String>;
/// Things by name.
pub(super) type Things = BTreeMap<String, Texts>;

/// A sentence for each thing that comes, goes or is something else; of the last, what differs.
fn differences(all: &mut Vec<String>, kind: &str, before: &Things, after: &Things) {
    for (name, texts) in after {
        let Some(was) = before.get(name) else {
            let texts: Vec<_> = texts
                .iter()
                .filter(|(what, _)| *what != CONDITIONS)
                .map(|(what, is)| format!("{what} {is}"))
                .collect();
            all.push(format!("{kind} {name} comes: {}", texts.join(", ")));
            continue;
        };
        let none = "nothing".to_owned();
        let names: BTreeSet<&String> = texts.keys().chain(was.keys()).collect();
        let differing: Vec<String> = names
            .into_iter()
            .map(|what| {
                (
                    what,
                    was.get(what).unwrap_or(&none),
                    texts.get(what).unwrap_or(&none),
                )
            })
            .filter(|(_, was, is)| was != is)
            .map(|(what, was, is)| difference(what, was, is))
            .collect();
        if !differing.is_empty() {
            all.push(format!("{kind} {name} changes: {}", differing.join(", ")));
        }
    }
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    all.extend(gone.map(|name| format!("{kind} {name} goes")));
}

/// What differs in one text: of lists what they lose and get, of conditions that they do.
fn difference(what: &str, was: &str, is: &str) -> String {
    if what == CONDITIONS {
        return "its conditions are others (the lines that differ say how)".to_owned();
    }
    let (Some(before), Some(after)) = (items(was), items(is)) else {
        return format!("{what} {is} instead of {was}");
    };
    let lost: Vec<&str> = before.difference(&after).copied().collect();
    let got: Vec<&str> = after.difference(&before).copied().collect();
    let mut parts = Vec::new();
    if !lost.is_empty() {
        parts.push(format!("{what} lose {}", lost.join(" ")));
    }
    if !got.is_empty() {
        parts.push(format!("{what} get {}", got.join(" ")));
    }
    parts.join(", ")
}

/// The items of a list as it is written.
fn items(text: &str) -> Option<BTreeSet<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    Some(inner.split_whitespace().collect())
}

/// The label of a digest that only tells whether conditions differ.
const CONDITIONS: &str = "conditions";

fn texts<const N: usize>(all: [(&str, String); N]) -> Texts {
    all.into_iter()
        .map(|(what, text)| (what.to_owned(), text))
        .collect()
}

fn limits(bundle: &PolicyBundle) -> Things {
    let ApprovalLimits {
        asks_per_minute,
        pending_per_agent,
        pending_per_owner,
        opens_per_minute,
        dwell_s,
        back_off_s,
        quarantine,
        quarantine_within_s,
        key_votes_below,
        confirm_at_or_above,
    } = bundle.approval_limits();
    let delays = back_off_s.iter().map(|s| format_seconds((*s).into()));
    let limits = texts([
        ("asks_per_minute", asks_per_minute.to_string()),
        ("pending_per_agent", pending_per_agent.to_string()),
        ("pending_per_owner", pending_per_owner.to_string()),
        ("opens_per_minute", opens_per_minute.to_string()),
        ("dwell", format_seconds((*dwell_s).into())),
        ("back_off", list(delays)),
        ("quarantine", quarantine.to_string()),
        (
            "quarantine_within",
            format_seconds((*quarantine_within_s).into()),
        ),
        ("key_votes_below", key_votes_below.as_str().to_owned()),
        (
            "confirm_at_or_above",
            confirm_at_or_above.as_str().to_owned(),
        ),
    ]);
    let may = match bundle.allows_same_owner_executors() {
        true => "may have the same owner",
        false => "have another owner",
    };
    let executors = texts([("executors of recommendations", may.to_owned())]);
    BTreeMap::from([
        ("approvals".to_owned(), limits),
        ("autonomy".to_owned(), executors),
    ])
}

fn profiles(bundle: &PolicyBundle) -> Things {
    let profiles = bundle.profiles();
    profiles
        .map(|profile| (profile.name.to_string(), profile_texts(profile)))
        .collect()
}

fn profile_texts(profile: &StepUpProfile) -> Texts {
    texts([
        ("quorum", format!("{} of {}", profile.quorum, profile.group)),
        ("method", profile.method.as_str().to_owned()),
        ("wait", format_seconds(profile.wait_s.into())),
        ("good_for", format_seconds(profile.good_for_s.into())),
    ])
}

fn services(bundle: &PolicyBundle) -> Things {
    let service_texts = |service: &RegisteredService| {
        let kind = match service.kind {
            ServiceKind::Validator => "validator",
            ServiceKind::Auditor => "auditor",
        };
        texts([
            ("kind", kind.to_owned()),
            ("audiences", list(service.audiences.iter())),
            ("SPIFFE ID", list(service.spiffe_id.iter())),
            ("keys", list(service.keys.iter().map(PublicKey::thumbprint))),
        ])
    };
    let services = bundle.services();
    services
        .map(|service| (service.id.to_string(), service_texts(service)))
        .collect()
}

fn agents(bundle: &PolicyBundle) -> Things {
    let agent_texts = |agent: &RegisteredAgent| {
        let key = agent.jkt;
        texts([
            ("SPIFFE ID", agent.spiffe_id.to_string()),
            (
                "key",
                key.map_or_else(|| "any".to_owned(), |key| key.to_string()),
            ),
            ("owner", agent.owner.to_string()),
            ("environment", agent.environment.to_string()),
            ("model", quote(&agent.model)),
            ("autonomy", quote(agent.autonomy.as_str())),
            ("executors", list(agent.executors.iter())),
            ("groups", list(agent.groups.iter())),
            (
                "actions",
                list(agent.ceiling.iter().map(ActionName::as_str)),
            ),
        ])
    };
    let agents = bundle.agents();
    agents
        .map(|agent| (agent.id.to_string(), agent_texts(agent)))
        .collect()
}

/// What each rule does. Its conditions are in the lines that differ: here is their digest, which is compared and not shown.
fn rules(bundle: &PolicyBundle) -> Things {
    let rule_texts = |rule: &RuleInfo| {
        let effect = match (rule.effect, &rule.remedy) {
            (RuleEffect::Permit, _) => "permit".to_owned(),
            (RuleEffect::Forbid, None) => "forbid".to_owned(),
            (RuleEffect::Forbid, Some(Remedy::StepUp(profiles))) => {
                let delay = rule.delay_s.map(|seconds| {
                    let time = format_seconds(seconds.into());
                    format!(", or nobody said no for {time}")
                });
                let delay = delay.unwrap_or_default();
                format!(
                    "forbid unless approved under {}{delay}",
                    profile_list(profiles)
                )
            }
            (RuleEffect::Forbid, Some(Remedy::MaxTtl(seconds))) => {
                format!(
                    "forbid beyond a life of {}",
                    format_seconds((*seconds).into())
                )
            }
        };
        texts([
            ("effect", effect),
            ("why", said(rule.why.as_deref())),
            (CONDITIONS, bundle.rules.conditions(&rule.id)),
        ])
    };
    let rules = bundle.rules();
    rules
        .map(|rule| (rule.id.clone(), rule_texts(rule)))
        .collect()
}

fn actions(bundle: &PolicyBundle) -> Things {
    let action_texts = |action: &CatalogueAction| {
        let CatalogueAction {
            name: _,
            title,
            effect,
            reversible,
            undo,
            single_use,
            open_targets,
            never,
            risk,
            groups,
            target_types,
            parameters,
        } = action;
        let yes = |is: &bool| if *is { "yes" } else { "no" }.to_owned();
        texts([
            ("risk", risk.map_or("not said", Risk::as_str).to_owned()),
            ("single use", yes(single_use)),
            ("open targets", yes(open_targets)),
            ("target types", list(target_types.iter())),
            ("groups", list(groups.iter())),
            ("parameters", members(parameters)),
            ("title", quote(title)),
            ("effect", said(effect.as_deref())),
            (
                "reversible",
                reversible
                    .map_or("not said", Reversibility::as_str)
                    .to_owned(),
            ),
            ("never", yes(never)),
            ("undo", said(undo.as_deref())),
        ])
    };
    let actions = bundle.actions();
    actions
        .map(|action| (action.name.to_string(), action_texts(action)))
        .collect()
}

fn entity_types(bundle: &PolicyBundle) -> Things {
    let types = bundle.catalogue.types().iter();
    types.map(|name| (name.clone(), Texts::new())).collect()
}

fn said(text: Option<&str>) -> String {
    text.map_or_else(|| "not said".to_owned(), quote)
}

fn members(specs: &BTreeMap<String, ParamSpec>) -> String {
    let member = |(name, spec): (&String, &ParamSpec)| {
        let ParamSpec {
            ty,
            required,
            sensitive,
            title,
        } = spec;
        let optional = if *required { "" } else { "?" };
        let sensitive = if *sensitive { ", sensitive" } else { "" };
        let title = title.as_deref().map(|title| format!(", {}", quote(title)));
        let title = title.unwrap_or_default();
        format!("{name}{optional}: {}{sensitive}{title}", type_text(ty))
    };
    let all: Vec<String> = specs.iter().map(member).collect();
    format!("{{{}}}", all.join("; "))
}

fn type_text(ty: &ParamType) -> String {
    match ty {
        ParamType::String => "text".to_owned(),
        ParamType::Bool => "true or false".to_owned(),
        ParamType::Long => "an integer".to_owned(),
        ParamType::Set(of) => format!("a set of {}", type_text(of)),
        ParamType::Record(of) => format!("a record {}", members(of)),
    }
}

/// The items in brackets.
fn list(items: impl Iterator<Item = impl ToString>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    format!("[{}]", items.join(" "))
}

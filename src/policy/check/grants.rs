//! What agents can have: that each may operate, that each action of a ceiling can be granted, and that enough people could approve what
//! rules ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use cedar_policy::EntityUid;

use super::decisions;
use super::reading::{Compared, Path};
use super::report::{Check, Report};
use super::samples::{Answer, RuleCase, Samples, profiles_of};
use super::values::{self, Assignment, BINDING};
use crate::model::{
    ActionName, AgentId, EvidenceAges, EvidenceKind, ProfileName, RegisteredAgent, Timestamp,
    VoteMethod,
};
use crate::policy::calendar::Calendar;
use crate::policy::catalogue::CatalogueAction;
use crate::policy::files::{AGENTS, BundleFiles, PEOPLE};
use crate::policy::policy_index::{ScopeKey, met_by};
use crate::policy::rule::RuleEffect;
use crate::policy::{OperateDecision, PolicyBundle};

/// Checks what the rules give to agents. For each profile of a remedy the agents whose requests may ask for it.
pub(super) fn check<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    files: &BundleFiles,
    report: &mut Report<'_>,
) -> BTreeMap<ProfileName, BTreeSet<AgentId>> {
    let bundle = samples.bundle;
    let store = bundle.evaluator.store();
    let mut permits: BTreeMap<Option<&ActionName>, Vec<&RuleCase<'b>>> = BTreeMap::new();
    for case in cases.iter().filter(|case| is_permit(case)) {
        for action in &case.actions {
            let name = action.map(|action| &action.name);
            permits.entry(name).or_default().push(case);
        }
    }
    let agents_text = files.text(AGENTS).unwrap_or_default();
    for agent in bundle.agents.values() {
        let place = (AGENTS, id_line(agents_text, agent.id.as_str()));
        let Some(uid) = store.uid("Agent", agent.id.as_str()) else {
            continue;
        };
        let met: BTreeSet<ScopeKey> = met_by(&uid, store).into_iter().collect();
        let grants = |action: Option<&'b CatalogueAction>| {
            let name = action.map(|action| &action.name);
            let cases = permits.get(&name).into_iter().flatten();
            let mut cases = cases.filter(|case| met.contains(&case.agents));
            cases.any(|case| may_match(samples, case, &uid, action))
        };
        let of_agent = |case: &&RuleCase<'b>| met.contains(&case.agents);
        if grants(None) {
            let in_scope = cases.iter().filter(of_agent);
            if let Some(rules) = operation_denials(samples, in_scope, agent) {
                let message = format!(
                    "the rules never let the agent \"{}\" operate, with evidence just issued and at any hour of a week: {} it; narrow what forbids",
                    agent.id,
                    match rules.is_empty() {
                        true => "no rule allows".to_owned(),
                        false => format!(
                            "{} forbid{}",
                            rules.join(", "),
                            if rules.len() == 1 { "s" } else { "" }
                        ),
                    }
                );
                report.thing(Check::CannotOperate, agent.id.as_str(), place, message);
            }
        } else {
            let message = format!(
                "no rule lets the agent \"{}\" operate, so that it can open no task: write a permit with action == Action::\"operate\" for it",
                agent.id
            );
            report.thing(Check::CannotOperate, agent.id.as_str(), place, message);
        }
        let ceiling = agent.ceiling.iter().filter_map(|name| bundle.action(name));
        let (granted, never): (Vec<&CatalogueAction>, Vec<&CatalogueAction>) =
            ceiling.partition(|action| grants(Some(action)));
        let named = |action: &CatalogueAction| format!("\"{}\"", action.name);
        let never: Vec<String> = never.into_iter().map(named).collect();
        let is_excluded = |action: &&CatalogueAction| {
            let of_action = |case: &&RuleCase<'b>| {
                let mut actions = case.actions.iter().flatten();
                of_agent(case) && actions.any(|of| of.name == action.name)
            };
            let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
            is_excluded(samples, &in_scope, &uid, action)
        };
        let excluded = granted.into_iter().filter(is_excluded);
        let excluded: Vec<String> = excluded.map(named).collect();
        if !excluded.is_empty() {
            let message = format!(
                "the forbids without a remedy together exclude every request of the agent \"{}\" for {}, though its `actions` have it: narrow a \
                 forbid, or take it out of `actions`",
                agent.id,
                excluded.join(", ")
            );
            report.thing(Check::NeverGranted, agent.id.as_str(), place, message);
        }
        if !never.is_empty() {
            let message = format!(
                "no rule ever grants {} to the agent \"{}\", though its `actions` have it: write a permit, or take it out of `actions`",
                never.join(", "),
                agent.id
            );
            report.thing(Check::NeverGranted, agent.id.as_str(), place, message);
        }
    }
    let asked = askers(samples, cases);
    // Where not every rule was asked about, neither is known.
    if !samples.is_spent() {
        quorums(bundle, files, &asked, report);
        decisions::audiences(samples, cases, files, report);
        decisions::quorums_together(samples, cases, &asked, files, report);
    }
    decisions::irreversible(samples, cases, files, report);
    decisions::delays(samples, cases, report);
    asked
}

/// The rules by which an agent may never operate, at any hour of a week and at any moment that a rule names; nothing if it may, or if
/// the moments prove nothing.
fn operation_denials<'c, 'b: 'c>(
    samples: &Samples<'b>,
    in_scope: impl Iterator<Item = &'c RuleCase<'b>>,
    agent: &RegisteredAgent,
) -> Option<Vec<String>> {
    let of_operate = in_scope.filter(|case| case.actions.iter().any(Option::is_none));
    let calendar = &samples.bundle.evaluator.declared().calendar;
    let (moments, is_whole) = moments(calendar, of_operate, WEEK_HOURS);
    let mut denials = Vec::new();
    for now in moments {
        if !samples.spend(1) {
            return None;
        }
        let kind = EvidenceKind::JwtSvid;
        let ages = EvidenceAges::ZERO;
        match samples.bundle.may_operate(agent, kind, ages, BINDING, now) {
            OperateDecision::Allowed { .. } => return None,
            OperateDecision::Denied { rules, .. } => denials = rules,
        }
    }
    let named = denials.iter().map(|rule| format!("\"{}\"", rule.id));
    is_whole.then(|| named.collect())
}

/// The moments that tell the rules apart, and so many hours from their own day on; one moment where no rule asks for the time. Whether
/// no other moment can change an answer.
pub(super) fn moments<'c, 'b: 'c>(
    calendar: &Calendar,
    cases: impl Iterator<Item = &'c RuleCase<'b>>,
    hours: i64,
) -> (Vec<Timestamp>, bool) {
    let mut moments = BTreeSet::new();
    let mut local: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    let mut is_whole = true;
    let mut has_now = false;
    for case in cases {
        has_now |= case.reading.variables.contains_key(&["now".to_owned()][..]);
        if let Some(compared) = case.reading.variables.get(&["now".to_owned()][..]) {
            let (own, are_all) = values::moments(compared);
            is_whole &= are_all && !case.reading.is_undecided;
            moments.extend(own);
        }
        for (path, compared) in &case.reading.variables {
            if let [first, zone, _] = path.as_slice()
                && first == "local"
            {
                let around = compared.numbers.iter().flat_map(|n| [n - 1, *n, n + 1]);
                let within = around.map(|ms| ms.clamp(0, values::DAY_MS - 1));
                let times: &mut BTreeSet<i64> = local.entry(zone.as_str()).or_default();
                times.extend(within.chain([values::DAY_MS / 2]));
                is_whole &= !case.reading.is_undecided;
            }
        }
    }
    let has_local = !local.is_empty();
    // Which weekday a moment is, or how far apart two zones are, is not the same in every year.
    is_whole &= local.len() < 2 && !(has_now && has_local);
    for (zone, times) in local {
        let times: Vec<i64> = times.into_iter().collect();
        let own = calendar.moments(zone, Timestamp::from_millis(LATER_MS), &times);
        moments.extend(own.into_iter().map(Timestamp::millis));
    }
    if moments.is_empty() {
        moments.insert(LATER_MS);
    } else {
        // Where a weekday counts, each of them at each hour.
        let hours = if has_local { WEEK_HOURS } else { hours };
        moments.extend((0..hours).map(|hour| LATER_MS + hour * 3_600_000));
    }
    is_whole &= moments.len() <= MOMENTS_MAX;
    let moments = moments.into_iter().take(MOMENTS_MAX);
    (moments.map(Timestamp::from_millis).collect(), is_whole)
}

/// Whether the forbids without a remedy together exclude every request of an agent for an action that a permit matches. Only forbids
/// of every target count that read the context alone: of others the samples of one rule are not those of the next.
fn is_excluded<'b>(
    samples: &Samples<'b>,
    in_scope: &[&RuleCase<'b>],
    agent: &EntityUid,
    action: &'b CatalogueAction,
) -> bool {
    let excludes = |case: &&&RuleCase<'b>| {
        let is_narrowed = |kind: &String| case.population.narrowed.contains(kind);
        // A forbid for every agent without a condition is a finding of its own.
        let is_found = case.exceptions.is_empty() && !case.population.narrowed.contains("Agent");
        case.info.effect == RuleEffect::Forbid
            && case.info.remedy.is_none()
            && case.reading.is_of_context()
            && !case.names_any_of(&action.target_types)
            && !action.target_types.iter().any(is_narrowed)
            && !is_found
    };
    let forbids: Vec<_> = in_scope.iter().filter(excludes).collect();
    if forbids.is_empty() || action.never {
        return false;
    }
    for permit in in_scope.iter().filter(|case| is_permit(case)) {
        let mut compared: BTreeMap<Path, Compared> = BTreeMap::new();
        for case in forbids.iter().copied().chain([permit]) {
            if case.reading.is_undecided {
                return false;
            }
            for (path, with) in &case.reading.variables {
                compared.entry(path.clone()).or_default().merge(with);
            }
        }
        if !permit.population.is_whole {
            return false;
        }
        for scene in samples.scenes_of(permit, agent, Some(action)) {
            let (assignments, are_all) = samples.assignments(&scene, &compared);
            let is_met = |case: &RuleCase<'b>, assignment: &Assignment| {
                samples.ask_once(case, &scene, assignment) == Answer::Matches
            };
            let is_granted = |assignment: &Assignment| {
                is_met(permit, assignment) && !forbids.iter().any(|case| is_met(case, assignment))
            };
            if assignments.iter().any(is_granted) || !are_all || samples.is_spent() {
                return false;
            }
        }
    }
    true
}

/// For each profile of a remedy the agents whose requests may ask for it.
pub(super) fn askers<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
) -> BTreeMap<ProfileName, BTreeSet<AgentId>> {
    let bundle = samples.bundle;
    let store = bundle.evaluator.store();
    let mut asked: BTreeMap<ProfileName, BTreeSet<AgentId>> = BTreeMap::new();
    for agent in bundle.agents.values() {
        let Some(uid) = store.uid("Agent", agent.id.as_str()) else {
            continue;
        };
        let met: BTreeSet<ScopeKey> = met_by(&uid, store).into_iter().collect();
        let mut profiles: BTreeSet<&ProfileName> = BTreeSet::new();
        for case in cases.iter().filter(|case| met.contains(&case.agents)) {
            if profiles_of(case).all(|profile| profiles.contains(profile)) {
                continue;
            }
            let in_ceiling = |action: &&'b CatalogueAction| agent.ceiling.contains(&action.name);
            let mut actions = case.actions.iter().copied().flatten().filter(in_ceiling);
            if actions.any(|action| may_match(samples, case, &uid, Some(action))) {
                profiles.extend(profiles_of(case));
            }
        }
        for profile in profiles {
            let agents = asked.entry(profile.clone()).or_default();
            agents.insert(agent.id.clone());
        }
    }
    asked
}

pub(super) fn is_permit(case: &RuleCase<'_>) -> bool {
    case.info.effect == RuleEffect::Permit
}

/// Whether a rule whose scope has this action matches some request of this agent for it; also when that could not be decided.
fn may_match<'b>(
    samples: &Samples<'b>,
    case: &RuleCase<'b>,
    agent: &EntityUid,
    action: Option<&'b CatalogueAction>,
) -> bool {
    // What cannot be asked about any more is no finding.
    if samples.is_spent() {
        return true;
    }
    samples.scenes_of(case, agent, action).iter().any(|scene| {
        let mut matches = false;
        let whole = samples.ask(case, scene, &[], |_, answer| {
            matches = answer == Answer::Matches;
            match matches {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        matches || !whole
    })
}

/// Profiles that some agent's request may ask for, and that too few people could satisfy.
fn quorums(
    bundle: &PolicyBundle,
    files: &BundleFiles,
    asked: &BTreeMap<ProfileName, BTreeSet<AgentId>>,
    report: &mut Report<'_>,
) {
    let text = files.text(PEOPLE).unwrap_or_default();
    for (name, agents) in asked {
        let Some(profile) = bundle.profile(name) else {
            continue;
        };
        let members: BTreeSet<_> = bundle
            .people()
            .filter(|p| profile.takes(p))
            .map(|p| &p.id)
            .collect();
        let short: Vec<String> = agents
            .iter()
            .filter_map(|id| bundle.agents.get(id))
            .filter_map(|agent| {
                let owners = bundle.owners_of(agent);
                let able = owners.iter().map(|owners| {
                    let others = members.iter().filter(|member| !owners.contains(**member));
                    others.count()
                });
                let able = able.min().unwrap_or(0);
                let is_short = u32::try_from(able).is_ok_and(|able| able < profile.quorum);
                is_short.then(|| format!("{} ({able})", agent.id))
            })
            .collect();
        if short.is_empty() {
            continue;
        }
        let passkeys = match profile.method {
            VoteMethod::Passkey => "; who has a passkey is not known here",
            VoteMethod::Key => "",
        };
        let message = format!(
            "profile {name}: its quorum is {}, and fewer people of group \"{}\" could approve for {}: an agent's owner never counts{passkeys}; add \
             approvers to the group, or lower the quorum",
            profile.quorum,
            profile.group,
            first_of(&short)
        );
        let line = table_line(text, &format!("profile.{name}"));
        report.thing(
            Check::QuorumUnreachable,
            name.as_str(),
            (PEOPLE, line),
            message,
        );
    }
}

/// The line of the table that has this id.
fn id_line(text: &str, id: &str) -> Option<usize> {
    let has_id = |line: &str| {
        let line = line.trim_start();
        line.strip_prefix("id").is_some_and(|rest| {
            rest.trim_start().starts_with('=') && rest.contains(&format!("\"{id}\""))
        })
    };
    text.lines().position(has_id).map(|at| at + 1)
}

/// The line of a table's head.
pub(super) fn table_line(text: &str, name: &str) -> Option<usize> {
    let head = format!("[{name}]");
    text.lines()
        .position(|line| line.trim_start().starts_with(&head))
        .map(|at| at + 1)
}

/// The first few of these names.
pub(super) fn first_of(names: &[String]) -> String {
    let mut text = names
        .iter()
        .take(NAMED_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let more = names.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Most names in one message.
const NAMED_MAX: usize = 5;
/// 00:00 on Friday, 1 January 2100: after every moment that a rule is likely to name.
const LATER_MS: i64 = 4_102_444_800_000;
pub(super) const DAY_HOURS: i64 = 24;
const WEEK_HOURS: i64 = 7 * DAY_HOURS;
/// Most moments that are tried.
pub(super) const MOMENTS_MAX: usize = 1_024;

//! What agents can have: that each may operate, that each action of a ceiling can be granted, to whom tokens for it may go, and that
//! enough people could approve what rules ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use cedar_policy::EntityUid;

use super::reading::{Compared, Path};
use super::report::{Check, Report};
use super::samples::{Answer, RuleCase, Samples};
use super::values::{self, Assignment, BINDING, Sample};
use crate::model::{
    Action, ActionName, AgentId, Audience, EvidenceAges, EvidenceKind, PersonId, ProfileName,
    RegisteredAgent, Reversibility, Target, Timestamp, VoteMethod,
};
use crate::policy::catalogue::CatalogueAction;
use crate::policy::files::{self, AGENTS, BundleFiles, PEOPLE, SCHEMA};
use crate::policy::policy_index::{ScopeKey, met_by};
use crate::policy::rule::{Remedy, RuleEffect};
use crate::policy::schema::declaration_line;
use crate::policy::{
    AuthzDecision, AuthzRequest, OperateDecision, PolicyBundle, StepUpProfile, can_be_filled,
};

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
        audiences(samples, cases, files, report);
        quorums_together(samples, cases, files, report);
    }
    irreversible(samples, cases, files, report);
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
    let (moments, is_whole) = moments(of_operate, WEEK_HOURS);
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
fn moments<'c, 'b: 'c>(
    cases: impl Iterator<Item = &'c RuleCase<'b>>,
    hours: i64,
) -> (Vec<Timestamp>, bool) {
    let mut moments = BTreeSet::new();
    let mut is_whole = true;
    for case in cases {
        if let Some(compared) = case.reading.variables.get(&["now".to_owned()][..]) {
            let (own, are_all) = values::moments(compared);
            is_whole &= are_all && !case.reading.is_undecided;
            moments.extend(own);
        }
    }
    if moments.is_empty() {
        moments.insert(LATER_MS);
    } else {
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
            let Some(Remedy::StepUp(profile)) = &case.info.remedy else {
                continue;
            };
            if profiles.contains(profile) {
                continue;
            }
            let in_ceiling = |action: &&'b CatalogueAction| agent.ceiling.contains(&action.name);
            let mut actions = case.actions.iter().copied().flatten().filter(in_ceiling);
            if actions.any(|action| may_match(samples, case, &uid, Some(action))) {
                profiles.insert(profile);
            }
        }
        for profile in profiles {
            let agents = asked.entry(profile.clone()).or_default();
            agents.insert(agent.id.clone());
        }
    }
    asked
}

fn is_permit(case: &RuleCase<'_>) -> bool {
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
                let able = members.len() - usize::from(members.contains(&agent.owner));
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

/// Actions of which an agent may have tokens for the validators of others.
fn audiences<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    files: &BundleFiles,
    report: &mut Report<'_>,
) {
    let bundle = samples.bundle;
    let known: Vec<Sample> = samples.audiences().collect();
    if known.is_empty() && bundle.agents().next().is_some() {
        let message = "no validator is registered, so that no token could be for anybody: add a [[validator]] with its `audiences`";
        let line = None;
        report.thing(Check::NoAudience, PEOPLE, (PEOPLE, line), message);
    }
    if known.len() < 2 {
        return;
    }
    let text = files.text(SCHEMA).unwrap_or_default();
    let mut left = DECISIONS_MAX;
    let actions = bundle.catalogue.actions().filter(|action| !action.never);
    for action in actions {
        let of_action = |case: &&RuleCase<'b>| {
            let mut actions = case.actions.iter().flatten();
            actions.any(|of| of.name == action.name)
        };
        let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
        if in_scope
            .iter()
            .any(|case| binds_alone(samples, case, action, &known))
        {
            continue;
        }
        let reads_audience =
            |case: &&&RuleCase<'b>| case.reading.variables.contains_key(&audience()[..]);
        let open = match in_scope.iter().any(|case| reads_audience(&case)) {
            false => Some((String::new(), known.len())),
            true => several_audiences(samples, &in_scope, action, &mut left),
        };
        let Some((scene, count)) = open else {
            continue;
        };
        let line = declaration_line(text, action.name.as_str());
        let of = match scene.is_empty() {
            true => String::new(),
            false => format!(" for {scene}"),
        };
        let message = format!(
            "action \"{}\": a token{of} may be for any of {count} audiences: bind it to its own with a rule for every agent and target, such as \
             forbid (principal, action == Action::\"{}\", resource) unless {{ context.audience == \"{}\" }}",
            action.name,
            action.name,
            bundle.people.audiences.first().map_or("", Audience::as_str)
        );
        report.thing(
            Check::AnyAudience,
            action.name.as_str(),
            (SCHEMA, line),
            message,
        );
    }
}

fn audience() -> Path {
    vec!["audience".to_owned()]
}

/// Whether a forbid for every agent and target leaves one audience at most, whatever else a request has.
fn binds_alone<'b>(
    samples: &Samples<'b>,
    case: &RuleCase<'b>,
    action: &'b CatalogueAction,
    known: &[Sample],
) -> bool {
    let is_narrowed = |kind: &str| case.population.narrowed.contains(kind);
    let reads_it_alone = case
        .reading
        .variables
        .keys()
        .all(|path| *path == audience())
        && case.reading.is_of_context()
        && !case.names_any_of(&action.target_types);
    let is_for_all = case.info.effect == RuleEffect::Forbid
        && case.info.remedy.is_none()
        && reads_it_alone
        && !is_narrowed("Agent")
        && !action.target_types.iter().any(|kind| is_narrowed(kind));
    let mut scenes = samples.scenes(case, Some(action));
    let leaves = |audience_of: &&Sample| {
        let asked = vec![(audience(), Some((*audience_of).clone()))];
        let scene = samples.scenes(case, Some(action)).next();
        scene.is_none_or(|scene| samples.ask_once(case, &scene, &asked) != Answer::Matches)
    };
    is_for_all && scenes.next().is_some() && known.iter().filter(leaves).count() <= 1
}

/// A request of an agent on some target for which the rules leave several audiences, with how many; nothing if they leave one at most.
/// An audience is left where the rules would allow a request for it, or ask people. `left`: how many decisions may still be asked for.
fn several_audiences<'b>(
    samples: &Samples<'b>,
    in_scope: &[&RuleCase<'b>],
    action: &'b CatalogueAction,
    left: &mut usize,
) -> Option<(String, usize)> {
    let bundle = samples.bundle;
    let has_it = |agent: &&Arc<RegisteredAgent>| agent.ceiling.contains(&action.name);
    for agent in bundle.agents().filter(has_it) {
        let mut audiences: BTreeMap<Target, BTreeSet<Audience>> = BTreeMap::new();
        decides_once(
            samples,
            in_scope,
            agent,
            action,
            Extent::FEW,
            left,
            |asked, decision| {
                let is_left = !matches!(decision, AuthzDecision::Denied { .. });
                if is_left {
                    let left = audiences.entry(asked.target.clone()).or_default();
                    left.insert(asked.audience.clone());
                }
                false
            },
        );
        let several = audiences.into_iter().find(|(_, left)| left.len() > 1);
        if let Some((target, audiences)) = several {
            let scene = format!("{} on {target}", agent.id);
            return Some((scene, audiences.len()));
        }
    }
    None
}

/// Irreversible actions that an agent can have while nobody is asked.
fn irreversible<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    files: &BundleFiles,
    report: &mut Report<'_>,
) {
    let bundle = samples.bundle;
    let text = files.text(files::SCHEMA).unwrap_or_default();
    let mut left = DECISIONS_MAX;
    for action in bundle
        .catalogue
        .actions()
        .filter(|action| action.reversibility() == Reversibility::Irreversible)
    {
        let with = bundle
            .agents
            .values()
            .filter(|agent| agent.ceiling.contains(&action.name));
        let of_action = |case: &&RuleCase<'b>| {
            let mut actions = case.actions.iter().flatten();
            actions.any(|of| of.name == action.name)
        };
        let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
        let alone: Vec<String> = with
            .filter(|agent| {
                let is_alone = |_: &Action, decision: &AuthzDecision| {
                    matches!(decision, AuthzDecision::Allowed { .. })
                };
                decides_once(
                    samples,
                    &in_scope,
                    agent,
                    action,
                    Extent::ALL,
                    &mut left,
                    is_alone,
                )
            })
            .map(|agent| agent.id.to_string())
            .collect();
        if !alone.is_empty() {
            let line = declaration_line(text, action.name.as_str());
            let message = format!(
                "action \"{}\" is irreversible, and no person is asked before {} may have it: write a forbid with @step_up for it",
                action.name,
                first_of(&alone)
            );
            report.thing(
                Check::IrreversibleAlone,
                action.name.as_str(),
                (SCHEMA, line),
                message,
            );
        }
    }
}

/// How many requests and moments are tried for one agent, action and target.
#[derive(Clone, Copy)]
struct Extent {
    requests: usize,
    moments: usize,
}

impl Extent {
    const ALL: Self = Self {
        requests: 32,
        moments: MOMENTS_MAX,
    };
    const FEW: Self = Self {
        requests: 8,
        moments: 4,
    };
}

/// Whether the rules decide so about some request of an agent for an action that has no approval: on a target of each class that the
/// rules in scope tell apart, for each audience, at the moments and with some of the values of the context that they tell apart. `left`:
/// how many decisions may still be asked for.
fn decides_once<'b>(
    samples: &Samples<'b>,
    in_scope: &[&RuleCase<'b>],
    agent: &RegisteredAgent,
    action: &'b CatalogueAction,
    extent: Extent,
    left: &mut usize,
    mut decides: impl FnMut(&Action, &AuthzDecision) -> bool,
) -> bool {
    let bundle = samples.bundle;
    let (moments, _) = moments(in_scope.iter().copied(), DAY_HOURS);
    let few = moments.len().div_ceil(Extent::FEW.moments).max(1);
    let step = moments.len().div_ceil(extent.moments).max(1);
    let mut compared: BTreeMap<Path, Compared> = BTreeMap::new();
    for case in in_scope {
        for (path, with) in &case.reading.variables {
            let is_of_others = ["now", "approvals", "audience"].map(|name| vec![name.to_owned()]);
            if !is_of_others.contains(path) {
                compared.entry(path.clone()).or_default().merge(with);
            }
        }
    }
    let approvals = BTreeSet::new();
    for target in samples.classes_of_targets(action, in_scope) {
        let requests = samples.requests(agent, action, &target, &compared, extent.requests);
        for (n, asked) in requests.into_iter().enumerate() {
            // The first at every moment, the others at some.
            let step = if n == 0 { step } else { few };
            for audience in &bundle.people.audiences {
                let action = Action {
                    name: action.name.clone(),
                    target: target.clone(),
                    audience: audience.clone(),
                    parameters: asked.parameters.clone(),
                };
                for now in moments.iter().step_by(step) {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        return false;
                    }
                    let decision = bundle.authorize(&AuthzRequest {
                        agent,
                        action: &action,
                        ttl_ms: asked.ttl_ms,
                        approvals: &approvals,
                        evidence_kind: EvidenceKind::JwtSvid,
                        evidence_ages: asked.ages,
                        binding: BINDING,
                        task_age_ms: asked.task_age_ms,
                        task_depth: 0,
                        now: *now,
                    });
                    if decides(&action, &decision) {
                        return true;
                    }
                }
            }
        }
    }
    false
}

/// Requests that need approvals under several profiles which too few different people can give.
fn quorums_together<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    files: &BundleFiles,
    report: &mut Report<'_>,
) {
    let bundle = samples.bundle;
    let text = files.text(PEOPLE).unwrap_or_default();
    let mut told = BTreeSet::new();
    let mut left = DECISIONS_MAX;
    for action in bundle.catalogue.actions() {
        let of_action = |case: &&RuleCase<'b>| {
            let mut actions = case.actions.iter().flatten();
            actions.any(|of| of.name == action.name)
        };
        let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
        let asked = in_scope.iter().filter_map(|case| match &case.info.remedy {
            Some(Remedy::StepUp(profile)) => Some(profile),
            Some(Remedy::MaxTtl(_)) | None => None,
        });
        let asked: BTreeSet<&ProfileName> = asked.collect();
        let all: Vec<&StepUpProfile> = asked
            .iter()
            .filter_map(|name| bundle.profile(name))
            .collect();
        let has_it = |agent: &&Arc<RegisteredAgent>| agent.ceiling.contains(&action.name);
        // Where every profile at once has enough people no request can need more.
        let is_short = |agent: &&Arc<RegisteredAgent>| !has_enough_people(bundle, agent, &all);
        for agent in bundle.agents().filter(has_it).filter(is_short) {
            decides_once(
                samples,
                &in_scope,
                agent,
                action,
                Extent::ALL,
                &mut left,
                |_, decision| {
                    let AuthzDecision::Needs { profiles, .. } = decision else {
                        return false;
                    };
                    let names: Vec<&ProfileName> = profiles.iter().map(|p| &p.name).collect();
                    let defined = names.iter().filter_map(|name| bundle.profile(name));
                    let defined: Vec<&StepUpProfile> = defined.collect();
                    let key = (agent.owner.clone(), format!("{names:?}"));
                    if names.len() < 2
                        || !told.insert(key)
                        || has_enough_people(bundle, agent, &defined)
                    {
                        return false;
                    }
                    let last = names.last().map_or("", |name| name.as_str());
                    let listed: Vec<String> = names.iter().map(ToString::to_string).collect();
                    let message = format!(
                        "{} of {} may need approvals under {} together, and too few different people could give them: each person counts once, and an \
                     agent's owner never; add approvers, or let one profile lift both rules",
                        action.name,
                        agent.id,
                        listed.join(" and "),
                    );
                    let line = table_line(text, &format!("profile.{last}"));
                    report.thing(Check::QuorumUnreachable, last, (PEOPLE, line), message);
                    false
                },
            );
        }
    }
}

/// Whether the quorums of these profiles can be filled by different people other than the agent's owner.
fn has_enough_people(
    bundle: &PolicyBundle,
    agent: &RegisteredAgent,
    profiles: &[&StepUpProfile],
) -> bool {
    let able = |profile: &StepUpProfile| -> Vec<PersonId> {
        let people = bundle.people().filter(|person| profile.takes(person));
        let others = people.filter(|person| person.id != agent.owner);
        others.map(|person| person.id.clone()).collect()
    };
    let able: Vec<(u32, Vec<PersonId>)> = profiles.iter().map(|p| (p.quorum, able(p))).collect();
    let seats = able.iter().flat_map(|(quorum, able)| {
        let quorum = usize::try_from(*quorum).unwrap_or(usize::MAX);
        std::iter::repeat_n(able.as_slice(), quorum)
    });
    can_be_filled(&seats.collect::<Vec<_>>())
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
fn first_of(names: &[String]) -> String {
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
const DAY_HOURS: i64 = 24;
const WEEK_HOURS: i64 = 7 * DAY_HOURS;
/// Most moments that are tried.
const MOMENTS_MAX: usize = 1_024;
/// Most decisions that each question about the whole bundle asks for.
const DECISIONS_MAX: usize = 20_000;

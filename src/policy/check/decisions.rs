//! What whole decisions about sample requests say: the audiences that a token could be for, irreversible actions without people, and
//! quorums that one request needs together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::grants::{DAY_HOURS, MOMENTS_MAX, first_of, moments, table_line};
use super::location;
use super::reading::{Compared, Path};
use super::report::{Check, Report};
use super::samples::{Answer, RuleCase, Samples, profiles_of};
use super::values::{Assignment, BINDING, Sample};
use crate::model::{
    Action, AgentId, Audience, CountName, CountValues, EvidenceAges, EvidenceKind, FactName,
    FactValues, Param, PersonId, ProfileName, RegisteredAgent, Reversibility, Target,
};
use crate::policy::catalogue::CatalogueAction;
use crate::policy::files::{self, BundleFiles, PEOPLE, SCHEMA};
use crate::policy::rule::RuleEffect;
use crate::policy::schema::WAITED;
use crate::policy::schema::declaration_line;
use crate::policy::{AuthzDecision, AuthzRequest, PolicyBundle, StepUpProfile, can_be_filled};

/// Actions of which an agent may have tokens for the validators of others.
pub(super) fn audiences<'b>(
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
        let of_action = |case: &&RuleCase<'b>| case.has_action(&action.name);
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
    if left == 0 {
        report.not_asked(Check::AnyAudience, DECISIONS_MAX);
    }
}

fn audience() -> Path {
    vec!["audience".to_owned()]
}

/// Whether a forbid for every agent and target leaves one audience at most, for every other part of a request.
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
            (None, SampleCounts::FEW),
            left,
            |asked, decision| {
                let is_left = !matches!(decision, AuthzDecision::Denied { .. });
                if is_left {
                    let left = audiences.entry(asked.action.target.clone()).or_default();
                    left.insert(asked.action.audience.clone());
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

/// Irreversible actions that an agent can have without a person being asked.
pub(super) fn irreversible<'b>(
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
        let of_action = |case: &&RuleCase<'b>| case.has_action(&action.name);
        let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
        let alone: Vec<String> = with
            .filter(|agent| {
                // What time alone lets through has nobody's yes.
                let is_alone = |_: &AuthzRequest<'_>, decision: &AuthzDecision| match decision {
                    AuthzDecision::Allowed { .. } => true,
                    AuthzDecision::Needs { delay, .. } => {
                        delay.as_ref().is_some_and(|delay| delay.needs.is_empty())
                    }
                    AuthzDecision::Denied { .. } => false,
                };
                decides_once(
                    samples,
                    &in_scope,
                    agent,
                    action,
                    (None, SampleCounts::ALL),
                    &mut left,
                    is_alone,
                )
            })
            .map(|agent| agent.id.to_string())
            .collect();
        if !alone.is_empty() {
            let line = declaration_line(text, action.name.as_str());
            let message = format!(
                "action \"{}\" is irreversible, and nobody has to approve it before {} may have it: write a forbid with @step_up and without @delay for it",
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
    if left == 0 {
        report.not_asked(Check::IrreversibleAlone, DECISIONS_MAX);
    }
}

/// Delays that change nothing for any request: after them as many people are asked as before, or others.
pub(super) fn delays<'b>(samples: &Samples<'b>, cases: &[RuleCase<'b>], report: &mut Report<'_>) {
    let bundle = samples.bundle;
    let delayed: Vec<&RuleCase<'b>> = cases
        .iter()
        .filter(|case| case.info.delay_s.is_some())
        .collect();
    // Of each rule whether its delay changed a decision, or else a request that asks for its people.
    let mut found: BTreeMap<&str, Result<(), String>> = BTreeMap::new();
    let mut left = DECISIONS_MAX;
    for action in bundle.catalogue.actions() {
        if !delayed.iter().any(|case| case.has_action(&action.name)) {
            continue;
        }
        let of_action = |case: &&RuleCase<'b>| case.has_action(&action.name);
        let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
        let has_it = |agent: &&Arc<RegisteredAgent>| agent.ceiling.contains(&action.name);
        for agent in bundle.agents().filter(has_it) {
            for executor in executors_of(agent) {
                let note = |asked: &AuthzRequest<'_>, decision: &AuthzDecision| {
                    let AuthzDecision::Needs { delay, rules, .. } = decision else {
                        return false;
                    };
                    for case in &delayed {
                        if !rules.iter().any(|rule| *rule.id == *case.info.id) {
                            continue;
                        }
                        let scene = || {
                            format!(
                                "{} on {} of {}",
                                asked.action.name, asked.action.target, agent.id
                            )
                        };
                        let known = found.entry(&case.info.id).or_insert_with(|| Err(scene()));
                        if delay.is_some() {
                            *known = Ok(());
                        }
                    }
                    false
                };
                let extent = (executor, SampleCounts::ALL);
                decides_once(samples, &in_scope, agent, action, extent, &mut left, note);
            }
        }
    }
    if left == 0 {
        report.not_asked(Check::DelayChangesNothing, DECISIONS_MAX);
        return;
    }
    for case in delayed {
        if let Some(Err(scene)) = found.get(&*case.info.id) {
            let message = format!(
                "@delay changes nothing, such as for {scene}: another rule asks the same people all the time, or others would be asked after it; give \
                 that rule the same delay, ask for both profiles in one rule (@step_up(\"one + another\")), or remove @delay"
            );
            let at = location::annotation(&case.info.text, "delay");
            report.rule(Check::DelayChangesNothing, case.info, at, message);
        }
    }
}

/// The agents that may execute what an agent recommends; of any other agent nobody, once.
fn executors_of(agent: &RegisteredAgent) -> impl Iterator<Item = Option<&AgentId>> {
    let alone = agent.executors.is_empty().then_some(None);
    agent.executors.iter().map(Some).chain(alone)
}

/// How many requests and moments are tried for one agent, action and target.
#[derive(Clone, Copy)]
struct SampleCounts {
    requests: usize,
    moments: usize,
}

impl SampleCounts {
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
/// rules in scope tell apart, for each audience, at the moments and with some of the values of the context that they tell apart. `executor`:
/// of a recommendation. `left`: how many decisions may still be asked for.
fn decides_once<'b>(
    samples: &Samples<'b>,
    in_scope: &[&RuleCase<'b>],
    agent: &RegisteredAgent,
    action: &'b CatalogueAction,
    (executor, extent): (Option<&AgentId>, SampleCounts),
    left: &mut usize,
    mut decides: impl FnMut(&AuthzRequest<'_>, &AuthzDecision) -> bool,
) -> bool {
    let bundle = samples.bundle;
    let calendar = &bundle.evaluator.declared().calendar;
    let (moments, _) = moments(calendar, in_scope.iter().copied(), DAY_HOURS);
    let few = moments.len().div_ceil(SampleCounts::FEW.moments).max(1);
    let step = moments.len().div_ceil(extent.moments).max(1);
    let mut compared: BTreeMap<Path, Compared> = BTreeMap::new();
    for case in in_scope {
        for (path, with) in &case.reading.variables {
            let is_of_others = ["now", "approvals", "audience"].map(|name| vec![name.to_owned()]);
            let is_local = path.first().is_some_and(|first| first == "local");
            if !is_of_others.contains(path) && !is_local {
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
                    let question = AuthzRequest {
                        agent,
                        action: &action,
                        ttl_ms: asked.ttl_ms,
                        approvals: &approvals,
                        evidence_kind: EvidenceKind::JwtSvid,
                        evidence_ages: asked.ages,
                        binding: BINDING,
                        task_age_ms: asked.task_age_ms,
                        task_depth: 0,
                        waited_ms: asked.waited_ms,
                        now: *now,
                        executor,
                        facts: &asked.facts,
                        counts: &asked.counts,
                    };
                    let decision = bundle.authorize(&question);
                    if decides(&question, &decision) {
                        return true;
                    }
                }
            }
        }
    }
    false
}

/// Requests that need approvals under several profiles which too few different people can give, and recommendations that need one which
/// only the executor's rules ask for. `asked`: the agents whose own requests may ask for a profile; what too few of its people could
/// approve for them is a finding of its own.
pub(super) fn quorums_together<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    asked: &BTreeMap<ProfileName, BTreeSet<AgentId>>,
    files: &BundleFiles,
    report: &mut Report<'_>,
) {
    let bundle = samples.bundle;
    let text = files.text(PEOPLE).unwrap_or_default();
    let mut told = BTreeSet::new();
    let mut left = DECISIONS_MAX;
    for action in bundle.catalogue.actions() {
        let of_action = |case: &&RuleCase<'b>| case.has_action(&action.name);
        let in_scope: Vec<_> = cases.iter().filter(of_action).collect();
        let profiles = in_scope.iter().flat_map(|case| profiles_of(case));
        let profiles: BTreeSet<&ProfileName> = profiles.collect();
        let all: Vec<&StepUpProfile> = profiles
            .iter()
            .filter_map(|name| bundle.profile(name))
            .collect();
        let has_it = |agent: &&Arc<RegisteredAgent>| agent.ceiling.contains(&action.name);
        for agent in bundle.agents().filter(has_it) {
            let with_owners = executors_of(agent).zip(bundle.owners_of(agent));
            // Where every profile at once has enough people no request can need more.
            let is_short = |(_, owners): &(Option<&AgentId>, BTreeSet<PersonId>)| {
                !has_enough_people(bundle, owners, &all)
            };
            for (executor, owners) in with_owners.filter(is_short) {
                let extent = (executor, SampleCounts::ALL);
                decides_once(
                    samples,
                    &in_scope,
                    agent,
                    action,
                    extent,
                    &mut left,
                    |_, decision| {
                        let AuthzDecision::Needs { profiles, .. } = decision else {
                            return false;
                        };
                        let names: Vec<&ProfileName> = profiles.iter().map(|p| &p.name).collect();
                        let defined = names.iter().filter_map(|name| bundle.profile(name));
                        let defined: Vec<&StepUpProfile> = defined.collect();
                        let is_told = match names.as_slice() {
                            [one] => asked
                                .get(*one)
                                .is_some_and(|agents| agents.contains(&agent.id)),
                            _ => false,
                        };
                        if is_told
                            || has_enough_people(bundle, &owners, &defined)
                            || !told.insert((owners.clone(), format!("{names:?}")))
                        {
                            return false;
                        }
                        let last = names.last().map_or("", |name| name.as_str());
                        let listed: Vec<String> = names.iter().map(ToString::to_string).collect();
                        let of = match executor {
                            Some(executor) => format!("{} recommended to {executor}", agent.id),
                            None => agent.id.to_string(),
                        };
                        let together = if listed.len() > 1 { " together" } else { "" };
                        let message = format!(
                            "{} of {of} may need approvals under {}{together}, and too few different people could give them: each person counts once, and an \
                     agent's owner never; add approvers, or let one profile lift both rules",
                            action.name,
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
    if left == 0 {
        report.not_asked(Check::QuorumUnreachable, DECISIONS_MAX);
    }
}

/// Whether the quorums of these profiles can be filled by different people other than the owners of a request's agents.
fn has_enough_people(
    bundle: &PolicyBundle,
    owners: &BTreeSet<PersonId>,
    profiles: &[&StepUpProfile],
) -> bool {
    let able = |profile: &StepUpProfile| -> Vec<PersonId> {
        let people = bundle.people().filter(|person| profile.takes(person));
        let others = people.filter(|person| !owners.contains(&person.id));
        others.map(|person| person.id.clone()).collect()
    };
    let able: Vec<(u32, Vec<PersonId>)> = profiles.iter().map(|p| (p.quorum, able(p))).collect();
    let seats = able.iter().flat_map(|(quorum, able)| {
        let quorum = usize::try_from(*quorum).unwrap_or(usize::MAX);
        std::iter::repeat_n(able.as_slice(), quorum)
    });
    can_be_filled(&seats.collect::<Vec<_>>())
}

/// What a sample request has beside its agent, action, target and audience.
pub(super) struct SampleRequest {
    pub(super) ttl_ms: i64,
    pub(super) ages: EvidenceAges,
    pub(super) task_age_ms: i64,
    pub(super) parameters: BTreeMap<String, Param>,
    pub(super) facts: FactValues,
    pub(super) counts: CountValues,
    pub(super) waited_ms: i64,
}

fn count_value(name: &str, value: &Sample) -> Option<(CountName, u32)> {
    let name = CountName::parse(name).ok()?;
    match value {
        Sample::Long(value) => Some((name, u32::try_from(*value).ok()?)),
        _ => None,
    }
}

impl SampleRequest {
    pub(super) fn of(action: &CatalogueAction, assignment: Assignment) -> Self {
        let mut request = Self {
            ttl_ms: 60_000,
            ages: EvidenceAges::ZERO,
            task_age_ms: 0,
            parameters: action.sample_parameters(),
            facts: FactValues::new(),
            counts: CountValues::new(),
            waited_ms: 0,
        };
        for (path, value) in assignment {
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            match (names.as_slice(), value) {
                (["ttl"], Some(Sample::Duration(ms))) => request.ttl_ms = ms,
                (["evidence", "issued_age"], Some(Sample::Duration(ms))) => {
                    request.ages.issued_ms = ms;
                }
                (["evidence", "verified_age"], Some(Sample::Duration(ms))) => {
                    request.ages.verified_ms = ms;
                }
                (["task", "age"], Some(Sample::Duration(ms))) => request.task_age_ms = ms,
                ([WAITED], Some(Sample::Duration(ms))) => request.waited_ms = ms,
                (["facts"], Some(Sample::Record(values))) => {
                    request
                        .facts
                        .extend(values.into_iter().filter_map(|(name, value)| {
                            let name = FactName::parse(&name).ok()?;
                            matches!(value, Sample::Bool(_))
                                .then_some((name, value == Sample::Bool(true)))
                        }));
                }
                (["facts", name], Some(Sample::Bool(value))) => {
                    if let Ok(name) = FactName::parse(name) {
                        request.facts.insert(name, value);
                    }
                }
                (["counts"], Some(Sample::Record(values))) => {
                    let values = values.into_iter();
                    let values = values.filter_map(|(name, value)| count_value(&name, &value));
                    request.counts.extend(values);
                }
                (["counts", name], Some(value)) => {
                    request.counts.extend(count_value(name, &value));
                }
                (["parameters", parents @ .., last], value) => {
                    set(&mut request.parameters, parents, last, value);
                }
                _ => {}
            }
        }
        request
    }
}

/// Puts a parameter into its record, or takes it out of it. A record that is absent has no members.
fn set(members: &mut BTreeMap<String, Param>, parents: &[&str], last: &str, value: Option<Sample>) {
    match (parents.split_first(), value.and_then(Sample::parameter)) {
        (Some((first, rest)), value) => {
            if let Some(Param::Record(inner)) = members.get_mut(*first) {
                match (rest, value) {
                    ([], Some(value)) => drop(inner.insert(last.to_owned(), value)),
                    ([], None) => drop(inner.remove(last)),
                    // Deeper members keep their sample.
                    (_, _) => {}
                }
            }
        }
        (None, Some(value)) => drop(members.insert(last.to_owned(), value)),
        (None, None) => drop(members.remove(last)),
    }
}

/// Most decisions that each question about the whole bundle asks for.
const DECISIONS_MAX: usize = 20_000;

//! Rules that cannot do what they say: never met, met whatever they ask, or with a remedy that does not lift them.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::report::{Check, Report};
use super::samples::{Answer, RuleCase, Samples, Scene};
use super::values::{Assignment, Sample};
use super::{direction, location};
use crate::model::format_seconds;
use crate::policy::rule::{Remedy, RuleEffect};
use crate::policy::schema::WAITED;

/// What the samples say about one rule.
#[derive(Default)]
struct SampleFindings {
    is_in_scope: bool,
    matches: bool,
    /// Of each condition, whether it was met and unmet once, where those before it were met.
    met: Vec<bool>,
    unmet: Vec<bool>,
    is_whole: bool,
    /// A scene in which the remedy lifts nothing.
    unlifted: Option<String>,
    /// A scene in which the delay lifts nothing, or not for good.
    undelayed: Option<String>,
    /// Whether the remedy lifted nothing in some scene, or was not tried there, and the samples prove nothing.
    lift_is_undecided: bool,
    /// Actions of which the rule matches every request.
    covered: Vec<String>,
    covers_operate: bool,
    /// A scene in which an approval would lift the rule, which has no remedy by which anybody is asked for it.
    lifted_unasked: Option<String>,
    asked: usize,
}

/// Examines every rule. Returns how many rules were not examined.
pub(super) fn check<'b>(
    samples: &Samples<'b>,
    cases: &[RuleCase<'b>],
    report: &mut Report<'_>,
) -> usize {
    let mut left_out = 0;
    for case in cases {
        if !report.is_declared(case.info) {
            continue;
        }
        if samples.is_spent() {
            left_out += 1;
            continue;
        }
        let findings = examine(samples, case);
        if samples.is_spent() {
            left_out += 1;
            continue;
        }
        report_findings(case, &findings, report);
        // How a rule that never matches would change says nothing.
        if findings.matches || !findings.is_whole {
            direction::check(case, report);
        }
    }
    left_out
}

fn examine<'b>(samples: &Samples<'b>, case: &RuleCase<'b>) -> SampleFindings {
    let conditions = case.exceptions.len();
    let mut findings = SampleFindings {
        met: vec![false; conditions],
        unmet: vec![false; conditions],
        is_whole: true,
        ..SampleFindings::default()
    };
    let is_final = is_final(case);
    for action in case.actions.iter().copied() {
        let is_narrowed = |kind: &str| case.population.narrowed.contains(kind);
        let kinds = action
            .map(|action| &action.target_types)
            .into_iter()
            .flatten();
        let reaches_all = !is_narrowed("Agent") && !kinds.into_iter().any(|kind| is_narrowed(kind));
        let (mut is_asked, mut covers) = (false, is_final && reaches_all);
        for scene in samples.scenes(case, action) {
            let is_settled = findings.is_settled() && !covers && !findings.seeks_approval(case);
            if is_settled && case.info.remedy.is_none() {
                break;
            }
            if findings.asked > ASKED_MAX {
                findings.is_whole = false;
                findings.lift_is_undecided |= case.info.remedy.is_some();
                break;
            }
            let whole = ask(
                samples,
                case,
                &scene,
                &mut findings,
                &mut is_asked,
                &mut covers,
            );
            findings.is_whole &= whole;
        }
        if is_asked && covers && findings.is_whole {
            match action {
                Some(action) if !action.never => {
                    findings.covered.push(format!("\"{}\"", action.name))
                }
                Some(_) => {}
                None => findings.covers_operate = true,
            }
        }
    }
    findings
}

/// Asks about one scene.
fn ask<'b>(
    samples: &Samples<'b>,
    case: &RuleCase<'b>,
    scene: &Scene<'b>,
    findings: &mut SampleFindings,
    is_asked: &mut bool,
    covers: &mut bool,
) -> bool {
    let (mut matches, mut is_lifted) = (false, false);
    // A delay lifts by time what its remedy lifts by people.
    let mut is_lifted_later = case.info.delay_s.is_none();
    let lifetime = match &case.info.remedy {
        Some(Remedy::MaxTtl(seconds)) => Some(i64::from(*seconds).saturating_mul(1000)),
        Some(Remedy::StepUp(_)) | None => None,
    };
    let extra: Vec<_> = lifetime
        .iter()
        .map(|ms| (vec!["ttl".to_owned()], *ms))
        .collect();
    let whole = samples.ask(case, scene, &extra, |assignment, answer| {
        findings.asked += 1;
        let met = match answer {
            Answer::OutOfScope => {
                *covers = false;
                return ControlFlow::Continue(());
            }
            Answer::Fails => {
                *covers = false;
                return ControlFlow::Continue(());
            }
            Answer::Unmet(at) => {
                findings
                    .unmet
                    .iter_mut()
                    .skip(at)
                    .take(1)
                    .for_each(|seen| *seen = true);
                at
            }
            Answer::Matches => case.exceptions.len(),
        };
        (findings.is_in_scope, *is_asked) = (true, true);
        findings
            .met
            .iter_mut()
            .take(met)
            .for_each(|seen| *seen = true);
        if answer == Answer::Matches {
            if findings.seeks_approval(case) {
                let approved = approved(samples, assignment);
                let lifts =
                    |approved| matches!(samples.ask_once(case, scene, &approved), Answer::Unmet(_));
                if approved.is_some_and(lifts) {
                    findings.lifted_unasked = Some(samples.describe(scene));
                }
            }
            (findings.matches, matches) = (true, true);
            if !is_lifted && let Some(lifted) = remedied(case, assignment, lifetime) {
                is_lifted = samples.ask_once(case, scene, &lifted) != Answer::Matches;
            }
            if !is_lifted_later && let Some(later) = delayed(case, assignment) {
                is_lifted_later = samples.ask_once(case, scene, &later) != Answer::Matches;
            }
        } else {
            *covers = false;
        }
        let is_done = findings.is_settled() && !*covers && !findings.seeks_approval(case);
        match is_done && (case.info.remedy.is_none() || (is_lifted && is_lifted_later)) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    if matches && !is_lifted && case.info.remedy.is_some() {
        match whole {
            true if findings.unlifted.is_none() => {
                findings.unlifted = Some(samples.describe(scene))
            }
            true => {}
            false => findings.lift_is_undecided = true,
        }
    }
    if matches && !is_lifted_later {
        match whole {
            true if findings.undelayed.is_none() => {
                findings.undelayed = Some(samples.describe(scene))
            }
            true => {}
            false => findings.lift_is_undecided = true,
        }
    }
    whole
}

impl SampleFindings {
    /// Whether a final rule reads approvals, and no sample was found yet that one would lift.
    fn seeks_approval(&self, case: &RuleCase<'_>) -> bool {
        let reads = || {
            case.reading
                .variables
                .contains_key(&["approvals".to_owned()][..])
        };
        self.lifted_unasked.is_none() && is_final(case) && reads()
    }

    /// Whether the rule was seen to match, and each condition to be met and unmet.
    fn is_settled(&self) -> bool {
        let all = |seen: &[bool]| seen.iter().all(|seen| *seen);
        self.matches && all(&self.met) && all(&self.unmet)
    }
}

/// The sample with the remedy applied; nothing where it changes nothing.
fn remedied(
    case: &RuleCase<'_>,
    assignment: &Assignment,
    lifetime: Option<i64>,
) -> Option<Assignment> {
    let mut lifted = assignment.clone();
    // What people lift waits for nothing.
    let _reads_it = set_waited(&mut lifted, 0);
    match (&case.info.remedy, lifetime) {
        (Some(Remedy::StepUp(profiles)), _) => {
            let (_, value) = lifted
                .iter_mut()
                .find(|(path, _)| path.as_slice() == ["approvals"])?;
            let all = |held: Sample| profiles.iter().fold(held, Sample::with_approval);
            *value = value.take().map(all);
        }
        (Some(Remedy::MaxTtl(_)), Some(most)) => {
            let (_, value) = lifted
                .iter_mut()
                .find(|(path, _)| path.as_slice() == ["ttl"])?;
            match value {
                Some(Sample::Duration(ms)) if *ms > most => *ms = most,
                _ => return None,
            }
        }
        (Some(Remedy::MaxTtl(_)), None) | (None, _) => return None,
    }
    Some(lifted)
}

/// The sample after the delay; nothing where it changes nothing. A rule compares the time with its own delay alone.
fn delayed(case: &RuleCase<'_>, assignment: &Assignment) -> Option<Assignment> {
    let ms = i64::from(case.info.delay_s?).saturating_mul(1000);
    let mut later = assignment.clone();
    // And what waits has nobody's yes.
    for (path, value) in &mut later {
        if path.as_slice() == ["approvals"] {
            *value = Some(Sample::StepUps(BTreeSet::new()));
        }
    }
    set_waited(&mut later, ms).then_some(later)
}

/// Whether the rule reads how long a request has waited: it has then, for so many milliseconds.
fn set_waited(assignment: &mut Assignment, ms: i64) -> bool {
    let mut waited = assignment
        .iter_mut()
        .filter(|(path, _)| path.as_slice() == [WAITED]);
    match waited.next() {
        Some((_, value)) => {
            *value = Some(Sample::Duration(ms));
            true
        }
        None => false,
    }
}

/// A forbid without a remedy.
fn is_final(case: &RuleCase<'_>) -> bool {
    case.info.effect == RuleEffect::Forbid && case.info.remedy.is_none()
}

/// The sample without approvals, with one under every profile; nothing where the rule reads none, or there is one.
fn approved(samples: &Samples<'_>, assignment: &Assignment) -> Option<Assignment> {
    let mut approved = assignment.clone();
    let (_, value) = approved
        .iter_mut()
        .find(|(path, _)| path.as_slice() == ["approvals"])?;
    match value {
        Some(Sample::StepUps(held)) if held.is_empty() => {
            let profiles = samples.bundle.profiles();
            held.extend(profiles.map(|profile| profile.name.to_string()));
        }
        _ => return None,
    }
    Some(approved)
}

fn report_findings(case: &RuleCase<'_>, findings: &SampleFindings, report: &mut Report<'_>) {
    let rule = case.info;
    let places = location::conditions(&rule.text);
    let undecided = |what: &str| {
        format!(
            "{what} could not be decided: the check decides ==, !=, in, has, contains and comparisons of one variable with constants or \
             with attributes of the agent or the target; write the rule so, or try it with a request that meets it"
        )
    };
    if !findings.is_in_scope {
        let message = match case.actions.is_empty() {
            true => "can never match: its scope holds no action".to_owned(),
            false => format!(
                "can never match: no agent of agents.toml and target of entities.json is in its scope; {}",
                "name a group that has members, or remove the rule"
            ),
        };
        match findings.is_whole {
            true => report.rule(Check::NeverMatches, rule, None, message),
            false => report.undecided(rule, None, undecided("whether it ever matches")),
        }
        return;
    }
    // The first condition that was never met lets no request through.
    let blocking = findings.met.iter().position(|met| !met);
    if !findings.matches {
        let at = blocking.and_then(|at| places.get(at)).copied();
        let is_exception = blocking.and_then(|at| case.exceptions.get(at)).copied();
        if !findings.is_whole {
            report.undecided(rule, at, undecided("whether it ever matches"));
            return;
        }
        let why = match is_exception {
            Some(true) => "this exception always holds",
            Some(false) | None => "this condition is never true",
        };
        let message = format!(
            "can never match: {why}, for any agent, target and value that the bundle declares; correct it, or remove the rule"
        );
        report.rule(Check::NeverMatches, rule, at, message);
        return;
    }
    for (at, is_exception) in case.exceptions.iter().enumerate() {
        // That the remedy does not make an exception hold is said of the remedy.
        let is_of_remedy = *is_exception && findings.unlifted.is_some();
        if is_of_remedy || findings.unmet.get(at).copied().unwrap_or(true) {
            continue;
        }
        let place = places.get(at).copied();
        let (what, message) = match is_exception {
            false => (
                "whether this condition is always true",
                "this condition is always true, so that it restricts nothing; correct it, or remove it",
            ),
            true => (
                "whether this exception ever holds",
                "this exception never holds, so that it excepts nothing; correct it, or remove it",
            ),
        };
        match findings.is_whole {
            true => report.rule(Check::AlwaysTrue, rule, place, message),
            false => report.undecided(rule, place, undecided(what)),
        }
    }
    if let (Some(scene), Some(remedy)) = (&findings.unlifted, &rule.remedy) {
        let annotation = annotation_of(remedy);
        let lifts = match remedy {
            Remedy::StepUp(profiles) => {
                let names: Vec<String> = profiles
                    .iter()
                    .map(|name| format!("StepUp::\"{name}\""))
                    .collect();
                let asked = match &names[..] {
                    [one] => format!("contains({one})"),
                    _ => format!("containsAll([{}])", names.join(", ")),
                };
                format!("unless {{ context.approvals.{asked} }}")
            }
            Remedy::MaxTtl(seconds) => {
                format!("unless {{ context.ttl <= duration(\"{seconds}s\") }}")
            }
        };
        let message = format!(
            "@{annotation} does not lift it: the rule still forbids {scene}; write {lifts}, or remove @{annotation}, which makes the rule final"
        );
        let at = location::annotation(&rule.text, annotation);
        report.rule(Check::RemedyNeverLifts, rule, at, message);
    }
    if let (Some(scene), Some(seconds)) = (&findings.undelayed, rule.delay_s) {
        let message = format!(
            "@delay does not lift it: after {} the rule still forbids {scene}; write || context.waited >= duration(\"{}\") into its unless, \
             beside its approvals, or remove @delay",
            format_seconds(seconds.into()),
            format_seconds(seconds.into()).replace(' ', "")
        );
        let at = location::annotation(&rule.text, "delay");
        report.rule(Check::RemedyNeverLifts, rule, at, message);
    }
    if findings.lift_is_undecided
        && findings.unlifted.is_none()
        && let Some(remedy) = &rule.remedy
    {
        let annotation = annotation_of(remedy);
        let at = location::annotation(&rule.text, annotation);
        let what = format!("whether @{annotation} lifts it for every request");
        report.undecided(rule, at, undecided(&what));
    }
    if let Some(scene) = &findings.lifted_unasked {
        let message = format!(
            "an approval would lift it, and nobody is ever asked for one: without @step_up the rule is final, and denies {scene}; add \
             @step_up(\"PROFILE\"), or take context.approvals out of it"
        );
        let at = location::member(&rule.text, "approvals", 0);
        report.rule(Check::ApprovalUnasked, rule, at, message);
        return;
    }
    if !findings.covered.is_empty() {
        let message = format!(
            "forbids every request for {}, and no remedy lifts it; mark an action @never in schema.cedarschema if no agent may ever do it, or \
             narrow the rule",
            findings.covered.join(", ")
        );
        report.rule(Check::ForbidsAll, rule, None, message);
    }
    if findings.covers_operate {
        let message =
            "forbids every agent to operate, so that none can work; narrow the rule".to_owned();
        report.rule(Check::ForbidsAll, rule, None, message);
    }
}

/// The annotation that names a remedy.
fn annotation_of(remedy: &Remedy) -> &'static str {
    match remedy {
        Remedy::StepUp(_) => "step_up",
        Remedy::MaxTtl(_) => "max_ttl",
    }
}

/// Most samples of one rule.
const ASKED_MAX: usize = 20_000;

//! The model: worlds, rules and requests of its own, and what is decided about them. Nothing of the product is used here.

use std::collections::{BTreeMap, BTreeSet};

/// The agents, targets and groups of a bundle; each field says what is drawn at random.
#[derive(Debug, Clone)]
pub(super) struct ModelWorld {
    pub(super) agents: Vec<Agent>,
    pub(super) targets: Vec<Box>,
    /// The groups of each action, without those above them.
    pub(super) actions: Vec<Vec<&'static str>>,
    /// Whether the group `change` is in the group `touch`.
    pub(super) nested: bool,
    /// The quorum of each profile.
    pub(super) quorums: Vec<u32>,
}

#[derive(Debug, Clone)]
pub(super) struct Agent {
    pub(super) environment: &'static str,
    pub(super) groups: Vec<&'static str>,
    pub(super) ceiling: Vec<&'static str>,
}

/// A target.
#[derive(Debug, Clone)]
pub(super) struct Box {
    pub(super) environment: &'static str,
    pub(super) locked: bool,
    /// Its zone; `inner` is in `outer`.
    pub(super) zone: Option<&'static str>,
}

pub(super) const AGENTS: [&str; 3] = ["ada", "bea", "cam"];
pub(super) const GROUPS: [&str; 2] = ["day", "night"];
/// The last one is for any target.
pub(super) const ACTIONS: [&str; 3] = ["box.look", "box.turn", "box.find"];
pub(super) const ACTION_GROUPS: [&str; 2] = ["touch", "change"];
/// The last one is in no bundle.
pub(super) const TARGETS: [&str; 4] = ["b-0", "b-1", "b-2", "b-none"];
pub(super) const ZONES: [&str; 2] = ["outer", "inner"];
pub(super) const ENVIRONMENTS: [&str; 2] = ["prod", "lab"];
pub(super) const PROFILES: [&str; 3] = ["one", "two", "ops"];
/// The last one is no validator's.
pub(super) const AUDIENCES: [&str; 3] = [
    "https://a.example",
    "https://b.example",
    "https://none.example",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) permits: bool,
    pub(super) remedy: Option<ModelRemedy>,
    pub(super) agents: AgentScope,
    pub(super) actions: ActionScope,
    pub(super) targets: TargetScope,
    /// Each with whether it is an `unless`.
    pub(super) conditions: Vec<(bool, Condition)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelRemedy {
    StepUp(&'static str),
    /// Seconds.
    MaxTtl(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AgentScope {
    Any,
    Is,
    One(&'static str),
    In(&'static str),
    IsIn(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ActionScope {
    Any,
    One(&'static str),
    /// Actions and groups of them.
    In(Vec<&'static str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TargetScope {
    Any,
    Is,
    One(&'static str),
    In(&'static str),
    IsIn(&'static str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// The lifetime is at most this many milliseconds.
    AtMost(i64),
    /// It is longer.
    Longer(i64),
    Held(&'static str),
    AnyHeld(Vec<&'static str>),
    AllHeld(Vec<&'static str>),
    NoneHeld,
    Audience(&'static str),
    /// The agent runs in the target's environment.
    SameEnvironment,
    Environment(&'static str),
    Locked,
    Target(&'static str),
    Zone(&'static str),
    Group(&'static str),
    Known,
    /// Overflows, and so fails, for a task below another one.
    Overflow,
    Not(std::boxed::Box<Self>),
    And(std::boxed::Box<Self>, std::boxed::Box<Self>),
    Or(std::boxed::Box<Self>, std::boxed::Box<Self>),
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) agent: &'static str,
    pub(super) action: &'static str,
    pub(super) target: &'static str,
    pub(super) audience: &'static str,
    pub(super) ttl_ms: i64,
    pub(super) approvals: BTreeSet<&'static str>,
    pub(super) depth: i64,
}

/// Rules by their ids, in order; profiles in order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ModelAnswer {
    Allowed {
        ttl_ms: i64,
        rules: Vec<String>,
    },
    Needs {
        profiles: Vec<String>,
        ttl_ms: i64,
        rules: Vec<String>,
    },
    Denied {
        why: String,
        rules: Vec<String>,
    },
}

/// What the rules say with some approvals and a lifetime.
enum Say {
    Yes(BTreeSet<usize>),
    /// The forbids that apply.
    No(BTreeSet<usize>),
    Fails(BTreeSet<usize>),
}

pub(super) fn decide(world: &ModelWorld, rules: &[Rule], request: &Request) -> ModelAnswer {
    let ids = |rules: &BTreeSet<usize>| rules.iter().map(|n| id(*n)).collect();
    let denied = |why: &str, rules: &BTreeSet<usize>| ModelAnswer::Denied {
        why: why.to_owned(),
        rules: ids(rules),
    };
    let agent = world.agent(request.agent);
    if !agent.ceiling.contains(&request.action) {
        return denied("OUTSIDE_CEILING", &BTreeSet::new());
    }
    let is_open = request.action == ACTIONS[2];
    let is_valid = request.ttl_ms > 0
        && (is_open || world.target(request.target).is_some())
        && request.audience != AUDIENCES[2];
    if !is_valid {
        return denied("RULE_EVALUATION_FAILED", &BTreeSet::new());
    }
    let mut trial = request.clone();
    let mut shortened_by = BTreeSet::new();
    let mut assumed: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let mut permits = loop {
        let forbids = match say(world, rules, &trial) {
            Say::Fails(failed) => return denied("RULE_EVALUATION_FAILED", &failed),
            Say::Yes(permits) => break permits,
            Say::No(forbids) if forbids.is_empty() => return denied("NO_RULE_ALLOWS", &forbids),
            Say::No(forbids) => forbids,
        };
        let final_ones: BTreeSet<usize> = forbids
            .iter()
            .copied()
            .filter(|n| rules[*n].remedy.is_none())
            .collect();
        if !final_ones.is_empty() {
            return denied("FORBIDDEN_BY_RULE", &final_ones);
        }
        // Every shorter lifetime is tried before any approval.
        let mut shortest = trial.ttl_ms;
        let mut asks = Vec::new();
        for n in &forbids {
            match rules[*n].remedy.expect("not final") {
                ModelRemedy::MaxTtl(seconds) if seconds * 1_000 < trial.ttl_ms => {
                    shortened_by.insert(*n);
                    shortest = shortest.min(seconds * 1_000);
                }
                ModelRemedy::MaxTtl(_) => {}
                ModelRemedy::StepUp(profile) => asks.push((*n, profile)),
            }
        }
        if shortest < trial.ttl_ms {
            trial.ttl_ms = shortest;
            continue;
        }
        let before = assumed.len();
        for (n, profile) in asks {
            if !request.approvals.contains(profile) {
                assumed.entry(profile).or_default().insert(n);
                trial.approvals.insert(profile);
            }
        }
        // No remedy is left that was not tried.
        if assumed.len() == before {
            return denied("FORBIDDEN_BY_RULE", &forbids);
        }
    };
    if assumed.len() > 1 {
        let mut by_quorum: Vec<&str> = assumed.keys().copied().collect();
        by_quorum.sort_by_key(|name| (world.quorum(name), *name));
        for profile in by_quorum {
            trial.approvals.remove(profile);
            match say(world, rules, &trial) {
                Say::Yes(still) => {
                    permits = still;
                    assumed.remove(profile);
                }
                Say::No(_) => drop(
                    trial.approvals.insert(
                        PROFILES
                            .into_iter()
                            .find(|name| *name == profile)
                            .expect("a profile"),
                    ),
                ),
                Say::Fails(failed) => return denied("RULE_EVALUATION_FAILED", &failed),
            }
        }
    }
    let lifted = assumed.values().flatten().chain(&shortened_by);
    let why: BTreeSet<usize> = permits.iter().chain(lifted).copied().collect();
    match assumed.is_empty() {
        true => ModelAnswer::Allowed {
            ttl_ms: trial.ttl_ms,
            rules: ids(&why),
        },
        false => ModelAnswer::Needs {
            profiles: assumed.keys().map(|name| (*name).to_owned()).collect(),
            ttl_ms: trial.ttl_ms,
            rules: ids(&why),
        },
    }
}

pub(super) fn id(rule: usize) -> String {
    format!("r-{rule:02}")
}

/// A failure denies; else a forbid wins over every permit; without a permit nothing is allowed.
fn say(world: &ModelWorld, rules: &[Rule], request: &Request) -> Say {
    let (mut permits, mut forbids, mut failed) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (n, rule) in rules.iter().enumerate() {
        match applies(world, rule, request) {
            Ok(false) => {}
            Ok(true) if rule.permits => drop(permits.insert(n)),
            Ok(true) => drop(forbids.insert(n)),
            Err(Failure) => drop(failed.insert(n)),
        }
    }
    match (failed.is_empty(), forbids.is_empty() && !permits.is_empty()) {
        (false, _) => Say::Fails(failed),
        (true, true) => Say::Yes(permits),
        (true, false) => Say::No(forbids),
    }
}

/// A rule could not be evaluated.
struct Failure;

fn applies(world: &ModelWorld, rule: &Rule, request: &Request) -> Result<bool, Failure> {
    let in_scope = match &rule.agents {
        AgentScope::Any | AgentScope::Is => true,
        AgentScope::One(agent) => *agent == request.agent,
        AgentScope::In(group) | AgentScope::IsIn(group) => {
            world.agent(request.agent).groups.contains(group)
        }
    } && match &rule.actions {
        ActionScope::Any => true,
        ActionScope::One(action) => *action == request.action,
        ActionScope::In(named) => named.iter().any(|name| {
            *name == request.action || world.action_groups(request.action).contains(name)
        }),
    } && match &rule.targets {
        TargetScope::Any | TargetScope::Is => true,
        TargetScope::One(target) => *target == request.target,
        TargetScope::In(zone) | TargetScope::IsIn(zone) => world.is_in_zone(request.target, zone),
    };
    if !in_scope {
        return Ok(false);
    }
    for (is_exception, condition) in &rule.conditions {
        if holds(world, condition, request)? == *is_exception {
            return Ok(false);
        }
    }
    Ok(true)
}

fn holds(world: &ModelWorld, condition: &Condition, request: &Request) -> Result<bool, Failure> {
    let held = |profile: &&str| request.approvals.contains(*profile);
    let target = || world.target(request.target).ok_or(Failure);
    Ok(match condition {
        Condition::AtMost(ms) => request.ttl_ms <= *ms,
        Condition::Longer(ms) => request.ttl_ms > *ms,
        Condition::Held(profile) => held(profile),
        Condition::AnyHeld(profiles) => profiles.iter().any(held),
        Condition::AllHeld(profiles) => profiles.iter().all(held),
        Condition::NoneHeld => request.approvals.is_empty(),
        Condition::Audience(audience) => *audience == request.audience,
        Condition::SameEnvironment => {
            world.agent(request.agent).environment == target()?.environment
        }
        Condition::Environment(name) => target()?.environment == *name,
        Condition::Locked => target()?.locked,
        Condition::Target(name) => request.target == *name,
        Condition::Zone(zone) => world.is_in_zone(request.target, zone),
        Condition::Group(group) => world.agent(request.agent).groups.contains(group),
        Condition::Known => world.target(request.target).is_some(),
        Condition::Overflow if request.depth > 0 => return Err(Failure),
        Condition::Overflow => true,
        Condition::Not(inner) => !holds(world, inner, request)?,
        Condition::And(left, right) => {
            holds(world, left, request)? && holds(world, right, request)?
        }
        Condition::Or(left, right) => holds(world, left, request)? || holds(world, right, request)?,
    })
}

impl ModelWorld {
    fn agent(&self, name: &str) -> &Agent {
        let at = AGENTS.iter().position(|agent| *agent == name);
        &self.agents[at.expect("an agent")]
    }

    fn target(&self, name: &str) -> Option<&Box> {
        let at = TARGETS.iter().position(|target| *target == name);
        self.targets.get(at.expect("a target"))
    }

    fn is_in_zone(&self, target: &str, zone: &str) -> bool {
        match self.target(target).and_then(|target| target.zone) {
            Some(own) => own == zone || (own, zone) == ("inner", "outer"),
            None => false,
        }
    }

    fn action_groups(&self, action: &str) -> BTreeSet<&'static str> {
        let at = ACTIONS.iter().position(|name| *name == action);
        let own = &self.actions[at.expect("an action")];
        let above = (self.nested && own.contains(&"change")).then_some("touch");
        own.iter().copied().chain(above).collect()
    }

    fn quorum(&self, profile: &str) -> u32 {
        let at = PROFILES.iter().position(|name| *name == profile);
        self.quorums[at.expect("a profile")]
    }
}

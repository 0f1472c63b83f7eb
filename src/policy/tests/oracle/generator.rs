//! Random worlds, rules and requests, and the bundle that says the same in the product's own form.

use std::boxed::Box as Boxed;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::model::*;

pub(super) fn any_world() -> impl Strategy<Value = ModelWorld> {
    let agent = (
        select(ENVIRONMENTS.to_vec()),
        subsequence(GROUPS.to_vec(), 0..=2),
        prop_oneof![
            3 => Just(ACTIONS.to_vec()),
            1 => subsequence(ACTIONS.to_vec(), 0..=2),
        ],
    );
    let agent = agent.prop_map(|(environment, groups, ceiling)| Agent {
        environment,
        groups,
        ceiling,
    });
    let zone = select(vec![None, Some("outer"), Some("inner")]);
    let target = (select(ENVIRONMENTS.to_vec()), any::<bool>(), zone);
    let target = target.prop_map(|(environment, locked, zone)| Box {
        environment,
        locked,
        zone,
    });
    (
        proptest::collection::vec(agent, 3),
        proptest::collection::vec(target, 3),
        proptest::collection::vec(subsequence(ACTION_GROUPS.to_vec(), 0..=2), 3),
        any::<bool>(),
        proptest::collection::vec(1_u32..=2, 3),
    )
        .prop_map(|(agents, targets, actions, nested, quorums)| ModelWorld {
            agents,
            targets,
            actions,
            nested,
            quorums,
        })
}

fn any_condition() -> BoxedStrategy<Condition> {
    let ttl = select(vec![5_000, 10_000, 20_000, 59_999, 60_000]);
    let some = || subsequence(PROFILES.to_vec(), 1..=2);
    let leaf = prop_oneof![
        3 => ttl.clone().prop_map(Condition::AtMost),
        2 => ttl.prop_map(Condition::Longer),
        4 => select(PROFILES.to_vec()).prop_map(Condition::Held),
        2 => some().prop_map(Condition::AnyHeld),
        1 => some().prop_map(Condition::AllHeld),
        1 => Just(Condition::NoneHeld),
        1 => select(AUDIENCES[..2].to_vec()).prop_map(Condition::Audience),
        1 => Just(Condition::SameEnvironment),
        1 => select(ENVIRONMENTS.to_vec()).prop_map(Condition::Environment),
        1 => Just(Condition::Locked),
        1 => select(TARGETS.to_vec()).prop_map(Condition::Target),
        1 => select(ZONES.to_vec()).prop_map(Condition::Zone),
        1 => select(GROUPS.to_vec()).prop_map(Condition::Group),
        1 => Just(Condition::Known),
        1 => Just(Condition::Overflow),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            inner.prop_map(|one| Condition::Not(Boxed::new(one))),
            two.clone()
                .prop_map(|(one, other)| Condition::And(Boxed::new(one), Boxed::new(other))),
            two.prop_map(|(one, other)| Condition::Or(Boxed::new(one), Boxed::new(other))),
        ]
    })
    .boxed()
}

fn any_scope() -> impl Strategy<Value = (AgentScope, ActionScope, TargetScope)> {
    let agents = prop_oneof![
        4 => Just(AgentScope::Any),
        1 => Just(AgentScope::Is),
        1 => select(AGENTS.to_vec()).prop_map(AgentScope::One),
        2 => select(GROUPS.to_vec()).prop_map(AgentScope::In),
        1 => select(GROUPS.to_vec()).prop_map(AgentScope::IsIn),
    ];
    let named = [&ACTIONS[..], &ACTION_GROUPS].concat();
    let actions = prop_oneof![
        3 => Just(ActionScope::Any),
        1 => select(ACTIONS.to_vec()).prop_map(ActionScope::One),
        3 => subsequence(named, 1..=3).prop_map(ActionScope::In),
    ];
    let targets = prop_oneof![
        4 => Just(TargetScope::Any),
        1 => Just(TargetScope::Is),
        1 => select(TARGETS.to_vec()).prop_map(TargetScope::One),
        1 => select(ZONES.to_vec()).prop_map(TargetScope::In),
        1 => select(ZONES.to_vec()).prop_map(TargetScope::IsIn),
    ];
    (agents, actions, targets).prop_map(|(agents, actions, targets)| {
        // The context of `operate` has no lifetime and no approvals, so that a rule for every action says which targets it is for.
        let is_open = actions == ActionScope::Any && targets == TargetScope::Any;
        let targets = if is_open { TargetScope::Is } else { targets };
        (agents, actions, targets)
    })
}

/// A rule of any form, or one of those that people write: a permit, or a forbid that its remedy lifts.
fn any_rule() -> impl Strategy<Value = Rule> {
    let conditions = || proptest::collection::vec((any::<bool>(), any_condition()), 0..=2);
    let remedy = prop_oneof![
        select(PROFILES.to_vec()).prop_map(ModelRemedy::StepUp),
        select(vec![5_i64, 10, 20]).prop_map(ModelRemedy::MaxTtl),
    ];
    let any_form = (
        any::<bool>(),
        proptest::option::of(remedy.clone()),
        conditions(),
    );
    let any_form = any_form.prop_map(|(permits, remedy, conditions)| {
        let remedy = if permits { None } else { remedy };
        (permits, remedy, conditions)
    });
    let permit = conditions().prop_map(|mut conditions| {
        conditions.truncate(1);
        (true, None, conditions)
    });
    let guard = remedy.prop_map(|remedy| {
        let lifted = match remedy {
            ModelRemedy::StepUp(profile) => Condition::Held(profile),
            ModelRemedy::MaxTtl(seconds) => Condition::AtMost(seconds * 1_000),
        };
        (false, Some(remedy), vec![(true, lifted)])
    });
    let form = prop_oneof![2 => any_form, 3 => permit, 3 => guard];
    (form, any_scope()).prop_map(
        |((permits, remedy, conditions), (agents, actions, targets))| Rule {
            permits,
            remedy,
            agents,
            actions,
            targets,
            conditions,
        },
    )
}

pub(super) fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    proptest::collection::vec(any_rule(), 1..9)
}

pub(super) fn any_request() -> impl Strategy<Value = Request> {
    (
        select(AGENTS.to_vec()),
        select(ACTIONS.to_vec()),
        select(TARGETS.to_vec()),
        prop_oneof![9 => select(AUDIENCES[..2].to_vec()), 1 => Just(AUDIENCES[2])],
        prop_oneof![9 => select(vec![1_i64, 5_000, 5_001, 10_000, 20_000, 60_000, 900_000]), 1 => -1_i64..1],
        subsequence(PROFILES.to_vec(), 0..=3),
        prop_oneof![9 => Just(0_i64), 1 => Just(1_i64)],
    )
        .prop_map(|(agent, action, target, audience, ttl_ms, approvals, depth)| Request {
            agent,
            action,
            target,
            audience,
            ttl_ms,
            approvals: approvals.into_iter().collect(),
            depth,
        })
}

/// The rule with each part that depends on approvals or the lifetime turned into the documented direction.
pub(super) fn turned(rule: &Rule) -> Rule {
    let turn = |(is_exception, condition): &(bool, Condition)| {
        (
            *is_exception,
            condition.turned(rule.permits != *is_exception),
        )
    };
    Rule {
        conditions: rule.conditions.iter().map(turn).collect(),
        ..rule.clone()
    }
}

/// The same, of which no part fails: whether a part is evaluated may depend on approvals.
pub(super) fn directed(rule: &Rule) -> Rule {
    let mut rule = turned(rule);
    for (_, condition) in &mut rule.conditions {
        *condition = condition.without_failures();
    }
    rule
}

impl Condition {
    /// Turned so that approvals and a shorter lifetime only make it true (`rises`), or only false.
    fn turned(&self, rises: bool) -> Self {
        let not = |one: &Self| Self::Not(Boxed::new(one.clone()));
        let both = |one: &Self, other: &Self| {
            (
                Boxed::new(one.turned(rises)),
                Boxed::new(other.turned(rises)),
            )
        };
        match self {
            Self::AtMost(ms) if !rises => Self::Longer(*ms),
            Self::Longer(ms) if rises => Self::AtMost(*ms),
            Self::Held(_) | Self::AnyHeld(_) | Self::AllHeld(_) if !rises => not(self),
            Self::NoneHeld if rises => not(self),
            Self::Not(inner) => Self::Not(Boxed::new(inner.turned(!rises))),
            Self::And(one, other) => {
                let (one, other) = both(one, other);
                Self::And(one, other)
            }
            Self::Or(one, other) => {
                let (one, other) = both(one, other);
                Self::Or(one, other)
            }
            same => same.clone(),
        }
    }

    fn without_failures(&self) -> Self {
        let boxed = |one: &Self| Boxed::new(one.without_failures());
        match self {
            Self::Overflow => Self::Known,
            Self::SameEnvironment | Self::Environment(_) | Self::Locked => {
                Self::And(Boxed::new(Self::Known), Boxed::new(self.clone()))
            }
            Self::Not(inner) => Self::Not(boxed(inner)),
            Self::And(one, other) => Self::And(boxed(one), boxed(other)),
            Self::Or(one, other) => Self::Or(boxed(one), boxed(other)),
            same => same.clone(),
        }
    }

    fn text(&self) -> String {
        let set = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| format!("StepUp::\"{n}\"")).collect();
            format!("[{}]", names.join(", "))
        };
        match self {
            Self::AtMost(ms) => format!("context.ttl <= duration(\"{ms}ms\")"),
            Self::Longer(ms) => format!("duration(\"{ms}ms\") < context.ttl"),
            Self::Held(profile) => format!("context.approvals.contains(StepUp::\"{profile}\")"),
            Self::AnyHeld(profiles) => format!("context.approvals.containsAny({})", set(profiles)),
            Self::AllHeld(profiles) => format!("context.approvals.containsAll({})", set(profiles)),
            Self::NoneHeld => "context.approvals.isEmpty()".to_owned(),
            Self::Audience(audience) => format!("context.audience == \"{audience}\""),
            Self::SameEnvironment => "principal.environment == resource.environment".to_owned(),
            Self::Environment(name) => format!("resource.environment == Environment::\"{name}\""),
            Self::Locked => "resource.locked".to_owned(),
            Self::Target(name) => format!("resource == Box::\"{name}\""),
            Self::Zone(zone) => format!("resource in Zone::\"{zone}\""),
            Self::Group(group) => format!("principal in AgentGroup::\"{group}\""),
            Self::Known => "context.target_known".to_owned(),
            Self::Overflow => "9223372036854775807 + context.task.depth > 0".to_owned(),
            Self::Not(inner) => format!("!({})", inner.text()),
            Self::And(one, other) => format!("({} && {})", one.text(), other.text()),
            Self::Or(one, other) => format!("({} || {})", one.text(), other.text()),
        }
    }
}

impl Rule {
    /// The rule in Cedar.
    pub(super) fn text(&self, n: usize) -> String {
        let remedy = match self.remedy {
            Some(ModelRemedy::StepUp(profile)) => format!("@step_up(\"{profile}\") "),
            Some(ModelRemedy::MaxTtl(seconds)) => format!("@max_ttl(\"{seconds}s\") "),
            None => String::new(),
        };
        let effect = if self.permits { "permit" } else { "forbid" };
        let agents = match &self.agents {
            AgentScope::Any => "principal".to_owned(),
            AgentScope::Is => "principal is Agent".to_owned(),
            AgentScope::One(agent) => format!("principal == Agent::\"{agent}\""),
            AgentScope::In(group) => format!("principal in AgentGroup::\"{group}\""),
            AgentScope::IsIn(group) => format!("principal is Agent in AgentGroup::\"{group}\""),
        };
        let actions = match &self.actions {
            ActionScope::Any => "action".to_owned(),
            ActionScope::One(action) => format!("action == Action::\"{action}\""),
            ActionScope::In(named) => {
                let named: Vec<String> = named.iter().map(|n| format!("Action::\"{n}\"")).collect();
                format!("action in [{}]", named.join(", "))
            }
        };
        let targets = match &self.targets {
            TargetScope::Any => "resource".to_owned(),
            TargetScope::Is => "resource is Box".to_owned(),
            TargetScope::One(target) => format!("resource == Box::\"{target}\""),
            TargetScope::In(zone) => format!("resource in Zone::\"{zone}\""),
            TargetScope::IsIn(zone) => format!("resource is Box in Zone::\"{zone}\""),
        };
        let conditions: String = self
            .conditions
            .iter()
            .map(|(is_exception, condition)| {
                let word = if *is_exception { "unless" } else { "when" };
                format!(" {word} {{ {} }}", condition.text())
            })
            .collect();
        format!(
            "@id(\"{}\") {remedy}{effect} ({agents}, {actions}, {targets}){conditions};\n",
            id(n)
        )
    }
}

impl ModelWorld {
    pub(super) fn text(&self, rules: &[Rule]) -> String {
        rules
            .iter()
            .enumerate()
            .map(|(n, rule)| rule.text(n))
            .collect()
    }

    /// The bundle.
    pub(super) fn files(&self, rules: &[Rule]) -> BTreeMap<String, String> {
        let list = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            names.join(", ")
        };
        let mut schema = "entity Zone in [Zone];\nentity Box in [Zone] = { environment: Environment, locked: Bool };\n\
            action \"touch\";\n"
            .to_owned();
        schema.push_str(match self.nested {
            true => "action \"change\" in [\"touch\"];\n",
            false => "action \"change\";\n",
        });
        for (name, groups) in ACTIONS.iter().zip(&self.actions) {
            let open = if *name == ACTIONS[2] {
                "@open_targets "
            } else {
                ""
            };
            let groups = match groups.as_slice() {
                [] => String::new(),
                groups => format!(" in [{}]", list(groups)),
            };
            schema.push_str(&format!(
                "@title(\"T\") @effect(\"E.\") @reversible(\"reversible\") @undo(\"U.\") @risk(\"low\") {open}\n\
                 action \"{name}\"{groups} appliesTo {{ principal: [Agent], resource: [Box] }};\n"
            ));
        }
        let mut agents = format!("environments = [{}]\n", list(&ENVIRONMENTS));
        for (name, agent) in AGENTS.iter().zip(&self.agents) {
            agents.push_str(&format!(
                "[[agent]]\nid = \"{name}\"\nspiffe_id = \"spiffe://soc.example/{name}\"\nowner = \"dana\"\nenvironment = \"{}\"\n\
                 model = \"m\"\nautonomy = \"autonomous\"\ngroups = [{}]\nactions = [{}]\n",
                agent.environment,
                list(&agent.groups),
                list(&agent.ceiling)
            ));
        }
        let mut people = "[[person]]\nid = \"dana\"\nname = \"Dana Diaz\"\ngroups = [\"staff\"]\nroles = [\"approver\"]\n".to_owned();
        for (n, audience) in AUDIENCES[..2].iter().enumerate() {
            people.push_str(&format!(
                "[[validator]]\nid = \"v-{n}\"\naudiences = [\"{audience}\"]\n"
            ));
        }
        for (name, quorum) in PROFILES.iter().zip(&self.quorums) {
            people.push_str(&format!(
                "[profile.{name}]\ngroup = \"staff\"\nquorum = {quorum}\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"passkey\"\n"
            ));
        }
        let zone = |name: &str| format!(r#"{{"type":"Zone","id":"{name}"}}"#);
        let mut entities = vec![
            format!(r#"{{"uid":{},"parents":[],"attrs":{{}}}}"#, zone("outer")),
            format!(
                r#"{{"uid":{},"parents":[{}],"attrs":{{}}}}"#,
                zone("inner"),
                zone("outer")
            ),
        ];
        for (name, target) in TARGETS.iter().zip(&self.targets) {
            entities.push(format!(
                r#"{{"uid":{{"type":"Box","id":"{name}"}},"parents":[{}],"attrs":{{"environment":{{"type":"Environment","id":"{}"}},"locked":{}}}}}"#,
                target.zone.map(zone).unwrap_or_default(),
                target.environment,
                target.locked
            ));
        }
        let files = [
            ("schema.cedarschema", schema),
            ("agents.toml", agents),
            ("people.toml", people),
            ("entities.json", format!("[{}]", entities.join(","))),
            ("rules/any.cedar", self.text(rules)),
        ];
        files.map(|(path, text)| (path.to_owned(), text)).into()
    }
}

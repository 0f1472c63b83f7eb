//! A policy bundle of as many rules as wanted, with 20 agents in 10 groups, 20 actions, and 200 targets in 20 groups.

use std::collections::BTreeMap;

/// What the rules are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleScopes {
    /// Each a group of agents, an action and a target.
    Spread,
    /// The same, all of one action.
    OneAction,
    /// Each a group of agents, an action and a group of targets, with conditions.
    Conditions,
}

impl RuleScopes {
    /// The group of agents, the action and the target or group of targets of a rule. Every 200 rules name each group with each
    /// action.
    fn of(self, rule: usize) -> [usize; 3] {
        let (group, action) = (rule % 10, rule / 10 % 20);
        match self {
            Self::Spread => [group, action, (rule / 200 * 7 + rule) % 200],
            Self::OneAction => [group, 0, rule / 10 % 200],
            Self::Conditions => [group, action, rule / 200 % 20],
        }
    }

    /// The agent, the action and the target of a request that a rule allows.
    pub fn request_for(self, rule: usize) -> [String; 3] {
        let [group, action, target] = self.of(rule);
        [
            format!("agent-{group}"),
            format!("a{action}"),
            format!("h{target}"),
        ]
    }

    fn text(self, rule: usize) -> String {
        let [group, action, target] = self.of(rule);
        let group = format!("principal in AgentGroup::\"g{group}\"");
        match self {
            Self::Spread | Self::OneAction => format!(
                "@id(\"r{rule}\")permit({group},action==Action::\"a{action}\",resource==Host::\"h{target}\");\n"
            ),
            Self::Conditions => format!(
                "@id(\"r{rule}\")permit({group},action==Action::\"a{action}\",resource in Rack::\"k{target}\")\
                 when{{context.ttl<=duration(\"{}m\")}};\n",
                rule % 50 + 1
            ),
        }
    }
}

/// A bundle of this many rules, one of them about `operate`. All are granted and decided from 201 rules on.
pub fn many_rules(rules: usize, scopes: RuleScopes) -> BTreeMap<String, String> {
    let mut schema = "entity Rack;\nentity Host in [Rack];\n".to_owned();
    for n in 0..20 {
        schema.push_str(&format!(
            "@title(\"Run {n}\")@effect(\"It runs.\")@reversible(\"reversible\")@undo(\"Stop it.\")@risk(\"low\")\n\
             action \"a{n}\" appliesTo {{ principal: [Agent], resource: [Host] }};\n"
        ));
    }
    let actions: Vec<String> = (0..20).map(|n| format!("\"a{n}\"")).collect();
    let ceiling = match scopes {
        RuleScopes::OneAction => "\"a0\"".to_owned(),
        RuleScopes::Spread | RuleScopes::Conditions => actions.join(", "),
    };
    let mut agents = "environments = [\"prod\"]\n".to_owned();
    for n in 0..20 {
        agents.push_str(&format!(
            "[[agent]]\nid = \"agent-{n}\"\nspiffe_id = \"spiffe://soc.example/agent/n{n}\"\nowner = \"dana\"\n\
             environment = \"prod\"\nmodel = \"m\"\nautonomy = \"autonomous\"\ngroups = [\"g{}\"]\nactions = [{ceiling}]\n",
            n % 10
        ));
    }
    let entity = |kind: &str, id: String, parents: String| {
        format!(r#"{{"uid":{{"type":"{kind}","id":"{id}"}},"parents":[{parents}],"attrs":{{}}}}"#)
    };
    let racks = (0..20).map(|n| entity("Rack", format!("k{n}"), String::new()));
    let hosts = (0..200).map(|n| {
        let rack = format!(r#"{{"type":"Rack","id":"k{}"}}"#, n % 20);
        entity("Host", format!("h{n}"), rack)
    });
    let entities: Vec<String> = racks.chain(hosts).collect();
    let operate = "@id(\"operate\")permit(principal,action==Action::\"operate\",resource);\n";
    let texts = (0..rules.saturating_sub(1)).map(|rule| scopes.text(rule));
    let files = [
        ("schema.cedarschema", schema),
        ("agents.toml", agents),
        ("people.toml", PEOPLE.to_owned()),
        ("entities.json", format!("[{}]", entities.join(",\n"))),
        (
            "rules/many.cedar",
            format!("{operate}{}", texts.collect::<String>()),
        ),
    ];
    files.map(|(path, text)| (path.to_owned(), text)).into()
}

const PEOPLE: &str = "[[person]]\nid = \"dana\"\nname = \"Dana Diaz\"\nroles = [\"approver\"]\n\
    [[validator]]\nid = \"hosts\"\naudiences = [\"https://hosts.example\"]\n";

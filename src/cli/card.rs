//! The card: what a person needs to decide in ten seconds, and every field that the vote will sign.
//!
//! Verb and object first, in the catalogue's words; the agent's own words last, quoted, capped and labelled.

use serde_json::{Value, json};

use super::say::Rows;
use super::{parse, shapes};
use crate::model::text::{reveal, reveal_capped};
use crate::model::{Timestamp, show_seconds};
use crate::proto::{convert, v1};

/// Most characters shown of each of the agent's texts.
const AGENT_WORDS_MAX: usize = 500;

/// The card for people.
pub(super) fn text(card: &v1::Card, now: Timestamp) -> String {
    let mut out = format!(
        "{}  {}  {}\n",
        reveal(&card.access_request_id),
        shapes::status(card.status),
        if card.expires_at.is_some() {
            format!(
                "decided within {}",
                shapes::left(card.expires_at.as_ref(), now)
            )
        } else {
            String::new()
        }
    );
    let action = card.action.clone().unwrap_or_default();
    let risk = if card.risk.is_empty() {
        "RISK UNKNOWN".to_owned()
    } else {
        format!("{} RISK", reveal(&card.risk).to_uppercase())
    };
    let title = if card.title.is_empty() {
        reveal(&action.name)
    } else {
        reveal(&card.title)
    };
    let target = shapes::target(action.target.as_ref());
    out.push_str(&format!(
        "\n  {}: {target}   [{risk}]\n  {}\n\n",
        title.to_uppercase(),
        reveal(&action.name)
    ));

    let mut rows = Rows::default();
    for fact in &card.target_facts {
        rows.own(&reveal(&fact.name), reveal(&fact.value));
    }
    if !card.target_known {
        rows.own(
            "target",
            "NOT KNOWN to the policy bundle: nothing is recorded about it",
        );
    }
    match convert::action(&action) {
        Ok(action) if action.parameters.is_empty() => {}
        Ok(action) => {
            let each: Vec<String> = action
                .parameters
                .iter()
                .map(|(name, value)| format!("{name} = {}", parse::show(value)))
                .collect();
            rows.own("with", each.join("\n"));
        }
        Err(_) => {
            rows.own("with", "PARAMETERS NOT UNDERSTOOD: do not vote yes");
        }
    }
    rows.theirs("effect", &card.effect);
    let undo = if card.undo.is_empty() {
        String::new()
    } else {
        format!("; undo: {}", reveal(&card.undo))
    };
    let reversible = if card.reversible.is_empty() {
        "unknown".to_owned()
    } else {
        reveal(&card.reversible)
    };
    rows.own("reversible", format!("{reversible}{undo}"));
    let agent = card.agent.clone().unwrap_or_default();
    rows.own(
        "by",
        format!(
            "{} (owner {}, {}, {}, {})",
            reveal(&agent.agent_id),
            reveal(&agent.owner),
            reveal(&agent.environment),
            reveal(&agent.model),
            reveal(&agent.autonomy)
        ),
    );
    if let Some(seen) = &card.verification {
        let at = shapes::when(seen.verified_at.as_ref(), now);
        rows.own(
            "verified",
            format!(
                "{} by {}, {at}",
                reveal(&seen.subject),
                reveal(&seen.evidence_kind)
            ),
        );
    }
    rows.own("because", shapes::rule_lines(&card.rules));
    rows.own("needs", shapes::profile_lines(&card.needs));
    let uses = match card.uses {
        Some(1) => "one use".to_owned(),
        Some(uses) => format!("{uses} uses"),
        None => "any number of uses".to_owned(),
    };
    let life = card
        .max_ttl
        .as_ref()
        .map_or_else(|| "?".to_owned(), |d| show_seconds(d.seconds));
    rows.own(
        "token",
        format!(
            "at most {life}, {uses}, only for {}, bound to the task's key",
            reveal(&action.audience)
        ),
    );
    rows.own(
        "signed too",
        format!(
            "realm {}, task {}",
            reveal(&card.realm),
            reveal(&card.task_id)
        ),
    );
    let digests: Vec<String> = card
        .needs
        .iter()
        .map(|p| format!("profile {} {}", reveal(&p.name), reveal(&p.digest)))
        .collect();
    rows.own(
        "",
        format!(
            "key {}\npolicy {}\n{}",
            reveal(&card.task_key),
            reveal(&card.policy_version),
            digests.join("\n")
        ),
    );
    out.push_str(&rows.lines());

    let mut words = Rows::default();
    for (label, said) in [("for", &card.purpose), ("reason", &card.reason)] {
        if !said.is_empty() {
            words.own(
                label,
                format!("\"{}\"", reveal_capped(said, AGENT_WORDS_MAX)),
            );
        }
    }
    let words = words.lines();
    if !words.is_empty() {
        out.push_str("\n  The agent says (unverified):\n");
        out.push_str(&words);
    }
    out
}

/// The card for machines: everything, as it came.
pub(super) fn to_json(card: &v1::Card) -> Value {
    let agent = card.agent.clone().unwrap_or_default();
    json!({
        "access_request": card.access_request_id,
        "realm": card.realm,
        "status": shapes::status(card.status),
        "title": card.title, "effect": card.effect, "reversible": card.reversible, "undo": card.undo, "risk": card.risk,
        "action": shapes::action(card.action.as_ref()),
        "action_digest": card.action_digest,
        "target_known": card.target_known,
        "target_facts": card.target_facts.iter().map(|f| json!({ "name": f.name, "value": f.value })).collect::<Value>(),
        "agent": {
            "id": agent.agent_id, "owner": agent.owner, "environment": agent.environment, "model": agent.model,
            "autonomy": agent.autonomy,
        },
        "verification": card.verification.as_ref().map(|v| json!({
            "evidence_kind": v.evidence_kind, "subject": v.subject,
            "verified_at": shapes::moment(v.verified_at.as_ref()), "expires_at": shapes::moment(v.expires_at.as_ref()),
        })),
        "rules": shapes::rules(&card.rules),
        "needs": shapes::profiles(&card.needs),
        "task": card.task_id,
        "task_key": card.task_key,
        "max_ttl": shapes::seconds(card.max_ttl.as_ref()),
        "uses": card.uses,
        "policy_version": card.policy_version,
        "opened_at": shapes::moment(card.opened_at.as_ref()),
        "expires_at": shapes::moment(card.expires_at.as_ref()),
        "agent_says_unverified": { "purpose": card.purpose, "reason": card.reason },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hostile(text: &str) -> String {
        format!("{text}\u{202E}\u{200B}\n\u{1b}[2Jfake: yes\r\u{9b}31m")
    }

    fn card() -> v1::Card {
        let now = Timestamp::from_secs(1_800_000_000);
        let value = |v| {
            Some(v1::Value {
                kind: Some(v1::value::Kind::StringValue(v)),
            })
        };
        v1::Card {
            access_request_id: hostile("areq_1"),
            realm: hostile("r"),
            status: v1::AccessRequestStatus::Waiting.into(),
            title: hostile("Disable an account"),
            effect: hostile("effect"),
            reversible: hostile("yes"),
            undo: hostile("undo"),
            risk: hostile("high"),
            action: Some(v1::Action {
                name: "account.disable".into(),
                target: Some(v1::Target {
                    r#type: "Account".into(),
                    id: "ann".into(),
                }),
                parameters: vec![v1::Parameter {
                    name: "note".into(),
                    value: value(hostile("note")),
                }],
                audience: "https://idp".into(),
            }),
            action_digest: hostile("d"),
            target_facts: vec![v1::CardFact {
                name: hostile("name"),
                value: hostile("Ann"),
            }],
            target_known: true,
            agent: Some(v1::CardAgent {
                agent_id: hostile("triage"),
                owner: hostile("dana"),
                environment: hostile("prod"),
                model: hostile("m"),
                autonomy: hostile("a"),
            }),
            verification: Some(v1::Verification {
                evidence_kind: hostile("jwt-svid"),
                subject: hostile("spiffe://x/y"),
                verified_at: Some(convert::timestamp_to_wire(now)),
                expires_at: None,
            }),
            rules: vec![v1::Rule {
                id: hostile("rule"),
                file: hostile("f"),
                why: hostile("why"),
            }],
            needs: vec![v1::Profile {
                name: hostile("one"),
                digest: hostile("dig"),
                group: hostile("g"),
                quorum: 1,
                approvals: 0,
                approvers: vec![hostile("lee")],
            }],
            task_id: hostile("task_1"),
            task_key: hostile("key"),
            max_ttl: Some(convert::seconds_to_wire(300)),
            uses: Some(1),
            policy_version: hostile("pol"),
            opened_at: None,
            expires_at: Some(convert::timestamp_to_wire(now.plus_secs(100))),
            purpose: hostile("purpose"),
            reason: hostile(&"x".repeat(600)),
        }
    }

    #[test]
    fn no_text_of_others_leaves_its_place() {
        let now = Timestamp::from_secs(1_800_000_000);
        let shown = text(&card(), now);
        let wild = |c: char| c != '\n' && crate::model::text::is_invisible(c);
        assert!(!shown.contains(wild), "{shown:?}");
        assert!(
            !shown
                .lines()
                .any(|line| line.trim_start().starts_with("fake")),
            "{shown}"
        );
        // A clean card has as many lines: nothing hostile made one.
        let mut clean = card();
        clean.title = "Disable an account".to_owned();
        clean.effect = "effect".to_owned();
        clean.purpose = "purpose".to_owned();
        assert_eq!(text(&clean, now).lines().count(), shown.lines().count());
    }

    #[test]
    fn what_is_signed_is_shown_and_the_agents_words_come_last() {
        let mut card = card();
        card.reason = "r".repeat(600);
        let shown = text(&card, Timestamp::from_secs(1_800_000_000));
        for signed in [
            "areq_1",
            "triage",
            "dana",
            "task_1",
            "key",
            "account.disable",
            "Account::ann",
            "note = ",
            "https://idp",
            "5m",
            "one use",
            "pol",
            "dig",
            "realm r",
        ] {
            assert!(
                shown.contains(signed),
                "{signed} is not on the card:\n{shown}"
            );
        }
        let words = shown.find("The agent says (unverified)").expect("labelled");
        let last_fact = shown.find("profile one").expect("digest");
        assert!(words > last_fact);
        assert!(shown.contains("[100 more characters]"));
        assert!(
            shown.find("DISABLE AN ACCOUNT").expect("title") < shown.find("by ").expect("agent")
        );
        card.action.as_mut().expect("action").parameters[0].value = None;
        assert!(text(&card, Timestamp::from_secs(0)).contains("NOT UNDERSTOOD"));
        card.target_known = false;
        assert!(text(&card, Timestamp::from_secs(0)).contains("NOT KNOWN"));
    }
}

//! Card layouts: golden files, and untrusted text that cannot forge a row.

use std::collections::BTreeSet;
use std::sync::Arc;

use dipylon_sdk::card::{self, Card, FoldLimits, LongValues};
use dipylon_sdk::model::text::needs_escape;
use dipylon_sdk::model::*;
use proptest::prelude::*;

use super::{
    NOW, TRICKS, assert_layout_is_intact, everything, hostile, ordinary, recommendation, text,
};
use crate::golden::golden;
use crate::support::{IDP, action};

/// The rows as the console's template gets them, one line per text.
fn rows(card: &Card) -> String {
    let shown = card.show(NOW);
    let head = &shown.headline;
    let mut out = format!(
        "verb {}\nobject {}\ntype {}\nenvironment {:?}\naction {}\nrisk {}\nflags {:#?}\nphrase {}\ndeadline {} in {}\ndwell {}\nurl {:?}\n",
        head.verb,
        head.object,
        head.object_type,
        head.environment,
        head.action,
        head.risk_word,
        head.flags,
        shown.phrase,
        shown.deadline,
        shown.left,
        shown.dwell_s,
        shown.console_url,
    );
    for section in &shown.sections {
        out.push_str(&format!(
            "== {} | {}\n",
            section.kind.as_str(),
            section.title
        ));
        for row in &section.rows {
            out.push_str(&format!("{} [{}]\n", row.label, row.tone.as_str()));
            if let Some(caption) = &row.caption {
                out.push_str(&format!("  ({caption})\n"));
            }
            if let Some((head, extent)) = row.fold(row.fold_limits()) {
                out.push_str(&format!("  first {head:?} of {extent:?}\n"));
            }
            for line in &row.lines {
                out.push_str(&format!("  {line}\n"));
            }
            for flag in &row.flags {
                out.push_str(&format!("  ! {flag}\n"));
            }
        }
    }
    out
}

#[test]
fn card_layouts_golden() {
    for (name, card) in [
        ("ordinary", ordinary()),
        ("everything", everything()),
        ("hostile", hostile()),
        ("recommendation", recommendation()),
    ] {
        golden(
            &format!("card/{name}.text.txt"),
            &card::render_terminal(&card, NOW, 80, LongValues::Folded),
        );
        golden(
            &format!("card/{name}.chat.txt"),
            &card::render_chat(&card, NOW),
        );
        golden(&format!("card/{name}.rows.txt"), &rows(&card));
    }
}

#[test]
fn untrusted_text_cannot_forge_rows() {
    for card in [ordinary(), everything(), hostile()] {
        for columns in [0, 80, 81, 100, 133, 10_000] {
            assert_layout_is_intact(
                &card::render_terminal(&card, NOW, columns, LongValues::Folded),
                columns.max(80),
            );
        }
    }
    let chat = card::render_chat(&hostile(), NOW);
    assert!(!chat.contains(|c| c != '\n' && needs_escape(c)), "{chat}");
    assert!(
        !chat
            .lines()
            .any(|line| line.trim_start().starts_with("owner")),
        "{chat}"
    );
    for secret in [
        "note",
        "contain INC",
        "phish",
        "with ",
        "Ann Archer",
        "end_sessions",
    ] {
        assert!(
            !card::render_chat(&ordinary(), NOW).contains(secret),
            "{secret} in a chat"
        );
    }
}

#[test]
fn signed_fields_precede_agent_text() {
    let card = everything();
    let shown = card::render_terminal(&card, NOW, 100_000, LongValues::Full);
    let action = card.action.clone().expect("action");
    let agent = card.requester.agent().expect("an agent");
    let signed = [
        card.realm.to_string(),
        card.access_request.to_string(),
        agent.id.to_string(),
        agent.owner.id.to_string(),
        agent.task.to_string(),
        agent.task_key.to_string(),
        action.name.to_string(),
        action.audience.to_string(),
        action.target.to_string(),
        action.digest().to_string(),
        "5m, 3 uses".to_owned(),
        card.policy.to_string(),
        card.needs[0].profile.digest.to_string(),
        card.needs[1].profile.digest.to_string(),
        card.phrase().to_string(),
        "\"Bo \\\"the\\\" \\\\ Bear\"".to_owned(),
        "a long note of many words ".repeat(11),
    ];
    for text in &signed {
        assert!(
            shown.contains(text.as_str()),
            "{text} is not on the card:\n{shown}"
        );
    }
    let words = shown.find("The agent says (unverified)").expect("labelled");
    assert!(shown.find(&card.policy.to_string()).expect("policy") < words);
    assert!(shown.contains("640 characters, SHA-256 "), "{shown}");
    assert!(
        !shown[..words].contains("because because"),
        "only in the agent's words"
    );
    let order = [
        "ISOLATE A HOST",
        "  with ",
        "  target ",
        "  effect ",
        "  unusual ",
        "  similar requests ",
        "  agent ",
        "  rule ",
        "  token ",
        "  needs ",
        "  digest ",
        "The agent says",
    ];
    let places = order.map(|part| shown.find(part).expect(part));
    assert!(places.is_sorted(), "{places:?}:\n{shown}");
    let unknown = card::render_terminal(&hostile(), NOW, 80, LongValues::Folded);
    for row in [
        "RISK UNKNOWN",
        "unknown: no figures",
        "MIXED SCRIPTS",
        "RIGHT TO LEFT",
    ] {
        assert!(unknown.contains(row), "{row}:\n{unknown}");
    }
    let removed = Card {
        action: None,
        target_attributes: None,
        ..ordinary()
    };
    let removed = card::render_terminal(&removed, NOW, 80, LongValues::Folded);
    assert!(
        removed.contains("NO LONGER ON RECORD") && removed.contains("NOT KNOWN"),
        "{removed}"
    );
}

/// Any text, biased towards hostile characters.
fn any_text() -> impl Strategy<Value = String> {
    let hard: Vec<char> = TRICKS.chars().collect();
    let one = prop_oneof![
        any::<char>(),
        proptest::sample::select(hard),
        proptest::sample::select(vec![
            ' ',
            '\n',
            'a',
            '\u{301}',
            '\u{200D}',
            '\u{1F600}',
            '\u{4E00}'
        ]),
    ];
    proptest::collection::vec(one, 0..120).prop_map(|all| all.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn untrusted_text_proptest(
        texts in proptest::collection::vec(any_text(), 8),
        columns in 80_usize..200,
    ) {
        let text = |n: usize| texts[n].clone();
        let card = Card {
            title: text(0),
            effect: text(1),
            action: Some(Arc::new(action("account.disable", "Account", "ann", IDP, &[("note", Param::Str(text(2)))]))),
            parameter_titles: [("note".to_owned(), text(3))].into(),
            target_attributes: Some(vec![(text(4), text(5))]),
            purpose: UntrustedText::parse("purpose", &text(6)).ok(),
            reason: UntrustedText::parse("reason", &text(7)).ok(),
            ..hostile()
        };
        assert_layout_is_intact(&card::render_terminal(&card, NOW, columns, LongValues::Folded), columns);
        for line in card::render_chat(&card, NOW).lines() {
            prop_assert!(!line.contains(needs_escape), "{line:?}");
        }
    }
}

/// Many different words of characters confusable with Latin.
fn confusable_words() -> impl Strategy<Value = String> {
    let letters = vec![
        '\u{430}', '\u{435}', '\u{43e}', '\u{440}', '\u{441}', '\u{445}',
    ];
    let word = proptest::collection::vec(proptest::sample::select(letters), 2..8);
    let word = word.prop_map(|letters| letters.into_iter().collect::<String>());
    proptest::collection::vec(word, 1..300).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Warnings add a bounded number of lines, so that they never scroll the warned text away.
    #[test]
    fn warning_lines_are_bounded(texts in proptest::collection::vec(confusable_words(), 4), columns in 80_usize..200) {
        // Control: as wide, without anything to warn of.
        let plain = |text: &str| text.replace(|c: char| c != ' ', "x");
        let card = |change: &dyn Fn(&str) -> String| {
            let items: Vec<Param> = texts[3]
                .split(' ')
                .collect::<BTreeSet<_>>()
                .into_iter()
                .take(100)
                .enumerate()
                // Numbered, so that sets have the same number of members.
                .map(|(n, word)| text(&format!("{n:03} {}", change(word))))
                .collect();
            let parameters = [
                ("note", text(&change(&texts[0]))),
                ("set", Param::set(items).expect("set")),
            ];
            let prose = |name, text: &str| {
                let head: String = text.chars().take(1_000).collect();
                UntrustedText::parse(name, &change(&head)).ok()
            };
            Card {
                action: Some(Arc::new(action("account.disable", "Account", "ann", IDP, &parameters))),
                purpose: prose("purpose", &texts[1]),
                reason: prose("reason", &texts[2]),
                ..ordinary()
            }
        };
        let lines = |card: &Card| card::render_terminal(card, NOW, columns, LongValues::Folded).lines().count();
        let any_text = card(&|text| text.to_owned());
        let (shown, calm) = (lines(&any_text), lines(&card(&plain)));
        // Four rows; at most seven flags of the set and one of each other; each at most ten lines.
        prop_assert!(shown <= calm + 10 * 10, "{shown} lines and not {calm}");
        for section in any_text.show(NOW).sections {
            for row in section.rows {
                prop_assert!(row.flags.len() <= 7, "{row:?}");
            }
        }
    }
}

/// A warning is raised for the whole text, also for what is folded away.
#[test]
fn folded_text_is_flagged() {
    let reason = format!(
        "{}{}",
        "a".repeat(FoldLimits::AGENT_WORDS.chars),
        " p\u{430}ypal"
    );
    let card = Card {
        reason: UntrustedText::parse("reason", &reason).ok(),
        ..ordinary()
    };
    let shown = card::render_terminal(&card, NOW, 80, LongValues::Folded);
    assert!(shown.contains("507 characters, SHA-256"), "{shown}");
    assert!(shown.contains("MIXED SCRIPTS"), "{shown}");
    assert!(!shown.contains("ypal"), "{shown}");
}

//! Different actions have different cards: what is shown can be read back, in rows, at a terminal and in the inbox.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use dipylon_sdk::card::{self, Card, CardRow, LongValues, SectionKind, Tone};
use dipylon_sdk::model::*;
use proptest::prelude::*;

use super::{NOW, ordinary, text};
use crate::support::{IDP, action};

/// A line of a row at a terminal, and the mark before it.
type MarkedLine = (char, String);

/// The rows of a terminal card, as a reader puts them together: labels, marks, and lines without their folds.
fn read_terminal(shown: &str) -> Vec<(String, Vec<MarkedLine>)> {
    // Where values begin: the row of the realm is never folded.
    let realm = shown.lines().find_map(|line| {
        let value = line.strip_prefix("  realm")?;
        Some(line.len() - value.trim_start().len())
    });
    let at = realm.expect("a realm");
    let mut rows: Vec<(String, Vec<MarkedLine>)> = Vec::new();
    let body = shown.lines().skip(2).skip_while(|line| !line.is_empty());
    let body = body.take_while(|line| !line.starts_with("  match phrase "));
    for line in body.filter(|line| !line.is_empty()) {
        if line.starts_with("  The agent says (unverified):") {
            continue;
        }
        let (before, value) = line.split_at_checked(at).unwrap_or((line, ""));
        let (label, mark) = before.split_at_checked(at - 2).unwrap_or((before, "  "));
        if !matches!(mark, "  " | "! " | "? " | "~ " | "+ ") || value.is_empty() {
            // A label that is wider than the column; its own fold is joined.
            match (line.strip_prefix("  + "), rows.last_mut()) {
                (Some(rest), Some((label, _))) => label.push_str(rest),
                _ => rows.push((line.trim().to_owned(), Vec::new())),
            }
            continue;
        }
        if !label.trim().is_empty() {
            rows.push((label.trim().to_owned(), Vec::new()));
        }
        let lines = &mut rows.last_mut().expect("a label first").1;
        let mark = mark.chars().next().expect("a mark");
        match (mark, value.strip_prefix("  "), lines.last_mut()) {
            ('+', _, Some((_, before))) => before.push_str(value),
            (' ', Some(rest), Some((_, before))) => before.push_str(&format!(" {rest}")),
            _ => lines.push((mark, value.to_owned())),
        }
    }
    rows
}

/// The rows that the terminal should show.
fn rows(card: &Card, values: LongValues) -> Vec<(String, Vec<MarkedLine>)> {
    let line = |row: &CardRow| {
        let mark = match row.tone {
            Tone::Alarm => '!',
            Tone::Unknown => '?',
            Tone::Plain | Tone::Strong | Tone::Quiet | Tone::Quoted => ' ',
        };
        let mut lines: Vec<MarkedLine> = Vec::new();
        lines.extend(
            row.caption
                .iter()
                .map(|caption| (' ', format!("{caption}:"))),
        );
        let fold = row.fold(row.fold_limits());
        let head = match (&fold, values) {
            (Some((head, _)), LongValues::Folded) => head,
            _ => &row.lines,
        };
        lines.extend(head.iter().map(|line| (mark, line.clone())));
        if let Some((_, card::Extent { length, digest })) = &fold {
            let more = if values == LongValues::Folded {
                "… "
            } else {
                ""
            };
            lines.push(('~', format!("{more}{length}, SHA-256 {digest}")));
        }
        lines.extend(row.flags.iter().map(|flag| ('!', flag.clone())));
        (row.label.clone(), lines)
    };
    let view = card.show(NOW);
    view.sections
        .iter()
        .flat_map(|section| &section.rows)
        .map(line)
        .collect()
}

fn parameter_rows(card: &Card) -> Vec<CardRow> {
    let sections = card.show(NOW).sections;
    let of_parameters = |section: &card::CardSection| section.kind == SectionKind::Parameters;
    sections
        .into_iter()
        .find(of_parameters)
        .expect("parameters")
        .rows
}

fn with(parameters: BTreeMap<String, Param>) -> Card {
    let action = Action {
        parameters,
        ..action("account.disable", "Account", "ann", IDP, &[])
    };
    Card {
        action: Some(Arc::new(action)),
        ..ordinary()
    }
}

/// Text out of pieces of our own marks.
fn tricky_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "<|U\\+|>|200B|000A|\\\\|\"| |\\+ |! |~ |a|true|1|• |…|, ",
        "[\n\r\u{200B}\u{202E}\u{301}\u{e9}\u{212b}]",
        "with note|digest|an empty set|[a-z]{60,90}|\\PC",
    ];
    proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

/// Values of few forms, so that two of them often have much in common.
fn near_param() -> impl Strategy<Value = Param> {
    let text = prop_oneof![
        "|1|true|a|<U\\+200B>|\u{200B}|an empty set|\"|\\\\",
        Just("a\nb".to_owned()),
        Just("e\u{301}".to_owned()),
        Just("\u{e9}".to_owned()),
        "a{250,252}",
    ];
    let leaf = prop_oneof![
        text.prop_map(Param::Str),
        any::<bool>().prop_map(Param::Bool),
        (-1_i64..2).prop_map(Param::Int),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        let members =
            proptest::collection::btree_map("[ab]".prop_map(String::from), inner.clone(), 0..3);
        prop_oneof![
            proptest::collection::vec(inner, 0..3)
                .prop_map(|items| Param::set(items).expect("set")),
            members.prop_map(Param::Record),
        ]
    })
}

fn near_parameters() -> impl Strategy<Value = BTreeMap<String, Param>> {
    proptest::collection::btree_map("[ab]".prop_map(String::from), near_param(), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn terminal_rows_can_be_read_back(
        texts in proptest::collection::vec(tricky_text(), 6),
        columns in 80_usize..140,
    ) {
        let items = texts.iter().map(|text| Param::Str(text.clone())).collect();
        let inner = BTreeMap::from([("a_rather_long_name_of_a_member".to_owned(), text(&texts[1]))]);
        let mut card = with(BTreeMap::from([
            ("note".to_owned(), text(&texts[0])),
            ("one".to_owned(), Param::Record(inner)),
            ("set".to_owned(), Param::set(items).expect("set")),
        ]));
        card.target_attributes = Some(vec![("name".to_owned(), texts[2].clone())]);
        card.rules[0].why = texts[3].clone();
        card.effect = texts[4].clone();
        card.reason = UntrustedText::parse("reason", &texts[5]).ok();
        for values in [LongValues::Folded, LongValues::Full] {
            let shown = card::render_terminal(&card, NOW, columns, values);
            prop_assert_eq!(read_terminal(&shown), rows(&card, values), "{}", shown);
        }
        let row = &parameter_rows(&card)[0];
        let shown = row.lines.concat();
        prop_assert_eq!(card::unquote(&shown), Some((texts[0].clone(), "")));
    }

    /// Nested values, types, empty values, spellings of letters, typed codes.
    #[test]
    fn different_actions_are_shown_differently(all in proptest::collection::vec(near_parameters(), 2..40)) {
        let mut seen: HashMap<String, BTreeMap<String, Param>> = HashMap::new();
        for parameters in all {
            let card = with(parameters.clone());
            let action = card.action.clone().expect("action");
            let shown = parameter_rows(&card);
            let full = |row: &CardRow| format!("{} {:?}", row.label, row.lines);
            let folded = |row: &CardRow| match row.fold(row.fold_limits()) {
                Some(fold) => format!("{} {fold:?}", row.label),
                None => full(row),
            };
            let joined = |row: &dyn Fn(&CardRow) -> String| shown.iter().map(row).collect::<Vec<_>>().join("\n");
            let forms = [
                format!("full {}", joined(&full)),
                format!("folded {}", joined(&folded)),
                format!("compact {:?}", card::compact_parameters(&action)),
            ];
            for form in forms {
                let before = seen.entry(form).or_insert_with(|| parameters.clone());
                prop_assert!(*before == parameters, "{:?}", card::compact_parameters(&action));
            }
        }
    }
}

/// A short set is seen whole: the item that decides may be its last.
#[test]
fn items_of_a_short_set_are_all_shown() {
    let roles = ["audit", "billing", "metrics", "readonly", "superuser"];
    let card = with(BTreeMap::from([(
        "roles".to_owned(),
        Param::Set(roles.map(text).to_vec()),
    )]));
    let shown = card::render_terminal(&card, NOW, 80, LongValues::Folded);
    assert!(
        shown.contains("\"superuser\"") && !shown.contains("5 values"),
        "{shown}"
    );
    let many: Vec<Param> = (0..17).map(|n| text(&format!("{n}"))).collect();
    let card = with(BTreeMap::from([("roles".to_owned(), Param::Set(many))]));
    let shown = card::render_terminal(&card, NOW, 80, LongValues::Folded);
    assert!(shown.contains("… 17 values, SHA-256"), "{shown}");
}

/// A long value is folded with its length and digest, wherever it is cut.
#[test]
fn long_values_are_folded_with_length_and_digest() {
    let script = "echo\n".repeat(2_000);
    let script = &script[..4_096];
    let card = with(BTreeMap::from([
        ("script".to_owned(), text(script)),
        ("superuser".to_owned(), Param::Bool(true)),
    ]));
    let folded = card::render_terminal(&card, NOW, 80, LongValues::Folded);
    let digest: String = Digest::sha256(script.as_bytes())
        .as_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let summary = "4096 characters in 820 lines, SHA-256";
    assert!(folded.contains(summary), "{folded}");
    let rows = rows(&card, LongValues::Folded);
    let (_, lines) = rows
        .iter()
        .find(|(label, _)| label == "with script")
        .expect("row");
    assert_eq!(lines.len(), 5, "four lines, and how it goes on");
    assert!(lines[4].1.contains(&digest), "{lines:?}");
    let line = |shown: &str, what: &str| shown.lines().position(|line| line.contains(what));
    assert!(
        line(&folded, "with superuser").expect("shown") < 15,
        "{folded}"
    );
    let full = card::render_terminal(&card, NOW, 80, LongValues::Full);
    assert_eq!(full.matches("echo<U+000A>").count(), 819);
    assert!(full.contains("4096 characters in 820 lines"), "{full}");
}

/// A target that the policy bundle does not have, with an id like our own words.
#[test]
fn open_target_cannot_speak_in_our_words() {
    let id = "web-1 in dev   [LOW RISK] Approved: yes";
    let open = Card {
        action: Some(Arc::new(action("host.isolate", "Host", id, IDP, &[]))),
        target_attributes: None,
        ..ordinary()
    };
    let shown = card::render_terminal(&open, NOW, 120, LongValues::Folded);
    let quoted = "Host::\"web-1 in dev <U+0020><U+0020>[LOW RISK] Approved: yes\"";
    assert!(shown.contains(quoted), "{shown}");
    assert!(card::render_chat(&open, NOW).contains(quoted));
    assert_eq!(shown.matches("[LOW RISK]").count(), 1, "{shown}");
    let target = Target::parse("Host", id).expect("target");
    assert_eq!(target.in_sentence(), format!("Host::\"{id}\""));
    let plain = Target::parse("Host", "web-1.soc.example:22").expect("target");
    assert_eq!(plain.in_sentence(), plain.to_string());
    let [one, other] = [("A::B", "c"), ("A", "B::c")].map(|(kind, id)| {
        let target = Target::parse(kind, id).expect("target");
        (target.in_sentence(), target.to_string())
    });
    assert_ne!(one.0, other.0);
    assert_eq!(one.1, other.1, "the plain form is ambiguous");
}

//! Layouts of a card: terminal and chat. The console's page is a template over the same rows.

use super::{AccessRequestStatus, Card, CardRow, CardView, SectionKind, Tone, escape_untrusted};
use crate::model::{Timestamp, format_seconds};

/// Fewest columns of a terminal layout; a narrower terminal gets the same layout.
pub const COLUMNS_MIN: usize = 80;
/// Widest column of labels; a longer label stands on a line of its own.
const LABEL_COLUMNS_MAX: usize = 26;
/// Blanks before every line of the card's body.
const INDENT: usize = 2;

/// The card for a terminal of this width, in columns.
pub fn render_terminal(card: &Card, now: Timestamp, columns: usize) -> String {
    layout(&card.show(now), columns.max(COLUMNS_MIN))
}

fn layout(view: &CardView, columns: usize) -> String {
    let mut out = String::new();
    let waits = match view.status {
        AccessRequestStatus::Waiting | AccessRequestStatus::Approved => {
            format!("  {} left", view.left)
        }
        AccessRequestStatus::Denied
        | AccessRequestStatus::Consumed
        | AccessRequestStatus::Cancelled
        | AccessRequestStatus::Expired
        | AccessRequestStatus::ApprovalExpired
        | AccessRequestStatus::Ended => String::new(),
    };
    out.push_str(&format!(
        "{}  {}{waits}  {}\n\n",
        view.access_request,
        view.status.as_str(),
        view.phrase
    ));
    let head = &view.headline;
    let environment = match &head.environment {
        Some(environment) => format!(" in {environment}"),
        None => String::new(),
    };
    let title = format!(
        "{}: {}::{}{environment}   [{}]",
        head.verb.to_uppercase(),
        head.object_type,
        head.object,
        head.risk_word
    );
    for line in [title, head.action.clone()] {
        fold(&mut out, &line, INDENT, 2 * INDENT, columns);
    }
    for flag in &head.flags {
        fold(&mut out, &format!("! {flag}"), INDENT, 2 * INDENT, columns);
    }
    let labels = view.sections.iter().flat_map(|section| &section.rows);
    let width = labels
        .map(|row| width_of(&row.label))
        .filter(|width| *width <= LABEL_COLUMNS_MAX)
        .max()
        .unwrap_or(0);
    for section in &view.sections {
        if opens_a_group(section.kind) {
            out.push('\n');
        }
        if section.kind == SectionKind::Words {
            out.push_str(&format!("  {}:\n", section.title));
        }
        for row in &section.rows {
            lay_row(&mut out, row, width, columns);
        }
    }
    out.push_str(&format!(
        "\n  match phrase {}   decided before {}\n",
        view.phrase, view.deadline
    ));
    out
}

/// Sections with a blank line before them.
const fn opens_a_group(kind: SectionKind) -> bool {
    match kind {
        SectionKind::Who
        | SectionKind::Effect
        | SectionKind::Parameters
        | SectionKind::Unusual
        | SectionKind::Token
        | SectionKind::Signed
        | SectionKind::Words => true,
        SectionKind::Why | SectionKind::Target | SectionKind::History | SectionKind::Needs => false,
    }
}

/// The label in its column, every line of the value in the other: nothing of a value ever stands where labels do.
fn lay_row(out: &mut String, row: &CardRow, width: usize, columns: usize) {
    let at = INDENT + width + 2;
    let mut label = row.label.clone();
    if width_of(&label) > width {
        fold(out, &label, INDENT, at, columns);
        label.clear();
    }
    let caption = row.caption.iter().map(|caption| format!("{caption}:"));
    let mark = match row.tone {
        Tone::Alarm => "! ",
        Tone::Plain | Tone::Strong | Tone::Unknown | Tone::Quiet | Tone::Quoted => "",
    };
    let lines = row.lines.iter().map(|line| format!("{mark}{line}"));
    let flags = row.flags.iter().map(|flag| format!("! {flag}"));
    for line in caption.chain(lines).chain(flags) {
        let mut laid = String::new();
        fold(&mut laid, &line, at, at, columns);
        if label.is_empty() {
            out.push_str(&laid);
        } else {
            let pad = width.saturating_sub(width_of(&label)) + 2;
            out.push_str(&format!("{:INDENT$}{label}{:pad$}", "", ""));
            out.push_str(laid.get(at..).unwrap_or("\n"));
            label.clear();
        }
    }
}

/// Writes the line from column `first` on, and what does not fit below from column `rest` on, broken at a blank if one is
/// near. The terminal must never break it: what it breaks goes on at column 0, where only our own lines begin.
fn fold(out: &mut String, line: &str, first: usize, rest: usize, columns: usize) {
    let mut indent = first;
    let mut left = line;
    loop {
        let width = columns.saturating_sub(indent).max(1);
        let (mut used, mut end, mut blank) = (0, left.len(), None);
        for (at, c) in left.char_indices() {
            let wide = columns_of(c);
            if used + wide > width && at > 0 {
                end = at;
                break;
            }
            used += wide;
            // Rather before a code than inside it.
            if (c == ' ' || c == '<' && at > 0) && used * 3 > width {
                blank = Some(at);
            }
        }
        if end < left.len() {
            // A blank right at the end is a break, too.
            end = match left
                .get(end..)
                .is_some_and(|next| next.starts_with([' ', '<']))
            {
                true => end,
                false => blank.unwrap_or(end),
            };
        }
        let (head, tail) = left.split_at_checked(end).unwrap_or((left, ""));
        out.push_str(&format!("{:indent$}{head}", ""));
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
        left = tail.strip_prefix(' ').unwrap_or(tail);
        if left.is_empty() {
            return;
        }
        indent = rest;
    }
}

fn width_of(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// Width in columns, an upper bound of what terminals use: past U+1100, where wide characters begin, everything counts as wide.
fn columns_of(c: char) -> usize {
    if u32::from(c) < 0x1100 { 1 } else { 2 }
}

/// The card for a chat: verb, object and risk; who, and how many must say yes; the life of the token; the phrase, the
/// deadline and a link. Never parameters, facts, tokens or the agent's words. Plain text: the sender escapes it for the
/// chat's own markup.
pub fn render_chat(card: &Card, now: Timestamp) -> String {
    let view = card.show(now);
    let head = &view.headline;
    let environment = match &head.environment {
        Some(environment) => format!(" ({environment})"),
        None => String::new(),
    };
    let needs = card.needs.iter().map(|need| {
        format!(
            "{} of {} {}",
            need.approvers.len(),
            need.quorum,
            escape_untrusted(&need.group)
        )
    });
    let uses = match card.uses {
        Some(1) => "one use".to_owned(),
        Some(uses) => format!("{uses} uses"),
        None => "any number of uses".to_owned(),
    };
    let mut lines = vec![
        format!(
            "{}: {} {}{environment} · {}",
            head.verb, head.object_type, head.object, head.risk_word
        ),
        format!(
            "{} (owner {}) · {}",
            escape_untrusted(card.agent.id.as_str()),
            escape_untrusted(&card.agent.owner.to_text()),
            needs.collect::<Vec<_>>().join(", ")
        ),
        format!(
            "token at most {}, {uses} · {}",
            format_seconds(card.max_ttl),
            view.phrase
        ),
    ];
    lines.extend(head.flags.iter().map(|flag| format!("! {flag}")));
    lines.push(match view.status {
        AccessRequestStatus::Waiting | AccessRequestStatus::Approved => {
            format!("decided before {} ({} left)", view.deadline, view.left)
        }
        AccessRequestStatus::Denied
        | AccessRequestStatus::Consumed
        | AccessRequestStatus::Cancelled
        | AccessRequestStatus::Expired
        | AccessRequestStatus::ApprovalExpired
        | AccessRequestStatus::Ended => view.status.as_str().to_owned(),
    });
    lines.extend(view.console_url);
    lines.join("\n") + "\n"
}

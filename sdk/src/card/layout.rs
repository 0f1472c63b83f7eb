//! Layouts of a card: terminal and chat. The console's page is a template over the same rows.

use super::{
    AccessRequestStatus, Card, CardRow, CardView, Extent, SectionKind, Tone, escape_untrusted,
};
use crate::model::text::unescape;
use crate::model::{Timestamp, format_seconds};

/// Fewest columns of a terminal layout; a narrower terminal gets the same layout.
pub const COLUMNS_MIN: usize = 80;
/// Widest column of labels; a longer label stands on a line of its own.
const LABEL_COLUMNS_MAX: usize = 26;
/// Blanks before every line of the card's body.
const INDENT: usize = 2;
/// Columns of a mark before a value: it, and a blank. Nothing of a value stands there.
const MARK_COLUMNS: usize = 2;
/// Blanks after the longest label.
const LABEL_GAP: usize = 2;
/// More blanks before a line that goes on after a blank.
const HANG: usize = 2;

/// What a layout shows of long values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LongValues {
    /// The beginning, the length and the digest.
    Folded,
    /// The whole value.
    Full,
}

/// The card for a terminal of this width, in columns. Different rows have different layouts: a line of a value that goes on in
/// the next one is marked by what stands before it.
///
/// ```text
/// label     a value, broken at a blank,
///             goes on two columns further
///         + or here, where no blank was
///         ! a warning or a bad value
///         ? an unknown value
///         ~ what a folded value has more
/// ```
pub fn render_terminal(card: &Card, now: Timestamp, columns: usize, values: LongValues) -> String {
    layout(&card.show(now), columns.max(COLUMNS_MIN), values)
}

fn layout(view: &CardView, columns: usize, values: LongValues) -> String {
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
        in_capitals(&head.verb),
        head.object_type,
        head.object,
        head.risk_word
    );
    for line in [title, head.action.clone()] {
        fold(&mut out, &line, "", INDENT, 2 * INDENT, columns);
    }
    for flag in &head.flags {
        fold(&mut out, flag, "!", 2 * INDENT, 2 * INDENT, columns);
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
            lay_row(&mut out, row, width, columns, values);
        }
    }
    out.push_str(&format!(
        "\n  match phrase {}   decided before {}\n",
        view.phrase, view.deadline
    ));
    out
}

/// Escaped text in capitals: what the capitals of a typed `<u+` are, is not a code.
fn in_capitals(shown: &str) -> String {
    let text = unescape(shown).unwrap_or_default();
    escape_untrusted(&text.to_uppercase())
}

/// Sections with a blank line before them.
const fn opens_a_group(kind: SectionKind) -> bool {
    match kind {
        SectionKind::Parameters
        | SectionKind::Changes
        | SectionKind::Plan
        | SectionKind::Target
        | SectionKind::Unusual
        | SectionKind::Who
        | SectionKind::Token
        | SectionKind::Signed
        | SectionKind::Words => true,
        SectionKind::Effect | SectionKind::History | SectionKind::Why | SectionKind::Needs => false,
    }
}

/// The label in its column, every line of the value in the other: nothing of a value ever stands where labels or marks do.
fn lay_row(out: &mut String, row: &CardRow, width: usize, columns: usize, values: LongValues) {
    let at = INDENT + width + LABEL_GAP + MARK_COLUMNS;
    let mut label = row.label.clone();
    if width_of(&label) > width {
        fold(out, &label, "", INDENT, 2 * INDENT, columns);
        label.clear();
    }
    let mark = match row.tone {
        Tone::Alarm => "!",
        Tone::Unknown => "?",
        Tone::Plain | Tone::Strong | Tone::Quiet | Tone::Quoted => "",
    };
    let caption = row.caption.iter().map(|caption| format!("{caption}:"));
    let mut lines: Vec<(&str, String)> = caption.map(|line| ("", line)).collect();
    let folded = row.fold(row.fold_limits());
    match (&folded, values) {
        (Some((head, _)), LongValues::Folded) => {
            lines.extend(head.iter().map(|line| (mark, line.clone())));
        }
        (Some(_), LongValues::Full) | (None, _) => {
            lines.extend(row.lines.iter().map(|line| (mark, line.clone())));
        }
    }
    if let Some((_, Extent { length, digest })) = folded {
        let goes_on = match values {
            LongValues::Folded => "… ",
            LongValues::Full => "",
        };
        lines.push(("~", format!("{goes_on}{length}, SHA-256 {digest}")));
    }
    lines.extend(row.flags.iter().map(|flag| ("!", flag.clone())));
    for (mark, line) in lines {
        let mut laid = String::new();
        fold(&mut laid, &line, mark, at, at, columns);
        if label.is_empty() {
            out.push_str(&laid);
        } else {
            // The label takes the place of the blanks before the mark.
            let pad = width.saturating_sub(width_of(&label));
            out.push_str(&format!("{:INDENT$}{label}{:pad$}", "", ""));
            out.push_str(laid.get(INDENT + width..).unwrap_or("\n"));
            label.clear();
        }
    }
}

/// Writes the line from column `first` on, with a mark before it, and what does not fit below, from column `rest` on: after a
/// blank, which is left out, two columns further; otherwise behind `+`. The terminal must never break it: what it breaks goes on at column 0, where only our
/// own lines begin.
fn fold(out: &mut String, line: &str, mark: &str, first: usize, rest: usize, columns: usize) {
    let marked = |mark: &str, at: usize| {
        let blanks = at.saturating_sub(MARK_COLUMNS);
        format!("{:blanks$}{mark}", "")
    };
    let mut before = marked(mark, first);
    let mut indent = first;
    let mut left = line;
    loop {
        let width = columns.saturating_sub(indent).max(1);
        let (mut used, mut end, mut blank, mut code) = (0, left.len(), None, None);
        for (at, c) in left.char_indices() {
            let wide = columns_of(c);
            if used + wide > width && at > 0 {
                end = at;
                break;
            }
            used += wide;
            if c == ' ' && used * 3 > width {
                blank = Some(at);
            }
            if c == '<' && at > 0 && used * 3 > width {
                code = Some(at);
            }
        }
        let mut after_blank = false;
        if end < left.len() {
            let next = left.get(end..).unwrap_or_default();
            // A blank right at the end is a break, too; rather before a code than inside it.
            (end, after_blank) = match (next.starts_with(' '), next.starts_with('<')) {
                (true, _) => (end, true),
                (false, true) => (end, false),
                (false, false) => match (blank, code) {
                    (Some(blank), code) if code.is_none_or(|code| code < blank) => (blank, true),
                    (_, Some(code)) => (code, false),
                    (Some(blank), None) => (blank, true),
                    (None, None) => (end, false),
                },
            };
        }
        // A blank at the end of a line would not be seen.
        if end < left.len() && !after_blank && left.get(..end).is_some_and(|h| h.ends_with(' ')) {
            (end, after_blank) = (end - 1, true);
        }
        let (head, tail) = left.split_at_checked(end).unwrap_or((left, ""));
        out.push_str(&format!("{before:<indent$}{head}"));
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
        if tail.is_empty() {
            return;
        }
        if after_blank {
            left = tail.strip_prefix(' ').unwrap_or(tail);
            (before, indent) = (String::new(), rest + HANG);
        } else {
            left = tail;
            (before, indent) = (marked("+", rest), rest);
        }
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
            "{}: {}::{}{environment} · {}",
            head.verb, head.object_type, head.object, head.risk_word
        ),
        format!("{} · {}", who(card), needs.collect::<Vec<_>>().join(", ")),
        match card.max_ttl {
            Some(ttl) => format!(
                "token at most {}, {uses} · {}",
                format_seconds(ttl),
                view.phrase
            ),
            None => format!("no token · {}", view.phrase),
        },
    ];
    lines.extend(card.delay_text(now));
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

/// The requester with its owner; of a recommendation the executor with its owner, too.
fn who(card: &Card) -> String {
    let owner = escape_untrusted(&card.requester.owner().to_text());
    let Some(agent) = card.requester.agent() else {
        return format!("proposed (owner {owner})");
    };
    let id = escape_untrusted(agent.id.as_str());
    match &agent.executor {
        None => format!("{id} (owner {owner})"),
        Some(executor) => format!(
            "recommended by {id} (owner {owner}) for {} (owner {})",
            escape_untrusted(executor.id.as_str()),
            escape_untrusted(&executor.owner.to_text())
        ),
    }
}
